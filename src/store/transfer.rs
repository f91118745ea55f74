//! Moving events from one store to another, with all that is known of them.
//!
//! **Invariant:** what was moved is not moved again: a transfer that was cut short is taken up by
//! running it again, and one that has ended is gone on with behind its last event, whatever the
//! target has deleted of it since.
//!
//! **Invariant:** nothing is delivered out of a target before all of the source is there: what is
//! older may still be to come.
//!
//! **Invariant:** an event that another one has superseded stays superseded, though that one is
//! damaged and stays behind: when topics were reported last is moved apart from events. What the
//! source itself has forgotten is not moved: an embedded ledger that was made anew knows nothing of
//! events that were damaged before.

use std::collections::HashSet;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Attempt, DeliveryState, StoreError, embedded::TransferSource};
use crate::event::{EventId, HandlerName, Notification, Topic};

/// The most events, or topics, that are moved at once.
const SLICE: usize = 500;

/// An event with its deliveries, as one store gives it to another.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// The event.
    pub notification: Notification,
    /// Who gets it, and how that stands; by the names of the handlers.
    pub deliveries: Vec<DeliverySnapshot>,
}

/// A delivery, as one store gives it to another.
#[derive(Clone, Debug)]
pub struct DeliverySnapshot {
    /// The handler.
    pub handler: HandlerName,
    /// Whether order held for it.
    pub ordered: bool,
    /// How it stands.
    pub state: DeliveryState,
    /// How many attempts have ended.
    pub attempts: u32,
    /// How often it was replayed.
    pub replays: u32,
    /// When it is due, or, where it is no longer open, when it ended.
    pub at: Timestamp,
    /// When its first attempt began.
    pub since: Option<Timestamp>,
    /// Why it was replayed last.
    pub replay: Option<String>,
    /// Why it was parked or skipped.
    pub why: Option<String>,
    /// The attempts that did not end well, oldest first.
    pub failures: Vec<Attempt>,
}

impl DeliverySnapshot {
    /// Whether nothing more is attempted.
    pub(crate) const fn is_over(&self) -> bool {
        !self.state.is_open()
    }
}

/// Events that were read together.
#[derive(Clone, Debug)]
pub struct EventPage {
    /// The last one, whether it could be read or not.
    pub last: Cursor,
    /// Those that could be read.
    pub stored: Vec<StoredEvent>,
    /// Those that are damaged. They stay behind.
    pub damaged: Vec<EventId>,
}

/// When a topic was reported last. Events do not say it all: the newest one may be damaged.
#[derive(Clone, Debug)]
pub struct LatestReport {
    /// The topic.
    pub topic: Topic,
    /// The latest provider time.
    pub latest: Timestamp,
}

/// An event, and where it stands in the store that it came from. What comes before it there never
/// changes, so a store that has this event at this place is the same one, grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Its place in the store that it came from.
    pub place: i64,
    /// The event.
    pub event: EventId,
}

/// A store that events are moved into.
pub trait TransferTarget {
    /// Begins to move a store in, and keeps services from working until [`end`](Self::end), though
    /// this process should end before. Returns how far stores were moved in before, the latest
    /// first.
    ///
    /// # Errors
    ///
    /// When the store cannot be written.
    fn begin(&mut self) -> Result<Vec<Cursor>, StoreError>;

    /// Everything was moved, up to `last`, and services may work. `None` where there was nothing.
    ///
    /// # Errors
    ///
    /// When the store cannot be written.
    fn end(&mut self, last: Option<Cursor>) -> Result<(), StoreError>;

    /// Adds events in their order, all or none. Passes over those that are there, and over those of
    /// which there is a copy; returns the ids of the latter.
    ///
    /// # Errors
    ///
    /// When the store cannot be written.
    fn add(&mut self, events: &[StoredEvent]) -> Result<Vec<EventId>, StoreError>;

    /// The events of these ids that are there, in the order of the ids.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    fn look(&mut self, ids: &[EventId]) -> Result<Vec<StoredEvent>, StoreError>;

    /// Takes in when topics were reported last, where it does not know of a later time.
    ///
    /// # Errors
    ///
    /// When the store cannot be written.
    fn add_topics(&mut self, topics: &[LatestReport]) -> Result<(), StoreError>;
}

/// What a transfer is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferPhase {
    /// Moving events.
    Move,
    /// Comparing what was moved.
    Compare,
}

/// What a transfer came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferSummary {
    /// Whether the source was moved before, and only what is new there was to be moved.
    pub is_incremental: bool,
    /// Events that are in the target now.
    pub events: u64,
    /// Their deliveries.
    pub deliveries: u64,
    /// Events of which the target had a copy, and which were not moved.
    pub duplicates: u64,
    /// Events that are damaged in the source, and were not moved.
    pub damaged: Vec<EventId>,
    /// A SHA-256 of all that was moved, the same on both sides, in hexadecimal digits.
    pub checksum: String,
}

/// Moves everything, and compares both sides after that. Calls `progress` with the number of events
/// that were moved, or compared, so far, and with their number.
///
/// # Errors
///
/// When one of the stores cannot be read or written, or the two sides differ.
pub fn transfer(
    source: &TransferSource,
    target: &mut dyn TransferTarget,
    progress: &mut dyn FnMut(TransferPhase, u64, u64),
) -> Result<TransferSummary, StoreError> {
    let before = reached_before(source, &target.begin()?)?;
    let from = before.unwrap_or(i64::MIN);
    let total = source.count(from)?;
    // First, so that no event is ever there that does not know itself superseded.
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

/// Up to which place `source` was moved before.
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

/// Gives all events of `source` behind `place` to `look`, in slices.
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

/// Counts events and compares them.
#[derive(Default)]
struct Comparison {
    events: u64,
    deliveries: u64,
    missing: u64,
    altered: u64,
    hash: Sha256,
}

impl Comparison {
    /// Compares `ours` with those of them that are there, in the same order.
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

/// A hash of an event and its deliveries that is the same in every store.
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
        event.subject,
        event.topics,
        event.dedupe,
        micros(event.occurred_at),
        micros(Some(event.received_at)),
    ));
    hasher.add(&event.body);
    for delivery in &stored.deliveries {
        // Which of the open ones are ready is for each store to say.
        let (state, since) = match delivery.is_over() {
            // Of no use to anybody any more, and not kept everywhere.
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
    /// With its length, so that nothing can stand for two things.
    fn add(&mut self, text: &(impl AsRef<[u8]> + ?Sized)) {
        let bytes = text.as_ref();
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}
