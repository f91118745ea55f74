//! Counts of deliveries, for the metrics.

use jiff::Timestamp;

use crate::telemetry::{ByHandler, Metrics};

/// The counts of one handler.
pub(super) struct HandlerStatistics {
    pub(super) handler: String,
    /// The numbers of open and of parked deliveries.
    pub(super) open: i64,
    pub(super) parked: i64,
    /// When the event of the oldest open delivery was received.
    pub(super) oldest: Option<Timestamp>,
}

impl HandlerStatistics {
    /// Sets the handler's gauges, as of `now`.
    pub(super) fn export(self, metrics: &Metrics, now: Timestamp) {
        let age = self.oldest.map(|at| now.duration_since(at).as_secs_f64());
        let handler = self.handler;
        let by = &ByHandler { handler };
        metrics.open_deliveries.get_or_create(by).set(self.open);
        metrics.parked_deliveries.get_or_create(by).set(self.parked);
        let oldest = metrics.oldest_open_seconds.get_or_create(by);
        oldest.set(age.unwrap_or(0.0).max(0.0));
    }
}
