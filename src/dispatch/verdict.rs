//! Turns the outcome of an attempt into a verdict, and reports it.

use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

use super::{
    Settings,
    retry::{Failure, Next},
};
use crate::{
    event::{HandlerName, Notification},
    handler::{Outcome, Panicked},
    store::{Claim, Verdict},
    telemetry::{ByHandler, ByOutcome, Metrics, label_enum},
};

/// The longest stored reason, in characters. Reasons are for people to read.
const LONGEST_REASON: usize = 1000;

label_enum! {
    /// How attempts end, as the label of metrics and logs.
    pub(super) enum End {
        Done = "done",
        Skipped = "skipped",
        Retry = "retry",
        Panic = "panic",
        Timeout = "timeout",
        Parked = "parked",
    }
}

/// The verdict on an attempt, and the label it is counted under. An attempt whose delivery is
/// parked counts as parked, whatever the error.
///
/// An `outcome` of `None` stands for an attempt that took too long. `jitter` is a random number
/// from 0 to 1.
pub(super) fn judge(
    settings: &Settings,
    claim: &Claim,
    outcome: Option<Outcome>,
    now: Timestamp,
    jitter: f64,
) -> (Verdict, End) {
    let (after, why, end) = match outcome {
        Some(Outcome::Done) => return (Verdict::Done, End::Done),
        Some(Outcome::Skip { why }) => {
            let why = bounded(&why);
            return (Verdict::Skipped { why }, End::Skipped);
        }
        Some(Outcome::Park { why }) => {
            let why = bounded(&why.to_string());
            return (Verdict::Parked { why }, End::Parked);
        }
        Some(Outcome::Retry { after, why }) => {
            let end = if why.is::<Panicked>() {
                End::Panic
            } else {
                End::Retry
            };
            (after, why.to_string(), end)
        }
        None => {
            let timeout = humantime::format_duration(settings.timeout);
            (None, format!("took longer than {timeout}"), End::Timeout)
        }
    };
    let failure = Failure {
        attempt: claim.attempt,
        since: claim.since,
        now,
        after,
        jitter,
    };
    match settings.retry.next(failure) {
        Next::At(due_at) => {
            let why = bounded(&why);
            (Verdict::Retry { due_at, why }, end)
        }
        Next::Never(limit) => {
            let why = bounded(&format!("{limit}; the last one: {why}"));
            (Verdict::Parked { why }, End::Parked)
        }
    }
}

/// Reports the attempts of one handler. It looks up the handler's metrics once.
pub(super) struct Reporter {
    handler: HandlerName,
    /// One counter for each [`End`].
    deliveries: [Counter; End::ALL.len()],
    delivery_seconds: Histogram,
}

impl Reporter {
    pub(super) fn new(handler: &HandlerName, metrics: &Metrics) -> Self {
        let counter = |end: End| {
            let label = ByOutcome {
                handler: handler.to_string(),
                outcome: end.as_str(),
            };
            metrics.deliveries.get_or_create(&label).clone()
        };
        let label = ByHandler::from(handler);
        Self {
            handler: handler.clone(),
            deliveries: End::ALL.map(counter),
            delivery_seconds: metrics.delivery_seconds.get_or_create(&label).clone(),
        }
    }

    /// Counts an attempt, and logs it at a level that fits what an operator has to do.
    pub(super) fn report(&self, claim: &Claim, verdict: &Verdict, end: End, took: Duration) {
        #[expect(clippy::indexing_slicing, reason = "there is a counter for each end")]
        self.deliveries[end as usize].inc();
        self.delivery_seconds.observe(took.as_secs_f64());

        let handler = &self.handler;
        let Notification { id, name, .. } = &*claim.notification;
        let (attempt, end) = (claim.attempt, end.as_str());
        match verdict {
            Verdict::Parked { why } => tracing::error!(
                %handler, event.id = %id, event.name = %name, attempt,
                "parked the delivery of {id} to {handler}: {why}",
            ),
            Verdict::Retry { due_at, why } => tracing::warn!(
                %handler, event.id = %id, event.name = %name, attempt, %due_at,
                "the delivery of {id} to {handler} failed, and is retried: {why}",
            ),
            Verdict::Done | Verdict::Skipped { .. } | Verdict::Released => tracing::debug!(
                %handler, event.id = %id, event.name = %name, attempt, outcome = end,
                "delivered {id} to {handler}: {end}",
            ),
        }
    }
}

fn bounded(reason: &str) -> String {
    reason.chars().take(LONGEST_REASON).collect()
}
