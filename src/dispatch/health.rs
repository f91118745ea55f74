//! Whether the attempts of a handler succeed, for people who look at the service.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::store::Verdict;

/// How the attempts of one handler have ended. It is kept over reloads, and begins anew with the
/// process.
#[derive(Debug, Default)]
pub(super) struct HandlerHealth(Mutex<Attempts>);

/// How the latest attempts of a handler have ended.
#[derive(Clone, Debug, Default)]
pub struct Attempts {
    /// When the handler last accepted or declined an event.
    pub succeeded_at: Option<Timestamp>,
    /// The failures since then.
    pub failing: Option<Failing>,
}

/// Failed attempts without a success between them, of one event or of several.
#[derive(Clone, Debug)]
pub struct Failing {
    /// When the first of these attempts ended.
    pub since: Timestamp,
    /// The number of these attempts.
    pub attempts: u64,
    /// The error of the last one.
    pub why: String,
}

impl HandlerHealth {
    /// Records the verdict on an attempt that ended at `now`.
    pub(super) fn record(&self, verdict: &Verdict, now: Timestamp) {
        let mut attempts = self.attempts();
        match verdict {
            Verdict::Done | Verdict::Skipped { .. } => {
                attempts.succeeded_at = Some(now);
                attempts.failing = None;
            }
            Verdict::Retry { why, .. } | Verdict::Parked { why } => {
                let failing = attempts.failing.get_or_insert_with(|| Failing {
                    since: now,
                    attempts: 0,
                    why: String::new(),
                });
                failing.attempts += 1;
                why.clone_into(&mut failing.why);
            }
            Verdict::Released => {}
        }
    }

    /// How the latest attempts have ended.
    pub(super) fn latest(&self) -> Attempts {
        self.attempts().clone()
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        // No code panics between two changes, so a poisoned state is consistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
