//! The sections that only a restart can change.

use std::hash::{DefaultHasher, Hash, Hasher};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A fingerprint of each section that requires a restart. Two files with equal fingerprints say the
/// same in these sections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartRequired([u64; SECTIONS.len()]);

/// The sections that require a restart.
const SECTIONS: [&str; 4] = ["log", "server", "admin", "store"];

impl RestartRequired {
    /// The fingerprints of the sections of `file`. A fingerprint covers the reference to a secret,
    /// and not the secret.
    pub(super) fn of(file: &DeTable<'_>) -> Self {
        Self(SECTIONS.map(|name| {
            let mut value = file.get(name).map(Spanned::get_ref);
            if name == "admin" {
                // A reload replaces its tokens and its hosts.
                let section = value.and_then(DeValue::as_table);
                let listen = section.and_then(|section| section.get("listen"));
                value = listen.map(Spanned::get_ref);
            }
            value.map_or(0, fingerprint)
        }))
    }

    /// The sections that differ between `self` and `new`, as the TOML writes their headers.
    pub fn changes(&self, new: &Self) -> Vec<String> {
        let pairs = self.0.iter().zip(&new.0);
        SECTIONS
            .iter()
            .zip(pairs)
            .filter(|(_, (old, new))| old != new)
            .map(|(name, _)| format!("[{name}]"))
            .collect()
    }
}

/// A number for the content of `value`. The place of `value` has no part in the number.
fn fingerprint(value: &DeValue<'_>) -> u64 {
    fn add(value: &DeValue<'_>, hasher: &mut DefaultHasher) {
        std::mem::discriminant(value).hash(hasher);
        match value {
            DeValue::String(text) => text.hash(hasher),
            DeValue::Integer(number) => number.as_str().hash(hasher),
            DeValue::Float(number) => number.as_str().hash(hasher),
            DeValue::Boolean(truth) => truth.hash(hasher),
            DeValue::Datetime(time) => time.to_string().hash(hasher),
            DeValue::Array(items) => {
                items.len().hash(hasher);
                items.iter().for_each(|item| add(item.get_ref(), hasher));
            }
            DeValue::Table(table) => {
                table.len().hash(hasher);
                for (key, value) in table.iter() {
                    key.get_ref().hash(hasher);
                    add(value.get_ref(), hasher);
                }
            }
        }
    }
    let mut hasher = DefaultHasher::new();
    add(value, &mut hasher);
    hasher.finish()
}
