//! Readiness: whether the service should get requests.

use std::{
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::timeout;

use crate::{
    store::{Health, Monitored},
    telemetry::label_enum,
};

/// How long the store may take to update its gauges. After that they are shown as they are.
const MEASURE_BUDGET: Duration = Duration::from_secs(2);

/// The phase of the service and the health of its store. `app` sets them; `/readyz` reads them.
#[derive(Default)]
pub struct Readiness {
    phase: RwLock<Phase>,
    store: OnceLock<Arc<dyn Monitored>>,
}

label_enum! {
    /// The phases of the service, in order.
    #[derive(Default)]
    pub enum Phase {
        /// The store is not open yet.
        #[default]
        Starting = "starting",
        /// The store is being opened, which can take a while after a crash.
        Recovering = "recovering",
        /// Requests are accepted, if the store is healthy.
        Serving = "serving",
        /// No more requests are accepted.
        Draining = "draining",
    }
}

impl Readiness {
    /// Enters `phase`.
    pub fn enter(&self, phase: Phase) {
        *self.phase.write().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    /// Sets the store whose health counts. Later calls have no effect.
    pub fn set_store(&self, store: Arc<dyn Monitored>) {
        self.store.get_or_init(|| store);
    }

    /// Has the store update its gauges, as of `now`. A failure is logged.
    pub async fn measure(&self, now: Timestamp) {
        let Some(store) = self.store.get() else {
            return;
        };
        let why = match timeout(MEASURE_BUDGET, store.measure(now)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "updating them took too long".to_owned(),
        };
        tracing::warn!("the store's gauges are out of date: {why}");
    }

    /// Why the service is not ready: `starting`, `recovering`, `unavailable`, `poisoned` or
    /// `draining`. `None` when it is ready.
    pub fn not_ready(&self) -> Option<&'static str> {
        match *self.phase.read().unwrap_or_else(PoisonError::into_inner) {
            phase @ (Phase::Starting | Phase::Recovering | Phase::Draining) => Some(phase.as_str()),
            Phase::Serving => {
                let Some(store) = self.store.get() else {
                    return Some("starting");
                };
                match &*store.health().borrow() {
                    Health::Sound => store.followers().any_stalled().then_some("unavailable"),
                    Health::Unavailable { .. } => Some("unavailable"),
                    Health::Poisoned { .. } => Some("poisoned"),
                }
            }
        }
    }
}
