//! Identifiers: ids, names, keys.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Declares a newtype of a string that is cheap to clone.
macro_rules! string_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps the string.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The concatenated `parts`.
            pub fn of(parts: &[&str]) -> Self {
                Self::new(parts.concat())
            }

            /// The string.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::new(text)
            }
        }
    };
}

string_type! {
    /// `<provider>.<family>.<change>`, or `<provider>.unrecognized`.
    EventName
}
string_type! {
    /// The name of an endpoint in the TOML.
    EndpointName
}
string_type! {
    /// The name of a handler in the TOML.
    HandlerName
}
string_type! {
    /// A partition key. It starts with the family's name, so that two families never share one.
    Key
}
string_type! {
    /// What a newer event replaces: see [`EventFamily::topics`](super::EventFamily::topics).
    Topic
}

impl EventName {
    /// The part before the first dot.
    pub fn provider(&self) -> &str {
        self.as_str().split('.').next().unwrap_or_default()
    }
}

/// The id of a stored event: a UUID of version 7, so that ids sort by time of arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(Uuid);

impl EventId {
    /// A new id for an event that arrived at `now`.
    pub fn new(now: Timestamp) -> Self {
        let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
        let nanos = u32::try_from(now.subsec_nanosecond()).unwrap_or(0);
        let time = uuid::Timestamp::from_unix(uuid::NoContext, millis / 1000, nanos);
        Self(Uuid::new_v7(time))
    }

    /// When the event arrived, to the millisecond.
    pub fn time(&self) -> Timestamp {
        let stamp = self.as_bytes().iter().take(6);
        let millis = stamp.fold(0, |millis, byte| millis << 8 | i64::from(*byte));
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The id's sixteen bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::str::FromStr for EventId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A value by which a duplicate of an event is recognized: 128 bits of a SHA-256 over the provider, the
/// name of the value, and the value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DedupeKey([u8; 16]);

impl DedupeKey {
    /// The key for `value`, which is the `what` (such as `uuid` or `body`) of a request of `provider`.
    pub fn new(provider: &str, what: &str, value: &[u8]) -> Self {
        // Neither name holds a NUL, so two triples never have the same bytes.
        let digest = Sha256::new()
            .chain_update(provider)
            .chain_update([0])
            .chain_update(what)
            .chain_update([0])
            .chain_update(value)
            .finalize();
        let mut key = [0; 16];
        key.copy_from_slice(digest.split_at(16).0);
        Self(key)
    }

    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The key's sixteen bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::{DedupeKey, EventId, EventName};

    #[test]
    fn ids_sort_by_the_millisecond_of_arrival_and_are_never_alike() {
        let now: Timestamp = "2026-03-04T15:21:07.412Z".parse().expect("it is a time");
        let later = now + SignedDuration::from_millis(1);
        let (first, second, third) = (EventId::new(now), EventId::new(now), EventId::new(later));
        assert_eq!(third.time(), later);
        assert_ne!(first, second);
        assert!(first < third && second < third);
        assert!(first.to_string() < third.to_string());
    }

    #[test]
    fn an_id_survives_as_text_and_as_bytes() {
        let id = EventId::new(Timestamp::UNIX_EPOCH);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(EventId::from_bytes(*id.as_bytes()), id);
    }

    #[test]
    fn a_dedupe_key_depends_on_each_of_its_parts() {
        let key = DedupeKey::new("zoom", "body", b"x");
        assert_eq!(key, DedupeKey::new("zoom", "body", b"x"));
        for other in [
            DedupeKey::new("ringcentral", "body", b"x"),
            DedupeKey::new("zoom", "uuid", b"x"),
            DedupeKey::new("zoom", "body", b"y"),
            DedupeKey::new("zoo", "mbody", b"x"),
            DedupeKey::new("zoom", "bod", b"yx"),
        ] {
            assert_ne!(key, other);
        }
    }

    #[test]
    fn the_provider_is_the_first_part_of_an_event_name() {
        assert_eq!(EventName::new("zoom.a.b").provider(), "zoom");
        assert_eq!(EventName::new("").provider(), "");
    }
}
