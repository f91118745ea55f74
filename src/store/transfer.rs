//! Transfers all events and deliveries from one store to another.
//!
//! **Invariant:** no event is transferred twice. A transfer that was interrupted continues when it
//! is run again. After a complete transfer, a later one continues behind its last event, whatever
//! the target has deleted since.
//!
//! **Invariant:** no service delivers from the target before the transfer is complete, since older
//! events may still be missing.
//!
//! **Invariant:** a superseded event stays superseded, even if the newer event is damaged and is
//! not transferred. For this reason the latest report of each topic is transferred apart from
//! events. What the source has lost is not transferred: a rebuilt embedded ledger knows nothing of
//! events that were damaged before.

use std::collections::HashSet;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Attempt, DeliveryState, StoreError, embedded::TransferSource};
use crate::event::{EventId, HandlerName, Notification, Topic};

/// The most events, or topics, in one step of a transfer.
const SLICE: usize = 500;

/// An event with its deliveries, as one store exports it to another.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// The event.
    pub notification: Notification,
    /// The deliveries, by handler name.
    pub deliveries: Vec<DeliverySnapshot>,
}

/// The state of a delivery. Stores exchange it, and the journal records it.
#[derive(Clone, Debug)]
pub struct DeliverySnapshot {
    /// The handler.
    pub handler: HandlerName,
    /// Whether the handler was ordered.
    pub ordered: bool,
    /// The state.
    pub state: DeliveryState,
    /// The number of ended attempts.
    pub attempts: u32,
    /// The number of replays.
    pub replays: u32,
    /// When the delivery is due; for a finished delivery, when it ended.
    pub at: Timestamp,
    /// When the first attempt began.
    pub since: Option<Timestamp>,
    /// The reason of the last replay.
    pub replay: Option<String>,
    /// Why the delivery was parked or skipped.
    pub why: Option<String>,
    /// The failed attempts, oldest first.
    pub failures: Vec<Attempt>,
}

impl DeliverySnapshot {
    /// Whether the delivery is finished.
    pub(crate) const fn is_over(&self) -> bool {
        !self.state.is_open()
    }
}

/// Consecutive events of the source.
#[derive(Clone, Debug)]
pub struct EventPage {
    /// The last event of the page, readable or not.
    pub last: Cursor,
    /// The readable events.
    pub stored: Vec<StoredEvent>,
    /// The damaged events, which are not transferred.
    pub damaged: Vec<EventId>,
}

/// The latest report of a topic. Events do not contain all of these times: the newest event may be
/// damaged.
#[derive(Clone, Debug)]
pub struct LatestReport {
    /// The topic.
    pub topic: Topic,
    /// The latest provider time.
    pub latest: Timestamp,
}

/// An event and its position in the source. The events before it never change, so a store with this
/// event at this position is the same store, grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The event's position in the source.
    pub place: i64,
    /// The event.
    pub event: EventId,
}

/// The target of a transfer.
pub trait TransferTarget {
    /// Begins a transfer. Services do not work on the target until [`end`](Self::end), even if this
    /// process dies first. Returns the cursors of earlier transfers, latest first.
    ///
    /// # Errors
    ///
    /// When the store cannot be written.
    fn begin(&mut self) -> Result<Vec<Cursor>, StoreError>;

    /// Completes the transfer up to `last`, and lets services work. `None` stands for an empty
    /// source.
    ///
    /// # Errors
    ///
    /// When the store cannot be written.
    fn end(&mut self, last: Option<Cursor>) -> Result<(), StoreError>;

    /// Adds events in order, all or none. Ignores events that the target has, and events of which
    /// the target has a duplicate. Returns the ids of the latter.
    ///
    /// # Errors
    ///
    /// When the store cannot be written.
    fn add(&mut self, events: &[StoredEvent]) -> Result<Vec<EventId>, StoreError>;

    /// The events with these ids that the target has, in the order of the ids.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    fn look(&mut self, ids: &[EventId]) -> Result<Vec<StoredEvent>, StoreError>;

    /// Stores the latest reports of topics, unless the target knows a later time.
    ///
    /// # Errors
    ///
    /// When the store cannot be written.
    fn add_topics(&mut self, topics: &[LatestReport]) -> Result<(), StoreError>;
}

/// The phase of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferPhase {
    /// Events are moved.
    Move,
    /// Both sides are compared.
    Compare,
}

/// The result of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferSummary {
    /// Whether an earlier transfer was complete, so that only newer events were moved.
    pub is_incremental: bool,
    /// The number of transferred events that the target has.
    pub events: u64,
    /// The number of their deliveries.
    pub deliveries: u64,
    /// The number of events that the target had a duplicate of, and that were not moved.
    pub duplicates: u64,
    /// The events that are damaged in the source, and were not moved.
    pub damaged: Vec<EventId>,
    /// A SHA-256 of everything that was moved, equal on both sides, in hexadecimal digits.
    pub checksum: String,
}

