//! How far the journal has been written, for the one who reads behind the writer.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::segment::Position;

/// How long the indexer waits after a failure.
const PATIENCE: Duration = Duration::from_secs(1);

/// The least time from one transaction of the indexer to the next, unless there is enough for a
/// full one. Under load a transaction then has many records, which cost far less together, and
/// not so many that it keeps a core from answering for long; an event that comes alone does not
/// wait.
const LINGER: Duration = Duration::from_millis(25);

/// Shared by the journal's writer and the indexer.
#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<State>,
    changed: Condvar,
    /// Records that the ledger knows.
    indexed: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Where what is on stable storage ends.
    end: Position,
    /// Records up to there.
    records: u64,
    /// Whether the indexer waits to be told of a write. Telling it costs the writer a system call.
    awaited: bool,
    /// Whether it is known who gets what.
    subscribed: bool,
    /// Whether the ledger was made anew since it was looked at last.
    renewed: bool,
    stopped: bool,
}

impl Progress {
    /// Of a journal that has not been opened yet.
    pub(super) const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                end: Position::new(0, 0),
                records: 0,
                awaited: false,
                subscribed: false,
                renewed: false,
                stopped: false,
            }),
            changed: Condvar::new(),
            indexed: AtomicU64::new(0),
        }
    }

    /// What is on stable storage now ends at `end` after `records`.
    pub(super) fn written(&self, end: Position, records: u64) {
        let mut state = self.lock();
        state.end = end;
        state.records = records;
        let awaited = state.awaited;
        drop(state);
        if awaited {
            self.changed.notify_all();
        }
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

    /// Waits until there is something after `position` to index, or the ledger is no longer what it
    /// was, and until `enough` records are there or the transaction that began at `last` is a while
    /// ago; `None` when indexing is to end.
    pub(super) fn beyond(
        &self,
        position: Position,
        enough: u64,
        last: Instant,
    ) -> Option<Position> {
        let waits = |state: &mut State| {
            !state.stopped && (!state.subscribed || state.end <= position && !state.renewed)
        };
        let mut state = self.lock();
        state.awaited = true;
        let mut state = self
            .changed
            .wait_while(state, waits)
            .unwrap_or_else(PoisonError::into_inner);
        state.awaited = false;
        if state
            .records
            .saturating_sub(self.indexed.load(Ordering::Relaxed))
            < enough
        {
            let pause = LINGER.saturating_sub(last.elapsed());
            state = self.rest(state, pause);
        }
        state.renewed = false;
        (!state.stopped).then_some(state.end)
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
