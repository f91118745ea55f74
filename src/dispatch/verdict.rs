//! What an attempt comes to, and who hears of it.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    Settings,
    retry::{Failure, Next},
};
use crate::{
    event::{HandlerName, Notification},
    handler::{Outcome, Panicked},
    store::{Claim, Verdict},
    telemetry::{ByHandler, ByOutcome, Metrics},
};

/// How much of a reason is stored, in characters: reasons are for people to read.
const LONGEST_REASON: usize = 1000;

/// What the outcome of an attempt comes to, and the word for it in metrics. An attempt that
/// makes its delivery parked is counted as that, whatever it failed of.
///
/// `None` is an attempt that took too long; `jitter` is a random number from 0 to 1.
pub(super) fn judge(
    settings: &Settings,
    claim: &Claim,
    outcome: Option<Outcome>,
    now: Timestamp,
    jitter: f64,
) -> (Verdict, &'static str) {
    let (after, why, label) = match outcome {
        Some(Outcome::Done) => return (Verdict::Done, "done"),
        Some(Outcome::Skip { why }) => {
            let why = bounded(&why);
            return (Verdict::Skipped { why }, "skipped");
        }
        Some(Outcome::Park { why }) => {
            let why = bounded(&why.to_string());
            return (Verdict::Parked { why }, "parked");
        }
        Some(Outcome::Retry { after, why }) => {
            let label = if why.is::<Panicked>() {
                "panic"
            } else {
                "retry"
            };
            (after, why.to_string(), label)
        }
        None => {
            let timeout = humantime::format_duration(settings.timeout);
            (None, format!("took longer than {timeout}"), "timeout")
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
            (Verdict::Retry { due_at, why }, label)
        }
        Next::Never(limit) => {
            let why = bounded(&format!("{limit}; the last one: {why}"));
            (Verdict::Parked { why }, "parked")
        }
    }
}

/// Counts an attempt, and logs it at the level of what an operator has to do about it.
pub(super) fn report(
    metrics: &Metrics,
    handler: &HandlerName,
    claim: &Claim,
    verdict: &Verdict,
    label: &'static str,
    took: Duration,
) {
    let by_outcome = ByOutcome {
        handler: handler.to_string(),
        outcome: label,
    };
    metrics.deliveries.get_or_create(&by_outcome).inc();
    metrics
        .delivery_seconds
        .get_or_create(&ByHandler::from(handler))
        .observe(took.as_secs_f64());

    let Notification { id, name, .. } = &*claim.notification;
    let attempt = claim.attempt;
    match verdict {
        Verdict::Parked { why } => tracing::error!(
            %handler, event.id = %id, event.name = %name, attempt, reason = %why,
            "parked the delivery of {id} to {handler}: {why}",
        ),
        Verdict::Retry { due_at, why } => tracing::warn!(
            %handler, event.id = %id, event.name = %name, attempt, %due_at, reason = %why,
            "the delivery of {id} to {handler} will be tried again: {why}",
        ),
        Verdict::Done | Verdict::Skipped { .. } | Verdict::Released => tracing::debug!(
            %handler, event.id = %id, event.name = %name, attempt, outcome = label,
            "delivered {id} to {handler}: {label}",
        ),
    }
}

fn bounded(reason: &str) -> String {
    reason.chars().take(LONGEST_REASON).collect()
}
