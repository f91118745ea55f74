//! Appends that have not been answered: within which bounds they wait, and how each is answered.

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

/// The most that wait for whoever writes them: several batches.
pub(super) const WAITING: usize = 4096;

/// The most bytes that wait, so that large bodies cannot take all memory.
const WAITING_BYTES: usize = 16 << 20;

/// The most in one batch.
pub(super) const BATCH: usize = 1024;

/// The most bytes in one batch, besides its last event: about what a slow disk takes in a tenth of a
/// second.
pub(super) const BATCH_BYTES: usize = 4 << 20;

/// What an append comes to.
pub(super) type Ack = oneshot::Receiver<Result<(), AppendError>>;

/// How many bytes wait.
#[derive(Clone, Default)]
pub(super) struct PendingBytes(Arc<AtomicUsize>);

impl PendingBytes {
    /// Has an append of `bytes` wait, if `send` can hand the append to whoever writes it.
    pub(super) fn add(
        &self,
        bytes: usize,
        send: impl FnOnce() -> Result<(), AppendError>,
    ) -> Result<(), AppendError> {
        let waiting = self.0.fetch_add(bytes, Ordering::Relaxed);
        // One append is taken however large it is, when nothing else waits.
        let sent = match waiting > 0 && waiting + bytes > WAITING_BYTES {
            true => Err(AppendError::Overloaded),
            false => send(),
        };
        sent.inspect_err(|_| self.remove(bytes))
    }

    /// Notes that appends of `bytes` wait no longer.
    pub(super) fn remove(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Who waits for an append.
pub(super) struct AckSender {
    since: Instant,
    sender: oneshot::Sender<Result<(), AppendError>>,
}

impl AckSender {
    /// One for an append that begins now.
    pub(super) fn new() -> (Self, Ack) {
        let (sender, answer) = oneshot::channel();
        let since = Instant::now();
        (Self { since, sender }, answer)
    }

    /// Answers.
    pub(super) fn send(self, stored: Result<(), AppendError>, metrics: &Metrics) {
        if stored.is_ok() {
            let took = self.since.elapsed().as_secs_f64();
            metrics.append_seconds.observe(took);
        }
        // Whoever waited may have run out of patience; what is stored stays so.
        self.sender.send(stored).ok();
    }
}

/// Waits for the answer to an append, if the append was taken.
pub(super) async fn acknowledged(taken: Result<Ack, AppendError>) -> Result<(), AppendError> {
    taken?.await.unwrap_or(Err(AppendError::Closed))
}
