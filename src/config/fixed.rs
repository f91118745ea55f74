//! What of a configuration cannot change while the service runs.

use std::hash::{DefaultHasher, Hash, Hasher};

use toml::de::{DeTable, DeValue};

/// The sections that a running service was built from for good, in a form that can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed([u64; SECTIONS.len()]);

/// Their names.
const SECTIONS: [&str; 4] = ["log", "server", "admin", "store"];

impl Fixed {
    /// What `file` says of them. A secret that it refers to is not looked at, only the reference.
    pub(super) fn of(file: &DeTable<'_>) -> Self {
        Self(SECTIONS.map(|name| {
            file.get(name)
                .map_or(0, |value| fingerprint(value.get_ref()))
        }))
    }

    /// The sections that differ in `new`, as the TOML writes them.
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

/// A number that stays the same while `value` says the same, wherever it stands.
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
