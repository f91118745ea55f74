//! Whether requests should be sent our way.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::store::{Health, Monitored};

/// Where the service stands in its life, and how its store does. Shared by whoever changes it and
/// whoever is asked.
#[derive(Default)]
pub struct Readiness {
    phase: RwLock<Phase>,
    store: OnceLock<Arc<dyn Monitored>>,
}

/// The service's stations, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is open yet.
    #[default]
    Starting,
    /// The store is being opened; after a crash that can take a while.
    Recovering,
    /// Requests are taken, as far as the store takes events.
    Serving,
    /// No more requests are taken.
    Draining,
}

impl Readiness {
    /// Moves to `phase`.
    pub fn enter(&self, phase: Phase) {
        *self.phase.write().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    /// Looks at `store` from now on. Only the first one counts.
    pub fn observe(&self, store: Arc<dyn Monitored>) {
        self.store.get_or_init(|| store);
    }

    /// Nothing when requests are welcome, or else one word for why they are not: `starting`,
    /// `recovering`, `unavailable`, `poisoned`, `draining`.
    pub fn obstacle(&self) -> Option<&'static str> {
        match *self.phase.read().unwrap_or_else(PoisonError::into_inner) {
            Phase::Starting => Some("starting"),
            Phase::Recovering => Some("recovering"),
            Phase::Draining => Some("draining"),
            Phase::Serving => {
                let Some(store) = self.store() else {
                    return Some("starting");
                };
                match &*store.health().borrow() {
                    Health::Sound => store.followers().are_stalled().then_some("unavailable"),
                    Health::Unavailable { .. } => Some("unavailable"),
                    Health::Poisoned { .. } => Some("poisoned"),
                }
            }
        }
    }

    /// The store, once there is one.
    pub(super) fn store(&self) -> Option<&Arc<dyn Monitored>> {
        self.store.get()
    }
}
