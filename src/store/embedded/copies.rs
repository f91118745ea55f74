//! Tells copies of events from events.

use std::{io, path::Path};

use super::{
    reader::{Bodies, Directory},
    seen::{Found, Seen, Slot},
    segment::Position,
};
use crate::event::{DedupeKey, Notification};

/// How many events may be learnt before what was learnt is put on stable storage: after the loss of
/// power so many are read again, which takes a few seconds.
const UNSYNCED: u64 = 1 << 20;

/// What is known of the events so far.
pub(super) struct Copies {
    seen: Seen,
    journal: Directory,
    bodies: Bodies,
    /// Events learnt since the last sync.
    unsynced: u64,
}

impl Copies {
    /// Opens the table at `path` over `journal`. Also says whether it is new.
    pub(super) fn open(path: &Path, journal: &Directory) -> io::Result<(Self, bool)> {
        let (seen, is_new) = Seen::open(path)?;
        let copies = Self {
            seen,
            journal: journal.clone(),
            bodies: Bodies::new(journal.clone()),
            unsynced: 0,
        };
        Ok((copies, is_new))
    }

    /// Whether the event at `position` has any dedupe key of an earlier one. If it has none, it is
    /// learnt; asking again changes nothing.
    ///
    /// A copy's other keys are not learnt: one of them may come from a part of the request that
    /// nobody has signed. An earlier event that cannot be read has no copies, since it can no
    /// longer be delivered itself.
    pub(super) fn is_copy(
        &mut self,
        position: Position,
        notification: &Notification,
    ) -> io::Result<bool> {
        let mut unknown = Vec::with_capacity(notification.dedupe.len());
        for key in &notification.dedupe {
            let bodies = &mut self.bodies;
            let found = self.seen.find(key, |known| {
                let is_key_of = |event: Notification| event.dedupe.contains(key);
                known == position || (known < position && bodies.read(known).is_ok_and(is_key_of))
            })?;
            match found {
                Found::Known(known) if known != position => return Ok(true),
                Found::Known(_) => {}
                Found::Free(slot) => unknown.push((key, slot)),
            }
        }
        if !unknown.is_empty() {
            self.learn(position, unknown)?;
        }
        Ok(false)
    }

    /// Adds keys with the slots that were free for them.
    fn learn(&mut self, position: Position, unknown: Vec<(&DedupeKey, Slot)>) -> io::Result<()> {
        let mut is_crowded = false;
        let mut taken = None;
        for (key, mut slot) in unknown {
            if taken == Some(slot)
                && let Found::Free(next) = self.seen.find(key, |_| false)?
            {
                slot = next;
            }
            is_crowded |= self.seen.add(key, slot, position)?;
            taken = Some(slot);
        }
        self.unsynced += 1;
        if is_crowded {
            let first = self.journal.segments()?.first().copied();
            self.seen.renew(Position::new(first.unwrap_or(0), 0))?;
        }
        Ok(())
    }

    /// Whether it is time for [`sync`](Self::sync).
    pub(super) const fn is_due(&self) -> bool {
        self.unsynced >= UNSYNCED
    }

    /// Returns when all that was learnt would survive the loss of power.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.seen.sync()?;
        self.unsynced = 0;
        Ok(())
    }
}
