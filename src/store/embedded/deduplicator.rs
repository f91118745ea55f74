//! Tells copies of events from events.
//!
//! The table is a hint, and the journal decides. Of another moment than the journal, as in a store that
//! was copied file by file while a service ran, the table does no harm: an entry that points behind the
//! event in question, or at a record that is not what it was, is passed over. What it lacks is learnt
//! from the journal: from its mark on, or from the beginning if the event at the mark is not the one
//! that the table knows.
//!
//! # Damage
//!
//! A table that turns out to be [damaged](super::dedup_index) is replaced by an empty one at once, whether it is
//! being opened or in use, and all of the journal is learnt again, just as if the table had been missing at
//! the start. The question that came upon the damage is asked again when that is done.
//!
//! To learn is the [indexer](super::indexer)'s work, and makes no deliveries. Meanwhile events are accepted and
//! stored as ever, and what is in the [queue](super::queue) or in the ledger already is delivered and tried
//! again. What waits is what came since: these events are delivered, and shown to operators, when all before
//! them is learnt; and replays, which may wait as long. That takes as long as a start without a table, by the
//! size of the journal: 300,000 events took 6 seconds on two busy cores. The log says every few seconds how
//! far it is.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    dedup_index::{DedupIndex, Found, IndexError, Slot},
    reader::{Directory, EventReader},
    record::{Event, Personal},
    segment::Position,
};
use crate::event::{DedupeKey, Notification};

/// How many events may be learnt before what was learnt is put on stable storage: after the loss of
/// power so many are read again, which takes a few seconds.
const UNSYNCED: u64 = 1 << 20;

/// What is known of the events so far.
pub(super) struct Deduplicator {
    index: DedupIndex,
    path: PathBuf,
    journal: Directory,
    event_reader: EventReader,
    /// The last event that was asked about. The table has all up to it.
    last: Position,
    /// From where on the table may lack what is in the journal, until somebody has set out to learn that.
    gap: Option<Position>,
    /// Events learnt since the last sync.
    unsynced: u64,
}

impl Deduplicator {
    /// Opens the table at `path` over `journal`. What it may lack is its [gap](Self::take_gap).
    pub(super) fn open(path: &Path, journal: &Directory) -> io::Result<Self> {
        let index = match DedupIndex::open(path) {
            Ok(Some(index)) => index,
            Ok(None) => DedupIndex::create(path)?,
            Err(error) => replace(path, error)?,
        };
        let watermark = index.watermark();
        let mut deduplicator = Self {
            index,
            path: path.to_owned(),
            journal: journal.clone(),
            event_reader: EventReader::new(journal.clone()),
            last: Position::default(),
            gap: Some(Position::default()),
            unsynced: 0,
        };
        match deduplicator.contains_event(watermark) {
            Ok(true) => (deduplicator.last, deduplicator.gap) = (watermark, Some(watermark)),
            Ok(false) if watermark != Position::default() => tracing::warn!(
                "the table of copies is of another moment than the journal; it is learnt again"
            ),
            Ok(false) => {}
            Err(error) => deduplicator.reset(error)?,
        }
        Ok(deduplicator)
    }

    /// Puts an empty table in place of a damaged one, which leaves all of the journal to be learnt again.
    fn reset(&mut self, error: IndexError) -> io::Result<()> {
        self.index = replace(&self.path, error)?;
        self.last = Position::default();
        self.gap = Some(Position::default());
        self.unsynced = 0;
        Ok(())
    }

    /// From where on the journal is to be read again, to learn what the table may lack, before anything
    /// else is asked.
    pub(super) const fn take_gap(&mut self) -> Option<Position> {
        self.gap.take()
    }

    /// Whether there is a gap that nobody has taken.
    pub(super) const fn has_gap(&self) -> bool {
        self.gap.is_some()
    }

