//! Terms: what an event can be looked up by, as the engines index it.
//!
//! An event has a term for each of its subjects, and one for its partition key. A term is a hash of
//! 64 bits: the beginning of an HMAC-SHA-256 under a random key, which the store keeps beside the
//! index. An unkeyed hash of a phone number would be the number, since all numbers can be tried.
//! Whoever reads the key can try them too. When a store is encrypted at rest, the key is derived from
//! the configured one instead of being stored.
//!
//! **Invariant:** a term only finds candidates. The stored event decides whether it matches, so that
//! two texts with the same term show nothing wrong.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::EventFilter;
use crate::event::{Key, Notification, meant_by, normal_form};

/// The most terms of an event that are added together with the event. An event with more is indexed
/// later, where adding events must not take long.
#[cfg_attr(
    not(feature = "postgres"),
    expect(dead_code, reason = "an embedded store indexes behind the append path")
)]
pub(super) const MOST_TERMS: usize = 1024;

/// The number of bytes of a key.
pub(super) const KEY_BYTES: usize = 32;

/// What is before the text in the input of the hash, so that a key and a subject differ.
const SUBJECT: &[u8] = b"s";
const PARTITION_KEY: &[u8] = b"k";

/// Computes the terms of one store.
#[derive(Clone)]
pub(super) struct TermHasher(Hmac<Sha256>);

impl TermHasher {
    /// Hashes under `key`.
    pub(super) fn new(key: &[u8; KEY_BYTES]) -> Self {
        #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
        let keyed = Hmac::new_from_slice(key).expect("HMAC takes a key of any length");
        Self(keyed)
    }

    /// The terms of an event, each once.
    pub(super) fn terms(&self, notification: &Notification) -> Vec<i64> {
        let mut terms = Vec::with_capacity(1 + notification.subjects.len());
        terms.extend(notification.key.as_ref().map(|key| self.of_key(key)));
        let subjects = notification.subjects.iter();
        terms.extend(subjects.map(|subject| self.of_subject(&normal_form(subject))));
        terms.sort_unstable();
        terms.dedup();
        terms
    }

    /// The terms to look up for `filter`; `None` if it does not ask for a number or a key.
    pub(super) fn wanted(&self, filter: &EventFilter) -> Option<Vec<i64>> {
        let of_subjects = |about: &String| {
            let meant = meant_by(about);
            meant
                .iter()
                .map(|subject| self.of_subject(subject))
                .collect()
        };
        let subjects = filter.about.as_ref().map(of_subjects);
        subjects.or_else(|| Some(vec![self.of_key(filter.key.as_ref()?)]))
    }

    fn of_subject(&self, normal_form: &str) -> i64 {
        self.hash(SUBJECT, normal_form)
    }

    fn of_key(&self, key: &Key) -> i64 {
        self.hash(PARTITION_KEY, key.as_str())
    }

    fn hash(&self, kind: &[u8], text: &str) -> i64 {
        let mut mac = self.0.clone();
        mac.update(kind);
        mac.update(text.as_bytes());
        let digest = mac.finalize().into_bytes();
        let mut term = [0; 8];
        term.copy_from_slice(digest.split_at(8).0);
        i64::from_be_bytes(term)
    }
}

impl fmt::Debug for TermHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TermHasher(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::{KEY_BYTES, TermHasher};
    use crate::{
        event::Key,
        store::{EventFilter, tests::event},
    };

    fn hasher(byte: u8) -> TermHasher {
        TermHasher::new(&[byte; KEY_BYTES])
    }

    #[test]
    fn an_event_is_wanted_by_its_key_and_by_each_of_its_subjects() {
        let hasher = hasher(7);
        let mut event = event(1);
        event.subjects = vec![
            "+12025550143".into(),
            "Reception".into(),
            "reception".into(),
        ];
        let terms = hasher.terms(&event);
        assert_eq!(terms.len(), 3, "equal subjects share a term");
        let finds = |filter: EventFilter| {
            let wanted = hasher.wanted(&filter).unwrap();
            wanted.iter().any(|term| terms.contains(term))
        };
        for about in ["(202) 555-0143", "RECEPTION"] {
            let about = Some(about.to_owned());
            assert!(finds(EventFilter {
                about,
                ..EventFilter::default()
            }));
        }
        let key = |key: Option<Key>| EventFilter {
            key,
            ..EventFilter::default()
        };
        assert!(finds(key(event.key)));
        assert!(
            !finds(key(Some("+12025550143".into()))),
            "a subject is no key"
        );
        assert_eq!(hasher.wanted(&EventFilter::default()), None);
    }

    #[test]
    fn terms_of_different_stores_differ() {
        assert_ne!(hasher(7).terms(&event(1)), hasher(8).terms(&event(1)));
    }
}