/// Moves everything, and then compares both sides. Calls `progress` with the phase, the number of
/// events so far, and the total number of events.
///
/// # Errors
///
/// When a store cannot be read or written, or when the two sides differ.
pub fn transfer(
    source: &TransferSource,
    target: &mut dyn TransferTarget,
    progress: &mut dyn FnMut(TransferPhase, u64, u64),
) -> Result<TransferSummary, StoreError> {
    let before = reached_before(source, &target.begin()?)?;
    let from = before.unwrap_or(i64::MIN);
    let total = source.count(from)?;
    // Topics come first, so that the target never has an event without knowing that it is
    // superseded.
    move_topics(source, target)?;
    let (mut done, mut damaged, mut duplicates) = (0, Vec::new(), HashSet::new());
    let mut last = None;
    walk(source, from, |slice| {
        duplicates.extend(target.add(&slice.stored)?);
        damaged.extend(&slice.damaged);
        last = Some(slice.last);
        done += slice.len();
        progress(TransferPhase::Move, done, total);
        Ok(())
    })?;
    let (mut done, mut comparison) = (0, Comparison::default());
    walk(source, from, |slice| {
        let moved = slice.stored.iter();
        let moved: Vec<_> = moved
            .filter(|stored| !duplicates.contains(&stored.notification.id))
            .collect();
        let ids: Vec<_> = moved.iter().map(|stored| stored.notification.id).collect();
        comparison.add(&moved, &target.look(&ids)?);
        done += slice.len();
        progress(TransferPhase::Compare, done, total);
        Ok(())
    })?;
    let transferred = comparison.finish(before.is_some(), duplicates.len() as u64, damaged)?;
    target.end(last)?;
    Ok(transferred)
}

/// The position up to which `source` was transferred before.
fn reached_before(
    source: &TransferSource,
    milestones: &[Cursor],
) -> Result<Option<i64>, StoreError> {
    for milestone in milestones {
        let there = source.read(milestone.place.saturating_sub(1), 1)?;
        if there.is_some_and(|slice| slice.last == *milestone) {
            return Ok(Some(milestone.place));
        }
    }
    Ok(None)
}

fn move_topics(source: &TransferSource, target: &mut dyn TransferTarget) -> Result<(), StoreError> {
    let mut last = String::new();
    loop {
        let topics = source.topics(&last, SLICE)?;
        let Some(reported) = topics.last() else {
            return Ok(());
        };
        target.add_topics(&topics)?;
        reported.topic.as_str().clone_into(&mut last);
    }
}

/// Passes all events of `source` behind `place` to `look`, page by page.
fn walk(
    source: &TransferSource,
    mut place: i64,
    mut look: impl FnMut(&EventPage) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    while let Some(slice) = source.read(place, SLICE)? {
        place = slice.last.place;
        look(&slice)?;
    }
    Ok(())
}

impl EventPage {
    fn len(&self) -> u64 {
        (self.stored.len() + self.damaged.len()) as u64
    }
}

/// Counts and compares events.
#[derive(Default)]
struct Comparison {
    events: u64,
    deliveries: u64,
    missing: u64,
    altered: u64,
    hash: Sha256,
}

impl Comparison {
    /// Compares `ours` with `theirs`, the ones that the target has, in the same order.
    fn add(&mut self, ours: &[&StoredEvent], theirs: &[StoredEvent]) {
        let mut theirs = theirs.iter().peekable();
        for stored in ours {
            let id = stored.notification.id;
            let ours = digest(stored);
            match theirs.next_if(|found| found.notification.id == id) {
                None => self.missing += 1,
                Some(found) if digest(found) != ours => self.altered += 1,
                Some(_) => {}
            }
            self.events += 1;
            self.deliveries += stored.deliveries.len() as u64;
            self.hash.update(ours);
        }
    }

    fn finish(
        self,
        is_incremental: bool,
        duplicates: u64,
        damaged: Vec<EventId>,
    ) -> Result<TransferSummary, StoreError> {
        let Self {
            events,
            deliveries,
            missing,
            altered,
            hash,
        } = self;
        if missing + altered > 0 {
            return Err(StoreError::TransferMismatch {
                events,
                missing,
                altered,
            });
        }
        let digits = hash.finalize();
        let digits = digits.iter().map(|byte| format!("{byte:02x}"));
        Ok(TransferSummary {
            is_incremental,
            events,
            deliveries,
            duplicates,
            damaged,
            checksum: digits.collect(),
        })
    }
}

/// A hash of an event and its deliveries that is equal in every store.
fn digest(stored: &StoredEvent) -> [u8; 32] {
    let mut hasher = SnapshotHasher::default();
    // Stores keep times to the microsecond.
    let micros = |time: Option<Timestamp>| time.map(Timestamp::as_microsecond);
    let event = &stored.notification;
    hasher.add(&format!(
        "{} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        event.id,
        event.endpoint,
        event.name,
        event.key,
        event.subjects,
        event.topics,
        event.dedupe,
        micros(event.occurred_at),
        micros(Some(event.received_at)),
    ));
    hasher.add(&event.body);
    for delivery in &stored.deliveries {
        // Each store decides which open deliveries are ready.
        let (state, since) = match delivery.is_over() {
            // The time of the first attempt of a finished delivery has no use, and not every store
            // keeps it.
            true => (delivery.state, None),
            false => (DeliveryState::Ready, delivery.since),
        };
        hasher.add(&format!(
            "{:?} {state:?} {} {} {:?} {:?} {:?} {:?}",
            delivery.handler,
            delivery.attempts,
            delivery.replays,
            micros(Some(delivery.at)),
            micros(since),
            delivery.replay,
            delivery.why,
        ));
        for failure in &delivery.failures {
            let started_at = micros(Some(failure.started_at));
            let took_ms = failure.took_ms;
            hasher.add(&format!("{started_at:?} {took_ms} {:?}", failure.why));
        }
    }
    hasher.0.finalize().into()
}

#[derive(Default)]
struct SnapshotHasher(Sha256);

impl SnapshotHasher {
    /// Prefixes the text with its length, so that no two sequences have the same bytes.
    fn add(&mut self, text: &(impl AsRef<[u8]> + ?Sized)) {
        let bytes = text.as_ref();
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}
