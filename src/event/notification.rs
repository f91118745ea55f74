//! An authentic event as it was received.

use bytes::Bytes;
use jiff::Timestamp;

use super::{DedupeKey, EndpointName, EventId, EventName, Key, OrderingKeys, Topic};

/// An authenticated message, with its bytes exactly as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The id, assigned on arrival. A replay has the same one.
    pub id: EventId,
    /// The endpoint that received it.
    pub endpoint: EndpointName,
    /// The event name.
    pub name: EventName,
    /// The partition key: the one key that brokers get.
    pub key: Option<Key>,
    /// What the event is about: see [`EventFamily::subjects`](super::EventFamily::subjects).
    pub subjects: Vec<String>,
    /// The time of the event, by the provider's clock.
    pub occurred_at: Option<Timestamp>,
    /// The time of arrival, by our clock.
    pub received_at: Timestamp,
    /// What a newer event would replace: see [`EventFamily::topics`](super::EventFamily::topics).
    pub topics: Vec<Topic>,
    /// A duplicate has one of these keys, or more.
    pub dedupe: Vec<DedupeKey>,
    /// The body, byte for byte.
    pub body: Bytes,
}

impl Notification {
    /// The provider that sent it: the first part of its name.
    pub fn provider(&self) -> &str {
        self.name.provider()
    }

    /// What the event is about first of all: the CloudEvents attribute `subject`.
    pub fn subject(&self) -> Option<&str> {
        self.subjects.first().map(String::as_str)
    }

    /// The ordering keys, parsed from the body; `None` for an event without order.
    pub fn ordering_keys(&self) -> Option<OrderingKeys> {
        super::ordering_keys(&self.name, self.key.as_ref(), &self.body)
    }
}
