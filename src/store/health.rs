//! The health of a store, as the tasks of its engine report it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tokio::sync::watch;

use super::{AppendError, Followers, Health};
use crate::telemetry::Metrics;

/// Keeps an engine's health, and logs and exports its changes. Clones share one state.
#[derive(Clone)]
pub(super) struct HealthReporter {
    health: Arc<watch::Sender<Health>>,
    followers: Followers,
    metrics: Arc<Metrics>,
}

impl HealthReporter {
    /// Starts as `health`.
    pub(super) fn new(health: Health, metrics: Arc<Metrics>) -> Self {
        metrics.store_sound.set(i64::from(health == Health::Sound));
        let (health, _) = watch::channel(health);
        Self {
            health: Arc::new(health),
            followers: Followers::default(),
            metrics,
        }
    }

    /// The engine's background tasks.
    pub(super) const fn followers(&self) -> &Followers {
        &self.followers
    }

    /// The current health.
    pub(super) fn get(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Refuses appends unless the store is sound.
    pub(super) fn check(&self) -> Result<(), AppendError> {
        match self.get() {
            Health::Sound => Ok(()),
            Health::Unavailable { why } => Err(AppendError::Unavailable(why)),
            Health::Poisoned { why } => Err(AppendError::Poisoned(why)),
        }
    }

    /// A receiver of changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Changes the health. A poisoned store stays poisoned.
    pub(super) fn set(&self, health: Health) {
        let changed = self.health.send_if_modified(|before| {
            let changes = *before != health && !matches!(before, Health::Poisoned { .. });
            if changes {
                before.clone_from(&health);
                // The gauge changes before any receiver is woken, so that the two never differ.
                let sound = matches!(health, Health::Sound);
                self.metrics.store_sound.set(i64::from(sound));
            }
            changes
        });
        if !changed {
            return;
        }
        match health {
            Health::Sound => tracing::info!("the store accepts events"),
            Health::Unavailable { why } => tracing::warn!("the store refuses events: {why}"),
            Health::Poisoned { why } => tracing::error!("the store is poisoned: {why}"),
        }
    }

    /// Wraps the `work` of a thread that the engine needs. A panic in it poisons the store;
    /// otherwise stored events would wait for ever.
    pub(super) fn supervised<W: FnOnce() + Send>(
        &self,
        name: &'static str,
        work: W,
    ) -> impl FnOnce() + Send + use<W> {
        let condition = self.clone();
        move || {
            // The state that the thread worked on is not used again.
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                condition.set(Health::Poisoned {
                    why: format!("the {name} thread has panicked"),
                });
            }
        }
    }
}
