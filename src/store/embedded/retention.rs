//! Deletes segments that are old enough and of which nothing is needed any more. Before the first look,
//! its thread has the ledger checked.
//!
//! A segment also says what became of deliveries of events in older ones. Where one of those is kept, for
//! something parked in it, the journal is told all of that again before.

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
use jiff::{SignedDuration, Timestamp};

use tokio::sync::oneshot;

use super::{
    disk,
    journal::JournalSender,
    ledger::Ledger,
    progress::Progress,
    reader::{Directory, Scan, ScanItem},
    record::{self, Content},
    segment::Position,
};
use crate::{
    event::Notification,
    store::{Follower, StoreError},
};

/// How often to look for what may go.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The most events that are forgotten in one transaction of the ledger: a large one would hold
/// up deliveries.
const SLICE: usize = 200;

/// The thread that deletes.
pub(super) struct Retention {
    pub(super) directory: Directory,
    pub(super) ledger: Arc<Ledger>,
    pub(super) progress: Arc<Progress>,
    pub(super) retain: Duration,
    pub(super) follower: Follower,
    pub(super) clock: fn() -> Timestamp,
    pub(super) journal_sender: JournalSender,
    /// In which segment the journal has been told again what became of the deliveries of a kept one.
    pub(super) restated_in: HashMap<u32, u32>,
}

impl Retention {
    /// Looks now and then, until the other end of `stop` is dropped.
    pub(super) fn run(mut self, stop: &Receiver<()>) {
        super::lower_priority();
        if let Err(error) = self.ledger.check() {
            tracing::warn!("{error}");
        }
        while stop.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            self.follower.started();
            match self.pass() {
                Ok(_) => self.follower.progressed(),
                Err(error) if self.follower.failed(&error) => {
                    tracing::warn!("old segments of the journal are not deleted: {error}");
                }
                Err(_) => {}
            }
        }
    }

    /// Deletes what may go, and says how many segments that was.
    pub(super) fn pass(&mut self) -> Result<usize, StoreError> {
        let path = self.directory.path();
        let numbers = self.directory.segments();
        let numbers = numbers.map_err(StoreError::reading(path))?;
        let through = self
            .ledger
            .run_blocking("reading the ledger", |database| database.watermark())?
            .through;
        let retain = SignedDuration::try_from(self.retain).unwrap_or(SignedDuration::MAX);
        let now = (self.clock)();
        let (mut deleted, mut kept) = (0, Vec::new());
        for pair in numbers.windows(2) {
            let [number, next] = *pair else { continue };
            let is_read = through.segment() > number;
            let is_written = self.progress.end().segment() > number;
            // Everything in a segment is older than the one after it.
            let header = self.directory.header(next)?;
            let is_old = header.is_some_and(|next| now.duration_since(next.begun_at) >= retain);
            if is_read && is_written && is_old && self.delete(number, &kept)? {
                deleted += 1;
            } else {
                kept.push(number);
            }
        }
        Ok(deleted)
    }

    /// Deletes segment `number`, unless it is needed; those in `kept` are older.
    fn delete(&mut self, number: u32, kept: &[u32]) -> Result<bool, StoreError> {
        let all = of(number);
        if self.is_needed(all)? || !self.forget(number)? || self.is_needed(all)? {
            return Ok(false);
        }
        for kept in kept {
            if !self.restate(*kept, number)? {
                return Ok(false);
            }
        }
        // The ledger first: should the power fail now, the file is found and deleted later.
        let path = self.directory.segment(number);
        fs::remove_file(&path).map_err(StoreError::writing(&path))?;
        disk::sync_dir(self.directory.path()).map_err(StoreError::writing(&path))?;
        self.ledger
            .run_blocking("closing a segment", move |database| {
                database.forget_segment(number);
                Ok(())
            })?;
        self.restated_in.remove(&number);
        tracing::info!(
            segment = number,
            "an old segment of the journal was deleted"
        );
        Ok(true)
    }

    /// Has the journal say behind segment `deleted` what became of the deliveries of the events in `kept`.
    /// `false` when that is not known: the ledger is made anew.
    fn restate(&mut self, kept: u32, deleted: u32) -> Result<bool, StoreError> {
        if self
            .restated_in
            .get(&kept)
            .is_some_and(|restated_in| *restated_in > deleted)
        {
            return Ok(true);
        }
        let restated_in = self
            .ledger
            .run_blocking("reading deliveries", move |database| {
                let (mut records, (from, to)) = (Vec::new(), of(kept));
                if database.watermark()?.through >= to {
                    database.inventory(from, to, |record| records.push(record))?;
                }
                Ok(records)
            })?;
        if restated_in.is_empty() {
            return Ok(false);
        }
        let mut answers: Vec<_> = restated_in
            .into_iter()
            .map(|record| self.journal_sender.put_durably(record))
            .collect();
        // All before the last are on stable storage when that is.
        let answer = answers.pop().map(oneshot::Receiver::blocking_recv);
        if !matches!(answer, Some(Ok(Ok(())))) {
            return Err(StoreError::Closed);
        }
        self.restated_in.insert(kept, self.progress.end().segment());
        Ok(true)
    }

    fn is_needed(&self, (from, to): (Position, Position)) -> Result<bool, StoreError> {
        self.ledger
            .run_blocking("reading the ledger", move |database| {
                database.is_needed(from, to)
            })
    }

    /// Removes from the ledger what segment `number` holds; `false` when it is needed after all.
    fn forget(&self, number: u32) -> Result<bool, StoreError> {
        let path = self.directory.segment(number);
        let mut from = Position::new(number, 0);
        let mut scan = Scan::open(&self.directory, from).map_err(StoreError::reading(&path))?;
        loop {
            let slice = read_slice(&mut scan).map_err(StoreError::reading(&path))?;
            let done = slice.is_empty();
            let to = if done {
                Position::new(number + 1, 0)
            } else {
                scan.position()
            };
            let forgotten = self
                .ledger
                .run_blocking("forgetting old events", move |database| {
                    database.forget((from, to), &slice)
                })?;
            if done || !forgotten {
                return Ok(forgotten);
            }
            from = to;
        }
    }
}

/// From where to where the positions of a segment go.
const fn of(number: u32) -> (Position, Position) {
    (Position::new(number, 0), Position::new(number + 1, 0))
}

/// The next notifications, without their bodies. Damage is passed over: it was reported when it was
/// read first.
fn read_slice(scan: &mut Scan) -> io::Result<Vec<Notification>> {
    let mut slice = Vec::new();
    while slice.len() < SLICE
        && let Some(step) = scan.next()?
    {
        let ScanItem::Record { position, bytes } = step else {
            continue;
        };
        if let Ok(Content::Event(event)) = record::content(&bytes, position) {
            slice.push(Notification {
                body: Bytes::new(),
                ..Arc::unwrap_or_clone(event.notification)
            });
        }
    }
    Ok(slice)
}
