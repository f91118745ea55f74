//! Appends that wait to be written: their limits and their acknowledgement.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::sync::oneshot;

use super::AppendError;
use crate::telemetry::Metrics;

/// The most appends that wait for the writer: several batches.
pub(super) const WAITING: usize = 4096;

/// The most bytes of waiting appends, so that large bodies cannot exhaust memory.
const WAITING_BYTES: usize = 16 << 20;

/// The most appends in one batch.
pub(super) const BATCH: usize = 1024;

/// The most bytes in one batch, besides its last event: about what a slow disk writes in 0.1 s.
pub(super) const BATCH_BYTES: usize = 4 << 20;

/// Receives the result of an append.
pub(super) type Ack = oneshot::Receiver<Result<(), AppendError>>;

/// The bytes of waiting appends. Clones share one counter.
#[derive(Clone, Default)]
pub(super) struct PendingBytes(Arc<AtomicUsize>);

impl PendingBytes {
    /// Adds `bytes` to the count and calls `send`, which hands the append to the writer.
    pub(super) fn add(
        &self,
        bytes: usize,
        send: impl FnOnce() -> Result<(), AppendError>,
    ) -> Result<(), AppendError> {
        let waiting = self.0.fetch_add(bytes, Ordering::Relaxed);
        // If nothing else waits, an append of any size is accepted.
        let sent = match waiting > 0 && waiting + bytes > WAITING_BYTES {
            true => Err(AppendError::Overloaded),
            false => send(),
        };
        sent.inspect_err(|_| self.remove(bytes))
    }

    /// Subtracts the `bytes` of appends that the writer has taken.
    pub(super) fn remove(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Sends the result of one append.
pub(super) struct AckSender {
    since: Instant,
    sender: oneshot::Sender<Result<(), AppendError>>,
}

impl AckSender {
    /// A pair for an append that begins now.
    pub(super) fn new() -> (Self, Ack) {
        let (sender, answer) = oneshot::channel();
        let since = Instant::now();
        (Self { since, sender }, answer)
    }

    /// Sends the result, and records its latency.
    pub(super) fn send(self, stored: Result<(), AppendError>, metrics: &Metrics) {
        if stored.is_ok() {
            let took = self.since.elapsed().as_secs_f64();
            metrics.append_seconds.observe(took);
        }
        // The receiver may have timed out. The event is stored all the same.
        self.sender.send(stored).ok();
    }
}

/// Waits for the result of an append, if the writer accepted it.
pub(super) async fn acknowledged(queued: Result<Ack, AppendError>) -> Result<(), AppendError> {
    queued?.await.unwrap_or(Err(AppendError::Closed))
}
