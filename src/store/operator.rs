//! What an operator sees of a store.

use jiff::Timestamp;
use serde::Serialize;

use crate::event::{EndpointName, EventId, EventName, HandlerName, Key, Notification, Pattern};

/// Which events to list.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Only those whose name this takes.
    pub name: Option<Pattern>,
    /// Only those received at or after this.
    pub since: Option<Timestamp>,
    /// Only those received before this.
    pub until: Option<Timestamp>,
    /// Only those of this partition key.
    pub key: Option<Key>,
    /// At most so many.
    pub limit: usize,
}

/// One line of a list of events. Holds nothing of the body.
#[derive(Clone, Debug, Serialize)]
pub struct EventSummary {
    /// Its id.
    pub id: EventId,
    /// Its name.
    pub name: EventName,
    /// Where it arrived.
    pub endpoint: EndpointName,
    /// The partition key.
    pub key: Option<Key>,
    /// When the provider says that it happened.
    pub occurred_at: Option<Timestamp>,
    /// When we received it.
    pub received_at: Timestamp,
    /// How many of its deliveries are not finished.
    pub open: u64,
    /// How many are parked.
    pub parked: u64,
}

/// One event, whole.
#[derive(Clone, Debug)]
pub struct EventDetails {
    /// What was received.
    pub notification: Notification,
    /// Who gets it, and how that stands.
    pub deliveries: Vec<DeliveryDetails>,
}

/// How one delivery stands.
#[derive(Clone, Debug, Serialize)]
pub struct DeliveryDetails {
    /// The handler.
    pub handler: HandlerName,
    /// How it stands.
    pub state: DeliveryState,
    /// The event whose delivery it waits for, where it is queued: both share an ordering key.
    pub waits_for: Option<EventId>,
    /// How many attempts have ended.
    pub attempts: u32,
    /// When it is tried next, if it is.
    pub due_at: Option<Timestamp>,
    /// Why it was replayed last, if it was.
    pub replay: Option<String>,
    /// Why it is parked or was skipped.
    pub why: Option<String>,
    /// The attempts that did not end well, oldest first.
    pub failures: Vec<Attempt>,
}

/// How a delivery stands. Tables have the number of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryState {
    /// To be attempted when it is due.
    Ready = 0,
    /// Behind another one that it shares an ordering key with.
    Queued = 1,
    /// Waits for a person.
    Parked = 2,
    /// The handler has it.
    Done = 3,
    /// The handler chose to do without it, or an operator did.
    Skipped = 4,
}

/// One attempt that did not end well.
#[derive(Clone, Debug, Serialize)]
pub struct Attempt {
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// What went wrong.
    pub why: String,
}

/// Which parked deliveries to list.
#[derive(Clone, Debug, Default)]
pub struct ParkedFilter {
    /// Only this handler's.
    pub handler: Option<HandlerName>,
    /// At most so many.
    pub limit: usize,
}

/// One parked delivery.
#[derive(Clone, Debug, Serialize)]
pub struct ParkedDelivery {
    /// The event.
    pub id: EventId,
    /// Its name.
    pub name: EventName,
    /// The handler that could not take it.
    pub handler: HandlerName,
    /// The partition key.
    pub key: Option<Key>,
    /// When the event was received.
    pub received_at: Timestamp,
    /// When the delivery was parked.
    pub parked_at: Timestamp,
    /// How many attempts there were.
    pub attempts: u32,
    /// Why it was given up.
    pub why: String,
}

/// Which deliveries to make again. All conditions hold together.
#[derive(Clone, Debug, Default)]
pub struct ReplaySelection {
    /// Only these events; all where empty.
    pub ids: Vec<EventId>,
    /// Only to these handlers, which get the events though their patterns do not take them; where
    /// empty, to each handler that has, or had, a delivery of the event.
    pub handlers: Vec<HandlerName>,
    /// Only events whose name this takes.
    pub name: Option<Pattern>,
    /// Only events received at or after this.
    pub since: Option<Timestamp>,
    /// Only events received before this.
    pub until: Option<Timestamp>,
    /// Only deliveries that are parked.
    pub parked_only: bool,
}

/// What a replay does, or did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplaySummary {
    /// Deliveries by handler.
    pub deliveries: Vec<(HandlerName, u64)>,
}

impl DeliveryState {
    /// The state of that number.
    pub(super) const fn numbered(number: i16) -> Self {
        match number {
            0 => Self::Ready,
            1 => Self::Queued,
            2 => Self::Parked,
            4 => Self::Skipped,
            _ => Self::Done,
        }
    }

    /// Whether it is to be attempted, now or later.
    pub(super) const fn is_open(self) -> bool {
        matches!(self, Self::Ready | Self::Queued)
    }
}

impl EventFilter {
    /// Whether it takes an event of that name, received then.
    pub(super) fn takes(&self, name: &EventName, received_at: Timestamp) -> bool {
        let times = (self.since, self.until);
        takes(self.name.as_ref(), times, name, received_at)
    }
}

impl ReplaySelection {
    /// Whether it takes an event of that name, received then.
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
    /// All of them together.
    pub fn total(&self) -> u64 {
        self.deliveries.iter().map(|(_, count)| count).sum()
    }
}

/// The longest reason that is kept, in bytes: handlers may answer with whole pages.
const REASON_BYTES: usize = 1024;

/// `text`, or as much of its beginning as is kept.
pub(super) fn shorten(text: &str) -> &str {
    text.get(..text.floor_char_boundary(REASON_BYTES))
        .unwrap_or(text)
}

/// The ids of events that arrived between two times, to the millisecond, as an open lower and a
/// closed upper end.
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
