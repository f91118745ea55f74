//! Counts of deliveries, for the metrics.

use jiff::Timestamp;

use super::HandlerSummary;
use crate::telemetry::{ByHandler, Metrics};

impl HandlerSummary {
    /// Sets the handler's gauges, as of `now`.
    pub(super) fn export(&self, metrics: &Metrics, now: Timestamp) {
        let by = &ByHandler::from(&self.handler);
        let open = self.open.cast_signed();
        let parked = self.parked.cast_signed();
        metrics.open_deliveries.get_or_create(by).set(open);
        metrics.parked_deliveries.get_or_create(by).set(parked);
        let age = self.oldest_open.map(|at| now.duration_since(at));
        let age = age.map_or(0.0, |age| age.as_secs_f64().max(0.0));
        metrics.oldest_open_seconds.get_or_create(by).set(age);
    }
}
