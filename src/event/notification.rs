//! One authentic message.

use bytes::Bytes;
use jiff::Timestamp;

use super::{DedupeKey, EndpointName, EventId, EventName, Key, OrderingKeys, Topic};

/// One authenticated message, its bytes exactly as they arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Ours, given on arrival; a replay keeps it.
    pub id: EventId,
    /// The endpoint that it arrived at.
    pub endpoint: EndpointName,
    /// What was said, as far as it could be told.
    pub name: EventName,
    /// The partition key: the one key that brokers get.
    pub key: Option<Key>,
    /// What it is about: a phone number, an extension id.
    pub subject: Option<String>,
    /// When the provider says that it happened.
    pub occurred_at: Option<Timestamp>,
    /// When we received it.
    pub received_at: Timestamp,
    /// What it reports on, for `superseded`.
    pub topics: Vec<Topic>,
    /// How a second copy of it is known: any one of these is enough.
    pub dedupe: Vec<DedupeKey>,
    /// The body, byte for byte.
    pub body: Bytes,
}

impl Notification {
    /// The provider that sent it: the first part of its name.
    pub fn provider(&self) -> &str {
        self.name.provider()
    }

    /// What it keeps its order by; `None` where no order holds. Reads the body.
    pub fn ordering_keys(&self) -> Option<OrderingKeys> {
        super::ordering_keys(&self.name, self.key.as_ref(), &self.body)
    }
}
