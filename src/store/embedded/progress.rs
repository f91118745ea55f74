//! How far the journal is written and indexed, and the records that wait for the indexer.

use std::{
    collections::VecDeque,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    journal::JournalBatch,
    segment::{Position, Watermark},
};

/// The pause of the indexer after a failure.
const PATIENCE: Duration = Duration::from_secs(1);

/// The least time between two steps of the indexer, unless many records wait. Under load each step
/// has many records, which costs less per record. A single event does not wait.
const LINGER: Duration = Duration::from_millis(5);

/// The number of waiting records that makes the next step begin at once.
const ENOUGH: u64 = 1024;

/// The most records of one step, and the most records and bytes that wait for the indexer, besides
/// the last batch. The indexer reads what exceeds these limits from the journal.
const BATCH_RECORDS: usize = 4096;
const WAITING_RECORDS: usize = 2048;
const WAITING_BYTES: usize = 2 << 20;

/// The state shared by the journal's writer and the indexer.
#[derive(Default)]
pub(super) struct Progress {
    state: Mutex<State>,
    changed: Condvar,
    /// The number of records that the ledger has.
    indexed: AtomicU64,
}

#[derive(Default)]
struct State {
    /// The end of the synced journal.
    end: Watermark,
    /// The records that wait for the indexer, within the limits.
    waiting: VecDeque<JournalBatch>,
    /// The number of their contents, and their bytes.
    waiting_size: (usize, usize),
    /// Whether the indexer waits for a write. Waking it costs the writer a system call.
    awaited: bool,
    /// Whether the subscriptions are known.
    subscribed: bool,
    /// Whether the ledger has been reset since the last step.
    ledger_reset: bool,
    stopped: bool,
}

impl State {
    fn push(&mut self, batch: JournalBatch) {
        let (contents, bytes) = self.waiting_size;
        if contents < WAITING_RECORDS && bytes < WAITING_BYTES {
            self.waiting_size = (contents + batch.contents.len(), bytes + batch.bytes());
            self.waiting.push_back(batch);
        }
    }

    fn take_if(
        &mut self,
        is_wanted: impl FnOnce(&mut JournalBatch) -> bool,
    ) -> Option<JournalBatch> {
        let batch = self.waiting.pop_front_if(is_wanted)?;
        let (contents, bytes) = self.waiting_size;
        self.waiting_size = (contents - batch.contents.len(), bytes - batch.bytes());
        Some(batch)
    }
}

impl Progress {
    /// Records that the synced journal ends at `end`. `batch` has the new records, unless the indexer
    /// must read them.
    pub(super) fn written(&self, end: Watermark, batch: Option<JournalBatch>) {
        let mut state = self.lock();
        state.end = end;
        if let Some(batch) = batch {
            state.push(batch);
        }
        let awaited = state.awaited;
        drop(state);
        if awaited {
            self.changed.notify_all();
        }
    }

    /// Takes the waiting records from `position` on. An error says up to where the journal must be
    /// read instead; `None` stands for its end.
    pub(super) fn take_from(&self, position: Position) -> Result<JournalBatch, Option<Position>> {
        let mut state = self.lock();
        while state.take_if(|batch| batch.from < position).is_some() {}
        match state.waiting.front().map(|batch| batch.from) {
            Some(from) if from == position => {}
            other => return Err(other),
        }
        let mut all = JournalBatch::behind(position);
        while all.contents.len() < BATCH_RECORDS
            && let Some(batch) = state.take_if(|batch| batch.from == all.through)
        {
            all.append(batch);
        }
        Ok(all)
    }

    /// The subscriptions are known, and indexing may begin.
    pub(super) fn subscribed(&self) {
        self.lock().subscribed = true;
        self.changed.notify_all();
    }

    /// The ledger has been reset, and indexing must begin again.
    pub(super) fn ledger_was_reset(&self) {
        self.lock().ledger_reset = true;
        self.changed.notify_all();
    }

    /// Ends indexing.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Whether indexing is to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// The ledger has the first `records` records.
    pub(super) fn indexed(&self, records: u64) {
        self.indexed.store(records, Ordering::Relaxed);
    }

    /// The number of stored records that the ledger does not have.
    pub(super) fn lag(&self) -> u64 {
        let records = self.records();
        records.saturating_sub(self.indexed.load(Ordering::Relaxed))
    }

    /// The end of the synced journal.
    pub(super) fn end(&self) -> Position {
        self.lock().end.through
    }

    /// The number of records in the journal.
    pub(super) fn records(&self) -> u64 {
        self.lock().end.records
    }

    /// Waits until there is something to index behind `watermark`, or the ledger has been reset, or
    /// `until` is over; and a moment longer, unless many records wait. Returns the end of the
    /// synced journal; `None` when indexing is to end.
    pub(super) fn beyond(&self, watermark: Watermark, until: Instant) -> Option<Position> {
        let position = watermark.through;
        let waits = |state: &mut State| {
            let is_at_end = state.end.through <= position;
            !state.stopped && (!state.subscribed || is_at_end && !state.ledger_reset)
        };
        let mut state = self.lock();
        if waits(&mut state) {
            state.awaited = true;
            let pause = until.saturating_duration_since(Instant::now());
            let waited = self.changed.wait_timeout_while(state, pause, waits);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.awaited = false;
        } else if state.end.records.saturating_sub(watermark.records) < ENOUGH {
            state = self.rest(state, LINGER);
        }
        state.ledger_reset = false;
        if state.stopped {
            return None;
        }
        Some(if state.subscribed {
            state.end.through
        } else {
            position
        })
    }

    /// Pauses after a failure. Returns `false` when indexing is to end.
    pub(super) fn pause(&self) -> bool {
        !self.rest(self.lock(), PATIENCE).stopped
    }

    /// Waits for `time`, or until indexing is to end.
    fn rest<'a>(&'a self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let waited = self
            .changed
            .wait_timeout_while(state, time, |state| !state.stopped);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
