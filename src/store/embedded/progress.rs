//! How far the journal has been written, for the one who reads behind the writer.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::segment::Position;

/// How long a reader waits at most before it looks by itself.
const PATIENCE: Duration = Duration::from_secs(1);

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
        drop(state);
        self.changed.notify_all();
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
    /// was; `None` when indexing is to end.
    pub(super) fn beyond(&self, position: Position) -> Option<Position> {
        let waits = |state: &mut State| {
            !state.stopped && (!state.subscribed || state.end <= position && !state.renewed)
        };
        let mut state = self
            .changed
            .wait_while(self.lock(), waits)
            .unwrap_or_else(PoisonError::into_inner);
        state.renewed = false;
        (!state.stopped).then_some(state.end)
    }

    /// Waits a little after a failure; `false` when indexing is to end.
    pub(super) fn pause(&self) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), PATIENCE, |state| !state.stopped)
            .unwrap_or_else(PoisonError::into_inner);
        !state.stopped
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
