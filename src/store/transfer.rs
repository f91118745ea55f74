//! Moving events from one store to another, with all that is known of them.
//!
//! **Invariant:** what was moved is not moved again: a transfer that was cut short is taken up by
//! running it again.

use std::collections::HashSet;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Attempt, DeliveryState, StoreError};
use crate::event::{EventId, HandlerName, Notification};

/// The most events that are moved at once.
const SLICE: usize = 500;

/// An event with its deliveries, as one store gives it to another.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Where it stands in its store: ascends in the order in which events were stored.
    pub place: i64,
    /// The event.
    pub notification: Notification,
    /// Who gets it, and how that stands; by the names of the handlers.
    pub deliveries: Vec<StoredDelivery>,
}

/// A delivery, as one store gives it to another.
#[derive(Clone, Debug)]
pub struct StoredDelivery {
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

/// A store that events are moved out of. Nobody else has it meanwhile.
pub trait Source {
    /// How many events there are.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    fn count(&self) -> Result<u64, StoreError>;

    /// Some of the events behind `place`, in the order in which they were stored; `None` when there
    /// are none.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    fn read(&mut self, place: i64, at_most: usize) -> Result<Option<Slice>, StoreError>;
}

/// Events that were read together.
#[derive(Clone, Debug)]
pub struct Slice {
    /// The place of the last one, whether it could be read or not.
    pub reached: i64,
    /// Those that could be read.
    pub stored: Vec<Stored>,
    /// How many are damaged. They stay behind.
    pub damaged: u64,
}

/// A store that events are moved into.
pub trait Target {
    /// Adds events in their order, all or none. Passes over those that are there, and over those of
    /// which there is a copy; returns the ids of the latter.
    ///
    /// # Errors
    ///
    /// When the store cannot be written.
    fn add(&mut self, events: &[Stored]) -> Result<Vec<EventId>, StoreError>;

    /// The events of these ids that are there, in the order of the ids.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    fn look(&mut self, ids: &[EventId]) -> Result<Vec<Stored>, StoreError>;
}

/// What a transfer came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// Events that are in the target now.
    pub events: u64,
    /// Their deliveries.
    pub deliveries: u64,
    /// Events of which the target had a copy, and which were not moved.
    pub copies: u64,
    /// Events that are damaged in the source, and were not moved.
    pub damaged: u64,
    /// A SHA-256 of all that was moved, the same on both sides, in hexadecimal digits.
    pub checksum: String,
}

/// Moves everything, and compares both sides after that. Calls `progress` with the number of events
/// that were moved or compared so far, and with twice their number.
///
/// # Errors
///
/// When one of the stores cannot be read or written, or the two sides differ.
pub fn transfer(
    source: &mut dyn Source,
    target: &mut dyn Target,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Transferred, StoreError> {
    let total = source.count()?;
    let mut done = 0;
    let mut damaged = 0;
    let mut copies = HashSet::new();
    walk(source, |slice| {
        copies.extend(target.add(&slice.stored)?);
        damaged += slice.damaged;
        done += slice.len();
        progress(done, 2 * total);
        Ok(())
    })?;
    let (mut ours, mut theirs) = (Sum::default(), Sum::default());
    walk(source, |slice| {
        let moved = slice.stored.iter();
        let moved: Vec<_> = moved
            .filter(|stored| !copies.contains(&stored.notification.id))
            .collect();
        let ids: Vec<_> = moved.iter().map(|stored| stored.notification.id).collect();
        moved.iter().for_each(|stored| ours.add(stored));
        target
            .look(&ids)?
            .iter()
            .for_each(|stored| theirs.add(stored));
        done += slice.len();
        progress(done, 2 * total);
        Ok(())
    })?;
    let (ours, theirs) = (ours.finish(), theirs.finish());
    if ours != theirs {
        return Err(StoreError::Different(format!(
            "{} events and {} deliveries with checksum {} are {} events and {} deliveries with \
             checksum {} there",
            ours.0, ours.1, ours.2, theirs.0, theirs.1, theirs.2
        )));
    }
    let (events, deliveries, checksum) = ours;
    Ok(Transferred {
        events,
        deliveries,
        copies: copies.len() as u64,
        damaged,
        checksum,
    })
}

/// Gives all events of `source` to `look`, in slices.
fn walk(
    source: &mut dyn Source,
    mut look: impl FnMut(&Slice) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut place = i64::MIN;
    while let Some(slice) = source.read(place, SLICE)? {
        place = slice.reached;
        look(&slice)?;
    }
    Ok(())
}

impl Slice {
    fn len(&self) -> u64 {
        self.stored.len() as u64 + self.damaged
    }
}

/// Counts and sums events up.
#[derive(Default)]
struct Sum {
    events: u64,
    deliveries: u64,
    hash: Sha256,
}

impl Sum {
    fn add(&mut self, stored: &Stored) {
        self.events += 1;
        self.deliveries += stored.deliveries.len() as u64;
        // Stores keep times to the microsecond.
        let micros = |time: Option<Timestamp>| time.map(Timestamp::as_microsecond);
        let event = &stored.notification;
        self.note(&format!(
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
        self.note(&event.body);
        for delivery in &stored.deliveries {
            // Which of the open ones of a key is ready is for each store to say.
            let (state, since) = match delivery.state {
                DeliveryState::Ready | DeliveryState::Queued => {
                    (DeliveryState::Ready, delivery.since)
                }
                // Of no use to anybody any more, and not kept everywhere.
                state => (state, None),
            };
            self.note(&format!(
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
                self.note(&format!(
                    "{started_at:?} {} {:?}",
                    failure.took_ms, failure.why
                ));
            }
        }
    }

    /// With its length, so that nothing can stand for two things.
    fn note(&mut self, text: &(impl AsRef<[u8]> + ?Sized)) {
        let bytes = text.as_ref();
        self.hash.update((bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
    }

    fn finish(self) -> (u64, u64, String) {
        let digest = self.hash.finalize();
        let digits = digest.iter().map(|byte| format!("{byte:02x}"));
        (self.events, self.deliveries, digits.collect())
    }
}
