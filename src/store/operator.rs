//! The types of the operator's queries and commands.

use jiff::Timestamp;
use serde::Serialize;

use crate::event::{EndpointName, EventId, EventName, HandlerName, Key, Notification, Pattern};

/// Selects events to list.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Only events whose name matches.
    pub name: Option<Pattern>,
    /// Only events received at or after this time.
    pub since: Option<Timestamp>,
    /// Only events received before this time.
    pub until: Option<Timestamp>,
    /// Only events with this partition key.
    pub key: Option<Key>,
    /// The most events to list.
    pub limit: usize,
}

/// One line of a list of events, without the body.
#[derive(Clone, Debug, Serialize)]
pub struct EventSummary {
    /// The event's id.
    pub id: EventId,
    /// The event's name.
    pub name: EventName,
    /// The endpoint that received the event.
    pub endpoint: EndpointName,
    /// The event's partition key.
    pub key: Option<Key>,
    /// When the event occurred, by the provider.
    pub occurred_at: Option<Timestamp>,
    /// When the event was received.
    pub received_at: Timestamp,
    /// The number of unfinished deliveries.
    pub open: u64,
    /// The number of parked deliveries.
    pub parked: u64,
}

/// One event with its deliveries.
#[derive(Clone, Debug)]
pub struct EventDetails {
    /// The event as received.
    pub notification: Notification,
    /// The deliveries, by handler.
    pub deliveries: Vec<DeliveryDetails>,
}

/// The state of one delivery.
#[derive(Clone, Debug, Serialize)]
pub struct DeliveryDetails {
    /// The handler.
    pub handler: HandlerName,
    /// The state.
    pub state: DeliveryState,
    /// The event whose delivery a queued delivery waits for. Both events share an ordering key.
    pub waits_for: Option<EventId>,
    /// The number of ended attempts.
    pub attempts: u32,
    /// When the next attempt is due, if there is one.
    pub due_at: Option<Timestamp>,
    /// The reason of the last replay, if there was one.
    pub replay: Option<String>,
    /// Why the delivery is parked or was skipped.
    pub why: Option<String>,
    /// The failed attempts, oldest first.
    pub failures: Vec<Attempt>,
}

/// The state of a delivery. Tables store its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryState {
    /// The delivery is attempted when it is due.
    Ready = 0,
    /// The delivery waits for an earlier one that shares an ordering key.
    Queued = 1,
    /// The delivery waits for a person.
    Parked = 2,
    /// The handler accepted the event.
    Done = 3,
    /// The handler declined the event, or an operator skipped it.
    Skipped = 4,
}

/// One failed attempt.
#[derive(Clone, Debug, Serialize)]
pub struct Attempt {
    /// When the attempt began.
    pub started_at: Timestamp,
    /// How long the attempt took, in milliseconds.
    pub took_ms: u64,
    /// The error.
    pub why: String,
}

/// Selects parked deliveries to list.
#[derive(Clone, Debug, Default)]
pub struct ParkedFilter {
    /// Only deliveries of this handler.
    pub handler: Option<HandlerName>,
    /// The most deliveries to list.
    pub limit: usize,
}

/// One parked delivery.
#[derive(Clone, Debug, Serialize)]
pub struct ParkedDelivery {
    /// The event's id.
    pub id: EventId,
    /// The event's name.
    pub name: EventName,
    /// The handler.
    pub handler: HandlerName,
    /// The event's partition key.
    pub key: Option<Key>,
    /// When the event was received.
    pub received_at: Timestamp,
    /// When the delivery was parked.
    pub parked_at: Timestamp,
    /// The number of attempts.
    pub attempts: u32,
    /// Why the delivery is parked.
    pub why: String,
}

/// Selects deliveries to replay. All conditions must hold.
#[derive(Clone, Debug, Default)]
pub struct ReplaySelection {
    /// Only these events; all events where empty.
    pub ids: Vec<EventId>,
    /// Only these handlers, whether or not their patterns match the events; where empty, each
    /// handler that has or had a delivery of the event.
    pub handlers: Vec<HandlerName>,
    /// Only events whose name matches.
    pub name: Option<Pattern>,
    /// Only events received at or after this time.
    pub since: Option<Timestamp>,
    /// Only events received before this time.
    pub until: Option<Timestamp>,
    /// Only parked deliveries.
    pub parked_only: bool,
}

/// The result of a replay, or of its plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplaySummary {
    /// The number of deliveries, by handler.
    pub deliveries: Vec<(HandlerName, u64)>,
}

impl DeliveryState {
    /// The state with this number.
    pub(super) const fn numbered(number: i16) -> Self {
        match number {
            0 => Self::Ready,
            1 => Self::Queued,
            2 => Self::Parked,
            4 => Self::Skipped,
            _ => Self::Done,
        }
    }

    /// Whether the delivery will be attempted, now or later.
    pub(super) const fn is_open(self) -> bool {
        matches!(self, Self::Ready | Self::Queued)
    }
}

impl EventFilter {
    /// Whether the filter matches an event of this name and time of receipt.
    pub(super) fn takes(&self, name: &EventName, received_at: Timestamp) -> bool {
        let times = (self.since, self.until);
        takes(self.name.as_ref(), times, name, received_at)
    }
}

impl ReplaySelection {
    /// Whether the selection includes an event of this name and time of receipt.
    pub(super) fn takes(&self, name: &EventName, received_at: Timestamp) -> bool {
        let times = (self.since, self.until);
        takes(self.name.as_ref(), times, name, received_at)
    }
}

fn takes(
    pattern: Option<&Pattern>,
    (since, until): (Option<Timestamp>, Option<Timestamp>),
    name: &EventName,
    received_at: Timestamp,
) -> bool {
    pattern.is_none_or(|pattern| pattern.matches(name))
        && since.is_none_or(|since| received_at >= since)
        && until.is_none_or(|until| received_at < until)
}

impl ReplaySummary {
    /// The number of deliveries to all handlers.
    pub fn total(&self) -> u64 {
        self.deliveries.iter().map(|(_, count)| count).sum()
    }
}

/// The longest stored reason, in bytes. Handlers may answer with whole pages.
const REASON_BYTES: usize = 1024;

/// The beginning of `text` that is stored.
pub(super) fn shorten(text: &str) -> &str {
    text.get(..text.floor_char_boundary(REASON_BYTES))
        .unwrap_or(text)
}

/// The range of event ids between two times of receipt, to the millisecond: an exclusive lower and
/// an inclusive upper bound.
pub(super) fn id_range(since: Option<Timestamp>, until: Option<Timestamp>) -> ([u8; 16], [u8; 16]) {
    let bound = |time: Timestamp, fill: u8| {
        let millis = time.as_millisecond().max(0).cast_unsigned();
        let mut id = [fill; 16];
        let (stamp, _) = id.split_at_mut(6);
        stamp.copy_from_slice(millis.to_be_bytes().split_at(2).1);
        id
    };
    let from = since.map_or([0; 16], |since| bound(since, 0));
    let to = until.map_or([0xff; 16], |until| bound(until, 0xff));
    (from, to)
}
