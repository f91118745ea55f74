//! The counters of answers, and the log lines of rejections.

use std::{
    array,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use prometheus_client::metrics::{counter::Counter, family::Family};

use super::{
    answer::{Accepted, Label, Rejection},
    throttle::Throttle,
};
use crate::telemetry::{ByAnswer, Metrics};

/// Counts the answers of one endpoint, and logs the rejections.
pub(super) struct AnswerMetrics {
    endpoint: String,
    requests: Family<ByAnswer, Counter>,
    by_label: [AnswerMetric; Label::COUNT],
    /// The number of log lines so far. It tells requests apart that are served at the same time, and
    /// never leaves the process.
    logged: AtomicU64,
}

/// The counter of one [`Label`], and the throttle of its log lines.
#[derive(Default)]
struct AnswerMetric {
    counter: OnceLock<Counter>,
    throttle: Throttle,
}

impl AnswerMetrics {
    /// The counters of `expected` labels begin at 0; any other begins at its first answer.
    pub(super) fn new(endpoint: &str, expected: fn(Label) -> bool, metrics: &Metrics) -> Self {
        let answers = Self {
            endpoint: endpoint.to_owned(),
            requests: metrics.requests.clone(),
            by_label: array::from_fn(|_| AnswerMetric::default()),
            logged: AtomicU64::new(0),
        };
        for label in Label::all().filter(|label| expected(*label)) {
            answers.counter(label);
        }
        answers
    }

    fn of(&self, label: Label) -> &AnswerMetric {
        #[expect(
            clippy::indexing_slicing,
            reason = "there is an element for each label"
        )]
        &self.by_label[label.index()]
    }

    /// The number of answers with `label`.
    pub(super) fn count_of(&self, label: Label) -> u64 {
        self.of(label).counter.get().map_or(0, Counter::get)
    }

    fn counter(&self, label: Label) -> &Counter {
        self.of(label).counter.get_or_init(|| {
            let labels = ByAnswer {
                endpoint: self.endpoint.clone(),
                answer: label.as_str(),
            };
            self.requests.get_or_create(&labels).clone()
        })
    }

    pub(super) fn count(&self, answer: Result<&Accepted, &Rejection>, clock: fn() -> Timestamp) {
        let label = answer.map_or_else(Label::from, Label::from);
        self.counter(label).inc();
        if let Err(rejection) = answer
            && let Some(suppressed) = self.of(label).throttle.pass(clock())
        {
            self.log(rejection, suppressed);
        }
    }

    fn log(&self, rejection: &Rejection, suppressed: u64) {
        let request = self.logged.fetch_add(1, Ordering::Relaxed);
        let (endpoint, reason) = (self.endpoint.as_str(), rejection.label());
        match rejection {
            Rejection::Path
            | Rejection::Method(_)
            | Rejection::Draining
            | Rejection::BrokenBody => {
                tracing::info!(
                    endpoint,
                    request,
                    reason,
                    suppressed,
                    "a request was rejected"
                );
            }
            Rejection::Refused(_)
            | Rejection::TooLarge
            | Rejection::SlowBody
            | Rejection::Overloaded => {
                tracing::warn!(
                    endpoint,
                    request,
                    reason,
                    suppressed,
                    "a request was refused"
                );
            }
            Rejection::Unavailable(why) => {
                tracing::error!(
                    endpoint,
                    request,
                    reason,
                    why,
                    suppressed,
                    "an event was not stored"
                );
            }
            Rejection::Panic => {
                tracing::error!(request, reason, suppressed, "a request caused a panic");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unexpected_answer_is_counted_from_1() {
        let metrics = Metrics::default();
        let answers = AnswerMetrics::new("x", |_| false, &metrics);
        let counted = |answer| {
            let series =
                format!("hookswitch_requests_total{{endpoint=\"x\",answer=\"{answer}\"}} 1\n");
            metrics
                .render(crate::telemetry::MetricsFormat::Prometheus)
                .unwrap()
                .contains(&series)
        };
        assert!(!counted("path"));
        answers.count(Err(&Rejection::Path), || Timestamp::UNIX_EPOCH);
        assert!(counted("path"));
    }
}
