//! Deletes old segments that are no longer needed. Before its first pass, the thread has the ledger
//! checked.
//!
//! A segment may also contain states of deliveries whose events are in older segments. If such an
//! older segment is kept, since one of its deliveries is parked, the states are written to the
//! journal again before the newer segment is deleted.

use std::{
    collections::HashMap,
    fs, io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use bytes::Bytes;
use jiff::SignedDuration;
use tokio::sync::oneshot;

use super::{
    Core, disk,
    journal::Journal,
    ledger::Ledger,
    reader::{Scan, ScanItem},
    record::{self, Content},
    segment::Position,
};
use crate::{
    event::Notification,
    store::{Follower, StoreError},
};

/// The interval of passes.
const PASS_INTERVAL: Duration = Duration::from_secs(60);

/// The most events that one transaction of the ledger deletes. A larger one would delay deliveries.
const TRANSACTION_EVENTS: usize = 200;

/// The thread that deletes segments.
pub(super) struct Retention {
    core: Arc<Core>,
    ledger: Arc<Ledger>,
    journal: Journal,
    follower: Follower,
    /// For each kept segment, the segment that has the states of its deliveries again.
    restated_in: HashMap<u32, u32>,
}

impl Retention {
    pub(super) fn new(core: Arc<Core>, ledger: Arc<Ledger>, journal: Journal) -> Self {
        let followers = core.health.followers();
        Self {
            follower: followers.background("retention", "deleting old segments"),
            restated_in: HashMap::new(),
            core,
            ledger,
            journal,
        }
    }

    /// Makes passes until the other end of `stop` is dropped.
    pub(super) fn run(mut self, stop: &Receiver<()>) {
        super::lower_priority();
        if let Err(error) = self.ledger.check() {
            tracing::warn!("{error}");
        }
        while stop.recv_timeout(PASS_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            self.follower.started();
            match self.pass(self.core.settings.retain) {
                Ok(_) => self.follower.progressed(),
                Err(error) if self.follower.failed(&error) => {
                    tracing::warn!("old segments of the journal are not deleted: {error}");
                }
                Err(_) => {}
            }
        }
    }

    /// Deletes the segments that may go, since they are older than `retain`, and returns their
    /// number.
    pub(super) fn pass(&mut self, retain: Duration) -> Result<usize, StoreError> {
        let path = self.core.directory.path();
        let numbers = self.core.directory.segments();
        let numbers = numbers.map_err(StoreError::reading(path))?;
        let through = self.ledger.watermark()?.through;
        let retain = SignedDuration::try_from(retain).unwrap_or(SignedDuration::MAX);
        let now = (self.core.context.clock)();
        let (mut deleted, mut kept) = (0, Vec::new());
        for pair in numbers.windows(2) {
            let [number, next] = *pair else { continue };
            let is_read = through.segment() > number;
            let is_written = self.core.progress.end().segment() > number;
            // All of a segment is older than the next segment.
            let header = self.core.directory.header(next)?;
            let is_old = header.is_some_and(|next| now.duration_since(next.begun_at) >= retain);
            if is_read && is_written && is_old && self.delete(number, &kept)? {
                deleted += 1;
            } else {
                kept.push(number);
            }
        }
        Ok(deleted)
    }

    /// Deletes segment `number` unless it is needed. The segments in `kept` are older.
    fn delete(&mut self, number: u32, kept: &[u32]) -> Result<bool, StoreError> {
        let all = positions_of(number);
        if self.is_needed(all)? || !self.delete_from_ledger(number)? || self.is_needed(all)? {
            return Ok(false);
        }
        for kept in kept {
            if !self.restate(*kept, number)? {
                return Ok(false);
            }
        }
        // The ledger goes first: after a crash in between, a later pass deletes the file.
        let path = self.core.directory.segment(number);
        fs::remove_file(&path).map_err(StoreError::writing(&path))?;
        disk::sync_dir(self.core.directory.path()).map_err(StoreError::writing(&path))?;
        self.ledger
            .run_blocking("closing a segment", move |database| {
                database.close_segment(number);
                Ok(())
            })?;
        self.restated_in.remove(&number);
        tracing::info!(
            segment = number,
            "an old segment of the journal was deleted"
        );
        Ok(true)
    }

    /// Writes the states of the deliveries of segment `kept` behind segment `deleted`. Returns
    /// `false` if they are unknown, since the ledger is being rebuilt.
    fn restate(&mut self, kept: u32, deleted: u32) -> Result<bool, StoreError> {
        if self
            .restated_in
            .get(&kept)
            .is_some_and(|restated_in| *restated_in > deleted)
        {
            return Ok(true);
        }
        let records = self
            .ledger
            .run_blocking("reading deliveries", move |database| {
                let (mut records, (from, to)) = (Vec::new(), positions_of(kept));
                if database.watermark()?.through >= to {
                    database.inventory(from, to, |record| records.push(record))?;
                }
                Ok(records)
            })?;
        if records.is_empty() {
            return Ok(false);
        }
        let mut answers: Vec<_> = records
            .into_iter()
            .map(|record| self.journal.put_durably(record))
            .collect();
        // Earlier records are on stable storage when the last one is.
        let answer = answers.pop().map(oneshot::Receiver::blocking_recv);
        if !matches!(answer, Some(Ok(Ok(())))) {
            return Err(StoreError::Closed);
        }
        self.restated_in
            .insert(kept, self.core.progress.end().segment());
        Ok(true)
    }

    fn is_needed(&self, (from, to): (Position, Position)) -> Result<bool, StoreError> {
        self.ledger
            .run_blocking("reading the ledger", move |database| {
                database.is_needed(from, to)
            })
    }

    /// Deletes what the events of segment `number` were looked up by.
    fn delete_terms(&self, number: u32) -> Result<(), StoreError> {
        let delete = move |database: &mut super::LedgerDatabase| database.delete_terms(number);
        while self.ledger.run_blocking("deleting old events", delete)? {}
        Ok(())
    }

    /// Deletes the content of segment `number` from the ledger. Returns `false` if the segment is
    /// needed after all.
    fn delete_from_ledger(&self, number: u32) -> Result<bool, StoreError> {
        let path = self.core.directory.segment(number);
        let mut from = Position::new(number, 0);
        let mut scan =
            Scan::open(&self.core.directory, from).map_err(StoreError::reading(&path))?;
        loop {
            let slice = read_slice(&mut scan).map_err(StoreError::reading(&path))?;
            let done = slice.is_empty();
            let to = if done {
                Position::new(number + 1, 0)
            } else {
                scan.position()
            };
            let is_deleted = self
                .ledger
                .run_blocking("deleting old events", move |database| {
                    database.delete_events((from, to), &slice)
                })?;
            if !is_deleted {
                return Ok(false);
            }
            if done {
                break;
            }
            from = to;
        }
        self.delete_terms(number)?;
        Ok(true)
    }
}

/// The range of positions in a segment.
const fn positions_of(number: u32) -> (Position, Position) {
    (Position::new(number, 0), Position::new(number + 1, 0))
}

/// The next notifications, without their bodies. Damage is skipped: the indexer has reported it.
fn read_slice(scan: &mut Scan) -> io::Result<Vec<Notification>> {
    let mut slice = Vec::new();
    while slice.len() < TRANSACTION_EVENTS
        && let Some(step) = scan.next()?
    {
        let ScanItem::Record { position, bytes } = step else {
            continue;
        };
        if let Some(Content::Event(event)) = record::content(&bytes, position) {
            slice.push(Notification {
                body: Bytes::new(),
                ..Arc::unwrap_or_clone(event.notification)
            });
        }
    }
    Ok(slice)
}
