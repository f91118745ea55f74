//! Recognizes duplicates of events.
//!
//! The [deduplication index](super::dedup_index) is a hint, and the journal decides. An index of
//! another time than the journal does no harm, for example after a running store was copied file by
//! file: an entry is ignored if it points behind the event in question, or at a record that has
//! changed. Entries that the index lacks are restored from the journal: from the watermark on, or
//! from the beginning if the event at the watermark is not the one that the index knows.
//!
//! # Damage
//!
//! If the index turns out to be damaged, an empty one replaces it at once, and the whole journal is
//! read again, as if the index had not existed at the start. The lookup that found the damage is
//! repeated afterwards.
//!
//! Rebuilding is done by the [indexer](super::indexer), and causes no deliveries. Meanwhile events
//! are accepted and stored, and deliveries that are in the [queue](super::queue) or the ledger go
//! on. New events wait until all earlier ones are in the index: their deliveries, their appearance
//! in operators' lists, and replays. This takes as long as a start without an index, depending on
//! the size of the journal: 300,000 events took 6 seconds on two busy cores. The log reports the
//! progress every few seconds.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    dedup_index::{DedupIndex, Found, IndexError, Slot},
    reader::{Directory, EventReader},
    record::Personal,
    segment::Position,
};
use crate::event::{DedupeKey, Notification};

/// The number of events after which the index is synced. After a loss of power, this many events
/// are read again, which takes a few seconds.
const UNSYNCED: u64 = 1 << 20;

/// Recognizes duplicates by the index and the journal.
pub(super) struct Deduplicator {
    index: DedupIndex,
    path: PathBuf,
    journal: Directory,
    event_reader: EventReader,
    /// The last event that was looked up. The index has all events up to it.
    last: Position,
    /// The position from which on the index may lack events, until a caller takes it.
    gap: Option<Position>,
    /// The number of events that were added since the last sync.
    unsynced: u64,
}

impl Deduplicator {
    /// Opens the index at `path` for `journal`. See [`take_gap`](Self::take_gap) for what it may
    /// lack.
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
            Ok(false) if watermark != Position::default() => {
                tracing::warn!("the deduplication index does not match the journal, and is rebuilt")
            }
            Ok(false) => {}
            Err(error) => deduplicator.reset(error)?,
        }
        Ok(deduplicator)
    }

    /// Replaces a damaged index by an empty one. The whole journal is to be read again.
    fn reset(&mut self, error: IndexError) -> io::Result<()> {
        self.index = replace(&self.path, error)?;
        self.last = Position::default();
        self.gap = Some(Position::default());
        self.unsynced = 0;
        Ok(())
    }

    /// The position from which on the journal must be read again, before any other lookup.
    pub(super) const fn take_gap(&mut self) -> Option<Position> {
        self.gap.take()
    }

    /// Whether there is a gap that was not taken.
    pub(super) const fn has_gap(&self) -> bool {
        self.gap.is_some()
    }

    /// Whether the index has the event at `position` of the journal.
    fn contains_event(&mut self, position: Position) -> Result<bool, IndexError> {
        let Ok(event) = self.event_reader.read_public(position) else {
            return Ok(false);
        };
        for key in &event.notification.dedupe {
            let event_reader = &mut self.event_reader;
            let found = self.index.find(key, |known| {
                known <= position && is_at(event_reader, key, known)
            })?;
            if matches!(found, Found::Known(_)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the event at `position` has a dedupe key of an earlier event. An event that has none
    /// is added to the index. The call can be repeated.
    ///
    /// The other keys of a duplicate are not added: the provider may not have signed them. An
    /// earlier event that cannot be read has no duplicates, since it cannot be delivered itself.
    ///
    /// # Errors
    ///
    /// When the index cannot be used. After damage there is a [gap](Self::has_gap).
    pub(super) fn is_duplicate(
        &mut self,
        position: Position,
        notification: &Notification,
    ) -> io::Result<bool> {
        self.look_up(position, notification).or_else(|error| {
            self.reset(error)?;
            Err(io::Error::other(
                "the deduplication index has to be rebuilt",
            ))
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
            // An entry with this position does not prove that no earlier event has the key: an
            // index that is newer than the journal has entries from before the journal lost its
            // end.
            let mut is_indexed = false;
            let found = self.index.find(key, |known| {
                is_indexed |= known == position;
                known < position && is_at(event_reader, key, known)
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

    /// Adds keys in their free slots.
    fn insert(
        &mut self,
        position: Position,
        unknown: Vec<(&DedupeKey, Slot)>,
    ) -> Result<(), IndexError> {
        let mut is_crowded = false;
        let mut last_added = None;
        for (key, mut slot) in unknown {
            if last_added == Some(slot)
                && let Found::Free(next) = self.index.find(key, |_| false)?
            {
                slot = next;
            }
            is_crowded |= self.index.add(key, slot, position)?;
            last_added = Some(slot);
        }
        self.unsynced += 1;
        if is_crowded {
            let first = self.journal.first_from(0)?;
            self.index.rebuild(Position::new(first.unwrap_or(0), 0))?;
        }
        Ok(())
    }

    /// Whether it is time to [`sync`](Self::sync).
    pub(super) const fn is_due(&self) -> bool {
        self.unsynced >= UNSYNCED
    }

    /// Syncs the index.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.index.sync(self.last)?;
        self.unsynced = 0;
        Ok(())
    }
}

/// Replaces a damaged index by an empty one.
fn replace(path: &Path, error: IndexError) -> io::Result<DedupIndex> {
    let problem = match error {
        IndexError::Damaged(problem) => problem,
        IndexError::Io(error) => return Err(error),
    };
    let index = DedupIndex::create(path)?;
    tracing::warn!("the deduplication index is rebuilt from the journal, since {problem}");
    Ok(index)
}

/// Whether the event at `position` has the dedupe key `key`. A damaged event has no duplicates,
/// since it cannot be delivered; an erased one has.
fn is_at(event_reader: &mut EventReader, key: &DedupeKey, position: Position) -> bool {
    event_reader.read_public(position).is_ok_and(|event| {
        event.personal != Personal::Damaged && event.notification.dedupe.contains(key)
    })
}
