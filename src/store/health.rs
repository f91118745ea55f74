//! Whether a store takes events, as the parts of its engine find out.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tokio::sync::watch;

use super::{AppendError, Followers, Health};
use crate::telemetry::Metrics;

/// The one place where an engine's health is kept, and reported when it changes.
#[derive(Clone)]
pub(super) struct HealthReporter {
    health: Arc<watch::Sender<Health>>,
    followers: Followers,
    metrics: Arc<Metrics>,
}

impl HealthReporter {
    /// Begins as `health`.
    pub(super) fn new(health: Health, metrics: Arc<Metrics>) -> Self {
        metrics.store_sound.set(i64::from(health == Health::Sound));
        let (health, _) = watch::channel(health);
        Self {
            health: Arc::new(health),
            followers: Followers::default(),
            metrics,
        }
    }

    /// Those who work behind what is stored.
    pub(super) const fn followers(&self) -> &Followers {
        &self.followers
    }

    /// As it is now.
    pub(super) fn get(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Whether appends are taken.
    pub(super) fn check(&self) -> Result<(), AppendError> {
        match self.get() {
            Health::Sound => Ok(()),
            Health::Unavailable { why } => Err(AppendError::Unavailable(why)),
            Health::Poisoned { why } => Err(AppendError::Poisoned(why)),
        }
    }

    /// For whoever wants to know when it changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Takes note of a change. Poison is for ever.
    pub(super) fn set(&self, health: Health) {
        let changed = self.health.send_if_modified(|before| {
            let changes = *before != health && !matches!(before, Health::Poisoned { .. });
            if changes {
                before.clone_from(&health);
                // Before anybody hears of it, so that nobody finds the two apart.
                let sound = matches!(health, Health::Sound);
                self.metrics.store_sound.set(i64::from(sound));
            }
            changes
        });
        if !changed {
            return;
        }
        match health {
            Health::Sound => tracing::info!("the store takes events"),
            Health::Unavailable { why } => tracing::warn!("the store refuses events: {why}"),
            Health::Poisoned { why } => tracing::error!("the store is poisoned: {why}"),
        }
    }

    /// `work` of a thread that the engine cannot do without: a panic in it poisons the store, since
    /// what is stored would otherwise wait for ever to be delivered.
    pub(super) fn supervised<W: FnOnce() + Send>(
        &self,
        name: &'static str,
        work: W,
    ) -> impl FnOnce() + Send + use<W> {
        let condition = self.clone();
        move || {
            // Nothing that it worked on is used again.
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                condition.set(Health::Poisoned {
                    why: format!("the {name} thread has panicked"),
                });
            }
        }
    }
}
