//! Indexes the events by number and by key that were stored before the ledger had that index.
//!
//! The thread reads the journal backwards segment by segment, so that the latest events can be looked
//! up first. It works in small steps with pauses between them, so that the service has the disk and
//! the ledger most of the time. The ledger records which segments are done. After a restart, the
//! thread goes on with the segment that it was in.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use super::{
    Core,
    ledger::Ledger,
    reader::{Scan, ScanItem},
    record::{self, Content},
    segment::Position,
};
use crate::{
    event::Notification,
    store::{Follower, StoreError},
};

/// The most events in one step. A step is a transaction of the ledger.
const STEP_EVENTS: usize = 100;

/// The pause between two steps. A step takes a few milliseconds.
const PAUSE: Duration = Duration::from_millis(20);

/// The pause after a failure.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// The thread that indexes stored events.
pub(super) struct TermBackfill {
    core: Arc<Core>,
    ledger: Arc<Ledger>,
    follower: Follower,
}

/// Why a pass ended before its end.
enum Ended {
    /// The store closes.
    Stopped,
    Failed(StoreError),
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl TermBackfill {
    pub(super) fn new(core: Arc<Core>, ledger: Arc<Ledger>) -> Self {
        let followers = core.health.followers();
        Self {
            follower: followers.background("terms", "indexing stored events by number"),
            core,
            ledger,
        }
    }

    /// Indexes until all events are indexed, or the other end of `stop` is dropped.
    pub(super) fn run(self, stop: &Receiver<()>) {
        super::lower_priority();
        loop {
            match self.pass(stop) {
                Ok(()) => return self.follower.progressed(),
                Err(Ended::Stopped) => return,
                Err(Ended::Failed(error)) => {
                    if self.follower.failed(&error) {
                        tracing::warn!("stored events are not indexed by number: {error}");
                    }
                    if is_stopped(stop, PAUSE_AFTER_FAILURE) {
                        return;
                    }
                }
            }
        }
    }

    fn pass(&self, stop: &Receiver<()>) -> Result<(), Ended> {
        let unindexed = self
            .ledger
            .run_blocking("reading the ledger", |database| database.unindexed())?;
        if unindexed == Position::default() {
            return Ok(());
        }
        tracing::info!("stored events are being indexed by number");
        let directory = &self.core.directory;
        let path = directory.path();
        let numbers = directory.segments();
        let numbers = numbers.map_err(StoreError::reading(path))?;
        for number in numbers.into_iter().rev() {
            let begin = Position::new(number, 0);
            if begin < unindexed {
                self.index_segment(number, unindexed, stop)?;
                self.indexed_from(begin)?;
            }
        }
        self.indexed_from(Position::default())?;
        tracing::info!("all stored events are indexed by number");
        Ok(())
    }

    /// Indexes the events of segment `number` before `end`.
    fn index_segment(&self, number: u32, end: Position, stop: &Receiver<()>) -> Result<(), Ended> {
        let directory = &self.core.directory;
        let path = directory.segment(number);
        let mut scan = match Scan::open(directory, Position::new(number, 0)) {
            // Retention has deleted the segment meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(StoreError::reading(&path))?,
        };
        loop {
            let step = read_step(&mut scan, end).map_err(StoreError::reading(&path))?;
            if step.is_empty() {
                return Ok(());
            }
            self.ledger
                .run_blocking("indexing stored events", move |database| {
                    database.add_late_terms(&step)
                })?;
            self.follower.progressed();
            if is_stopped(stop, PAUSE) {
                return Err(Ended::Stopped);
            }
        }
    }

    fn indexed_from(&self, position: Position) -> Result<(), StoreError> {
        let record = move |database: &mut super::LedgerDatabase| database.indexed_from(position);
        self.ledger.run_blocking("writing the ledger", record)
    }
}

fn is_stopped(stop: &Receiver<()>, pause: Duration) -> bool {
    stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout)
}

/// The next events before `end`, without their bodies. Damage is skipped: the indexer has reported it.
fn read_step(scan: &mut Scan, end: Position) -> io::Result<Vec<(Position, Notification)>> {
    let mut step = Vec::new();
    while step.len() < STEP_EVENTS
        && scan.position() < end
        && let Some(item) = scan.next()?
    {
        let ScanItem::Record { position, bytes } = item else {
            continue;
        };
        if let Some(Content::Event(event)) = record::content(&bytes, position) {
            let mut event = Arc::unwrap_or_clone(event.notification);
            event.complete_subjects();
            event.body.clear();
            step.push((position, event));
        }
    }
    Ok(step)
}
