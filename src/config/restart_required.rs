//! The sections that only a restart can change.

use toml::de::DeTable;

use super::content;

/// A digest of each section that requires a restart. Two files with equal digests say the same in
/// these sections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartRequired([Option<[u8; 32]>; SECTIONS.len()]);

/// The sections that require a restart.
const SECTIONS: [&str; 4] = ["log", "server", "admin", "store"];

impl RestartRequired {
    /// The digests of the sections of `file`. A digest covers the reference to a secret, and not the
    /// secret.
    pub(super) fn of(file: &DeTable<'_>) -> Self {
        Self(SECTIONS.map(|name| {
            let mut value = file.get(name);
            if name == "admin" {
                // A reload replaces its tokens and its hosts.
                let section = value.and_then(|section| section.get_ref().as_table());
                value = section.and_then(|section| section.get("listen"));
            }
            value.map(content::full_digest)
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