    /// Whether the event at `position` of the journal is in the table.
    fn contains_event(&mut self, position: Position) -> Result<bool, IndexError> {
        let Ok(event) = self.event_reader.read_public(position) else {
            return Ok(false);
        };
        for key in &event.notification.dedupe {
            let event_reader = &mut self.event_reader;
            let found = self.index.find(key, |known| {
                known <= position
                    && event_reader
                        .read_public(known)
                        .is_ok_and(|event| is_of(&event, key))
            })?;
            if matches!(found, Found::Known(_)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the event at `position` has any dedupe key of an earlier one. If it has none, it is
    /// learnt; asking again changes nothing.
    ///
    /// A copy's other keys are not learnt: one of them may come from a part of the request that
    /// nobody has signed. An earlier event that cannot be read has no copies, since it can no
    /// longer be delivered itself.
    ///
    /// # Errors
    ///
    /// When the table cannot be used. If it was damaged, there is a [gap](Self::has_gap) now.
    pub(super) fn is_duplicate(
        &mut self,
        position: Position,
        notification: &Notification,
    ) -> io::Result<bool> {
        self.look_up(position, notification).or_else(|error| {
            self.reset(error)?;
            Err(io::Error::other("the table of copies has to be learnt"))
        })
    }

    fn look_up(
        &mut self,
        position: Position,
        notification: &Notification,
    ) -> Result<bool, IndexError> {
        let mut unknown = Vec::with_capacity(notification.dedupe.len());
        for key in &notification.dedupe {
            let event_reader = &mut self.event_reader;
            // An entry for this very position is no proof that there is no earlier event: a table that
            // is ahead of the journal has one from before the journal lost its end.
            let mut is_indexed = false;
            let found = self.index.find(key, |known| {
                is_indexed |= known == position;
                known < position
                    && event_reader
                        .read_public(known)
                        .is_ok_and(|event| is_of(&event, key))
            })?;
            match found {
                Found::Known(_) => {
                    self.last = position;
                    return Ok(true);
                }
                Found::Free(_) if is_indexed => {}
                Found::Free(slot) => unknown.push((key, slot)),
            }
        }
        if !unknown.is_empty() {
            self.insert(position, unknown)?;
        }
        self.last = position;
        Ok(false)
    }

    /// Adds keys with the slots that were free for them.
    fn insert(
        &mut self,
        position: Position,
        unknown: Vec<(&DedupeKey, Slot)>,
    ) -> Result<(), IndexError> {
        let mut is_crowded = false;
        let mut taken = None;
        for (key, mut slot) in unknown {
            if taken == Some(slot)
                && let Found::Free(next) = self.index.find(key, |_| false)?
            {
                slot = next;
            }
            is_crowded |= self.index.add(key, slot, position)?;
            taken = Some(slot);
        }
        self.unsynced += 1;
        if is_crowded {
            let first = self.journal.segments()?.first().copied();
            self.index.rebuild(Position::new(first.unwrap_or(0), 0))?;
        }
        Ok(())
    }

    /// Whether it is time for [`sync`](Self::sync).
    pub(super) const fn is_due(&self) -> bool {
        self.unsynced >= UNSYNCED
    }

    /// Returns when all that was learnt would survive the loss of power.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.index.sync(self.last)?;
        self.unsynced = 0;
        Ok(())
    }
}

/// Puts an empty table in place of one that is damaged.
fn replace(path: &Path, error: IndexError) -> io::Result<DedupIndex> {
    let problem = match error {
        IndexError::Damaged(problem) => problem,
        IndexError::Io(error) => return Err(error),
    };
    let index = DedupIndex::create(path)?;
    tracing::warn!("the table of copies is made anew from the journal, since {problem}");
    Ok(index)
}

/// Whether `event` is known by `key`. One that is damaged is known by none, since it can no longer be
/// delivered; one that was erased on purpose is.
fn is_of(event: &Event, key: &DedupeKey) -> bool {
    event.personal != Personal::Damaged && event.notification.dedupe.contains(key)
}
