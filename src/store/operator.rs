//! The types of the operator's queries and commands.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::event::{EndpointName, EventId, EventName, HandlerName, Key, Notification, Pattern};

/// The most events, or deliveries, that one page of a list looks at.
pub(super) const MOST_LOOKED_AT: usize = 5000;

/// The most parked deliveries of one handler that are counted by reason.
pub(super) const MOST_COUNTED: usize = 10_000;

/// The most reasons of parked deliveries that are returned.
pub(super) const MOST_REASONS: usize = 200;

/// Selects events to list. All conditions must hold.
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
    /// Only events about this phone number or extension, as a person writes it.
    pub about: Option<String>,
    /// Only events that this endpoint received.
    pub endpoint: Option<EndpointName>,
    /// Only events with a delivery to this handler. The next two conditions are about that delivery.
    pub handler: Option<HandlerName>,
    /// Only events with a delivery in this state. `Ready` and `Queued` both stand for every open
    /// delivery: which of the two it is depends on the moment.
    pub state: Option<DeliveryState>,
    /// Only events with a delivery that is parked or was skipped for a reason with this text in it,
    /// or with a failed attempt with this text in its error. Case does not matter.
    pub why: Option<String>,
    /// Only events older than this one: the `next` of the page before.
    pub before: Option<EventId>,
    /// Only events newer than this one.
    pub after: Option<EventId>,
    /// The most events to list.
    pub limit: usize,
}

/// One page of a list of events.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EventList {
    /// The events, newest first. There may be fewer than the limit, or none, though older ones
    /// match.
    pub events: Vec<EventSummary>,
    /// Where the list goes on: the `before` of the next page. `None` when there is nothing older.
    pub next: Option<EventId>,
    /// In a list by number or by key: matching events that were received before this time may be
    /// missing, since they are not indexed yet.
    pub incomplete_before: Option<Timestamp>,
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
    /// The phone numbers and extensions that the event is about.
    pub subjects: Vec<String>,
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
    /// When the delivery was finished, skipped or parked.
    pub ended_at: Option<Timestamp>,
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

/// Selects parked deliveries to list. All conditions must hold.
#[derive(Clone, Debug, Default)]
pub struct ParkedFilter {
    /// Only deliveries of this handler.
    pub handler: Option<HandlerName>,
    /// Only deliveries that are parked for a reason with this text in it. Case does not matter.
    pub why: Option<String>,
    /// Only deliveries behind this one: the `next` of the page before.
    pub after: Option<ParkedCursor>,
    /// The most deliveries to list.
    pub limit: usize,
}

/// One page of a list of parked deliveries.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ParkedList {
    /// The deliveries, oldest first. There may be fewer than the limit, or none, though later ones
    /// match.
    pub deliveries: Vec<ParkedDelivery>,
    /// Where the list goes on: the `after` of the next page. `None` when there is nothing behind.
    pub next: Option<ParkedCursor>,
}

/// The place of a delivery in the list of parked deliveries. Its text form is opaque.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParkedCursor {
    /// The event's position in the store.
    pub(super) position: i64,
    /// The handler.
    pub(super) handler: HandlerName,
}

impl fmt::Display for ParkedCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.position, self.handler)
    }
}

impl FromStr for ParkedCursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let (position, handler) = text.split_once('.').ok_or(InvalidCursor)?;
        Ok(Self {
            position: position.parse().map_err(|_| InvalidCursor)?,
            handler: HandlerName::from(handler),
        })
    }
}

impl Serialize for ParkedCursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is no [`ParkedCursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no place in the list of parked deliveries")]
pub struct InvalidCursor;

/// The parked deliveries of one handler that are parked for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParkedReason {
    /// The handler.
    pub handler: HandlerName,
    /// The reason.
    pub why: String,
    /// The number of deliveries.
    pub count: u64,
    /// Whether there may be more than `count`: only the oldest parked deliveries of the handler were
    /// counted.
    pub at_least: bool,
    /// When the oldest of their events was received.
    pub oldest: Timestamp,
}

/// The deliveries of one handler, counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HandlerSummary {
    /// The handler.
    pub handler: HandlerName,
    /// Whether the handler is configured: by the service that runs, or ran last.
    pub configured: bool,
    /// The number of unfinished deliveries.
    pub open: u64,
    /// The number of parked deliveries.
    pub parked: u64,
    /// When the event of the oldest open delivery was received.
    pub oldest_open: Option<Timestamp>,
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
    /// Whether the filter matches the event, apart from its subjects and its deliveries.
    pub(super) fn takes(&self, event: &EventSummary) -> bool {
        let times = (self.since, self.until);
        takes(self.name.as_ref(), times, &event.name, event.received_at)
            && self
                .endpoint
                .as_ref()
                .is_none_or(|endpoint| *endpoint == event.endpoint)
            && self
                .key
                .as_ref()
                .is_none_or(|key| event.key.as_ref() == Some(key))
    }

    /// Whether the filter has a condition on deliveries.
    pub(super) const fn is_about_deliveries(&self) -> bool {
        self.handler.is_some() || self.state.is_some() || self.why.is_some()
    }

    /// The range of ids of the events to look at, as [`id_range`] has it.
    pub(super) fn ids(&self) -> ([u8; 16], [u8; 16]) {
        let (mut from, mut to) = id_range(self.since, self.until);
        if let Some(after) = self.after {
            from = from.max(*after.as_bytes());
        }
        if let Some(before) = self.before {
            let below = u128::from_be_bytes(*before.as_bytes()).saturating_sub(1);
            to = to.min(below.to_be_bytes());
        }
        (from, to)
    }
}

/// The text to look for in reasons, which are compared in lower case. Databases know the lower case
/// of ASCII at least.
pub(super) fn needle(why: &str) -> String {
    why.to_ascii_lowercase()
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
