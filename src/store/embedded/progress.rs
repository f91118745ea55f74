//! How far the journal has been written, and what is new there, for the one who reads behind the writer.

use std::{
    collections::VecDeque,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{ledger::JournalBatch, segment::Position};

/// How long the indexer waits after a failure.
const PATIENCE: Duration = Duration::from_secs(1);

/// The least time from one look to the next, unless there is enough. Under load there are many records each
/// time then, which cost far less together; an event that comes alone does not wait.
const LINGER: Duration = Duration::from_millis(5);

/// How many records are enough.
const ENOUGH: u64 = 1024;

/// How many events are handed over at one go, and how many and how many bytes of them wait, besides the last
/// ones. What finds no room is read from the journal.
const BATCH_RECORDS: usize = 4096;
const HANDED_RECORDS: usize = 2048;
const HANDED_BYTES: usize = 2 << 20;

/// Shared by the journal's writer and the indexer.
#[derive(Default)]
pub(super) struct Progress {
    state: Mutex<State>,
    changed: Condvar,
    /// Records that the ledger knows.
    indexed: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Where what is on stable storage ends.
    end: Position,
    /// Records up to there.
    records: u64,
    /// What was written last, as far as there is room for it.
    handed: VecDeque<JournalBatch>,
    /// How many contents and bytes that is.
    handed_size: (usize, usize),
    /// Whether the indexer waits to be told of a write. Telling it costs the writer a system call.
    awaited: bool,
    /// Whether it is known who gets what.
    subscribed: bool,
    /// Whether the ledger was made anew since it was looked at last.
    renewed: bool,
    stopped: bool,
}

impl State {
    fn hand(&mut self, batch: JournalBatch) {
        let (contents, bytes) = self.handed_size;
        if contents < HANDED_RECORDS && bytes < HANDED_BYTES {
            self.handed_size = (contents + batch.contents.len(), bytes + batch.bytes());
            self.handed.push_back(batch);
        }
    }

    fn take(&mut self) -> Option<JournalBatch> {
        let batch = self.handed.pop_front()?;
        let (contents, bytes) = self.handed_size;
        self.handed_size = (contents - batch.contents.len(), bytes - batch.bytes());
        Some(batch)
    }

    fn take_behind(&mut self, position: Position) -> Option<JournalBatch> {
        self.handed.front().filter(|batch| batch.from == position)?;
        self.take()
    }
}

impl Progress {
    /// What is on stable storage now ends at `end` after `records`; `batch` is what is new of it, unless it
    /// has to be read.
    pub(super) fn written(&self, end: Position, records: u64, batch: Option<JournalBatch>) {
        let mut state = self.lock();
        state.end = end;
        state.records = records;
        if let Some(batch) = batch {
            state.hand(batch);
        }
        let awaited = state.awaited;
        drop(state);
        if awaited {
            self.changed.notify_all();
        }
    }

    /// What was handed over behind `position`; or else up to where, or to the end, the journal has to be read
    /// from there on.
    pub(super) fn handed(&self, position: Position) -> Result<JournalBatch, Option<Position>> {
        let mut state = self.lock();
        while state
            .handed
            .front()
            .is_some_and(|batch| batch.from < position)
        {
            state.take();
        }
        match state.handed.front().map(|batch| batch.from) {
            Some(from) if from == position => {}
            other => return Err(other),
        }
        let mut all = JournalBatch::behind(position);
        while all.contents.len() < BATCH_RECORDS
            && let Some(batch) = state.take_behind(all.through)
        {
            all.append(batch);
        }
        Ok(all)
    }

    /// It is known who gets what: indexing may begin.
    pub(super) fn subscribed(&self) {
        self.lock().subscribed = true;
        self.changed.notify_all();
    }

    /// The ledger was made anew and is empty: indexing has to begin again.
    pub(super) fn renewed(&self) {
        self.lock().renewed = true;
        self.changed.notify_all();
    }

    /// Indexing is to end.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Whether indexing is to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// The ledger knows the first `records` records.
    pub(super) fn indexed(&self, records: u64) {
        self.indexed.store(records, Ordering::Relaxed);
    }

    /// Stored records that the ledger does not know.
    pub(super) fn lag(&self) -> u64 {
        let records = self.lock().records;
        records.saturating_sub(self.indexed.load(Ordering::Relaxed))
    }

    /// Where what is on stable storage ends.
    pub(super) fn end(&self) -> Position {
        self.lock().end
    }

    /// Records in the journal.
    pub(super) fn records(&self) -> u64 {
        self.lock().records
    }

    /// Waits until there is something to read after the place that was `watermark`, or the ledger is no longer
    /// what it was, or until `until` at most; and a moment longer, unless much is there by now. Says where
    /// what is on stable storage ends; `None` when indexing is to end.
    pub(super) fn beyond(
        &self,
        (position, records): (Position, u64),
        until: Instant,
    ) -> Option<Position> {
        let waits = |state: &mut State| {
            !state.stopped && (!state.subscribed || state.end <= position && !state.renewed)
        };
        let mut state = self.lock();
        if waits(&mut state) {
            state.awaited = true;
            let pause = until.saturating_duration_since(Instant::now());
            let waited = self.changed.wait_timeout_while(state, pause, waits);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.awaited = false;
        } else if state.records.saturating_sub(records) < ENOUGH {
            state = self.rest(state, LINGER);
        }
        state.renewed = false;
        if state.stopped {
            return None;
        }
        Some(if state.subscribed {
            state.end
        } else {
            position
        })
    }

    /// Waits a little after a failure; `false` when indexing is to end.
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
