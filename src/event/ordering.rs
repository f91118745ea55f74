//! The ordering keys of an event.
//!
//! An event has a set of ordering keys. Two events that share a key are delivered in the order in which
//! they were stored; events that share no key never wait for each other. Keys belong to a scope, such as
//! a customer's account. An event can have all keys of its scope: it shares one with every event of the
//! scope.

use std::sync::Arc;

use sha2::{Digest, Sha256};

/// The most keys of an event. An event about more numbers has all keys of its scope: it may wait longer,
/// and overtakes nothing.
///
/// So the cost of an event's order is bounded for a store, however long the body is (1 MiB holds some
/// 80,000 numbers).
pub const MAX_KEYS: usize = 64;

/// A key or a scope: 63 bits of the SHA-256 of its text, never 0. A collision only makes events wait for
/// each other that need not.
pub type KeyHash = i64;

/// The ordering keys of one event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OrderingKeys {
    /// The namespace of the keys.
    scope: KeyHash,
    /// Ascending and distinct; empty if the event has all keys of the scope. Shared by the deliveries of the
    /// event.
    keys: Arc<[KeyHash]>,
}

impl OrderingKeys {
    /// All keys of `scope`.
    pub fn whole(scope: KeyHash) -> Self {
        Self::from_hashes(scope, Vec::new())
    }

    /// The `keys` of `scope`; all keys of the scope if there are none, or more than [`MAX_KEYS`].
    pub fn of(scope: KeyHash, keys: impl IntoIterator<Item = KeyHash>) -> Self {
        let mut sorted = Vec::new();
        for key in keys {
            if let Err(place) = sorted.binary_search(&key) {
                sorted.insert(place, key);
            }
            if sorted.len() > MAX_KEYS {
                return Self::whole(scope);
            }
        }
        Self::from_hashes(scope, sorted)
    }

    /// The keys with these hashes, ascending and distinct; all keys of the scope if there are none.
    pub fn from_hashes(scope: KeyHash, keys: Vec<KeyHash>) -> Self {
        Self {
            scope,
            keys: keys.into(),
        }
    }

    /// The namespace of the keys.
    pub const fn scope(&self) -> KeyHash {
        self.scope
    }

    /// The keys, ascending and distinct; empty if [`is_whole`](Self::is_whole).
    pub fn keys(&self) -> &[KeyHash] {
        &self.keys
    }

    /// Whether these are all keys of the scope.
    pub fn is_whole(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether the two share a key, so that one event waits for the other.
    pub fn share_a_key_with(&self, other: &Self) -> bool {
        let meet = || self.keys.iter().any(|key| other.keys.contains(key));
        self.scope == other.scope && (self.is_whole() || other.is_whole() || meet())
    }
}

/// The hash of the concatenated `parts`. It is the same in every version, since stores keep it.
pub fn key_hash(parts: &[&str]) -> KeyHash {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    let digest = hasher.finalize();
    let first = digest.first_chunk().copied().map_or(0, i64::from_be_bytes);
    (first & i64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::{MAX_KEYS, OrderingKeys, key_hash};

    fn keys(scope: &str, keys: &[&str]) -> OrderingKeys {
        OrderingKeys::of(key_hash(&[scope]), keys.iter().map(|key| key_hash(&[key])))
    }

    #[test]
    fn two_events_share_a_key_in_their_scope_only() {
        let (ab, bc, c) = (
            keys("x", &["a", "b"]),
            keys("x", &["c", "b"]),
            keys("x", &["c"]),
        );
        let elsewhere = keys("y", &["a", "b", "c"]);
        assert!(ab.share_a_key_with(&bc) && bc.share_a_key_with(&c));
        assert!(!ab.share_a_key_with(&c) && !c.share_a_key_with(&ab));
        assert!(!ab.share_a_key_with(&elsewhere));
    }

    #[test]
    fn a_whole_scope_shares_a_key_with_everything_in_it() {
        let (a, whole) = (keys("x", &["a"]), keys("x", &[]));
        assert!(whole.is_whole() && !a.is_whole());
        assert!(whole.share_a_key_with(&a) && a.share_a_key_with(&whole));
        assert!(whole.share_a_key_with(&whole));
        assert!(!whole.share_a_key_with(&keys("y", &["a"])));
        assert_eq!(whole, OrderingKeys::whole(key_hash(&["x"])));
    }

    #[test]
    fn more_keys_than_the_maximum_are_all_keys_of_the_scope() {
        let numbered = |count: usize| {
            let keys = (0..count).chain(0..count);
            let keys = keys.map(|n| key_hash(&[&n.to_string()]));
            OrderingKeys::of(key_hash(&["x"]), keys)
        };
        assert_eq!(numbered(MAX_KEYS).keys().len(), MAX_KEYS);
        assert!(numbered(MAX_KEYS + 1).is_whole());
    }

    #[test]
    fn a_hash_is_the_same_in_every_version() {
        // printf x | sha256sum, and the same of a
        assert_eq!(key_hash(&["a", "b"]), key_hash(&["ab"]));
        let x = keys("x", &["a"]);
        assert_eq!(x.scope(), 0x2d71_1642_b726_b044);
        assert_eq!(x.keys(), [0x4a97_8112_ca1b_bdca]);
    }
}
