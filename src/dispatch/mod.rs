//! Floor 4b: at least once, in order per key.
//!
//! **Invariant:** every delivery that is claimed is settled: done, skipped, due again, parked or
//! released.
//!
//! **Invariant:** one handler, slow or broken, holds up no other.

use std::time::Duration;

use serde::Deserialize;

use crate::{
    event::{HandlerName, Pattern},
    handler::AnyHandler,
    quantity,
    store::Subscription,
};

/// What the TOML says of a handler besides its kind and what only its kind knows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Which events it gets.
    pub events: Vec<Pattern>,
    /// Whether events of one key reach it one at a time and in order.
    #[serde(default)]
    pub order: Order,
    /// How many deliveries may be under way at once.
    #[serde(default = "default_concurrency")]
    pub concurrency: std::num::NonZeroUsize,
    /// How long one attempt may take.
    #[serde(default = "default_timeout", with = "quantity::duration")]
    pub timeout: Duration,
    /// What happens after a failed attempt.
    #[serde(default)]
    pub retry: Retry,
}

impl Settings {
    /// The keys that are read here: the others are the kind's.
    pub const KEYS: &'static [&'static str] =
        &["events", "order", "concurrency", "timeout", "retry"];
}

/// In which order events reach a handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Those of one key one at a time, as they were stored; a delivery that is retried holds up
    /// its key, a parked one does not.
    #[default]
    Key,
    /// Any.
    None,
}

/// When a failed delivery is tried again, and when it is parked.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// The number of attempts after which a delivery is parked.
    pub attempts: std::num::NonZeroU32,
    /// The pause after the first failure; each further one is twice as long, less a random part.
    #[serde(with = "quantity::duration")]
    pub first: Duration,
    /// The longest pause.
    #[serde(with = "quantity::duration")]
    pub ceiling: Duration,
    /// The age at which a delivery is parked whatever its attempts.
    #[serde(with = "quantity::duration")]
    pub age: Duration,
}

impl Default for Retry {
    /// About 4 hours of attempts.
    fn default() -> Self {
        Self {
            attempts: std::num::NonZeroU32::new(12).unwrap_or(std::num::NonZeroU32::MIN),
            first: Duration::from_secs(1),
            ceiling: Duration::from_secs(3600),
            age: Duration::from_secs(24 * 3600),
        }
    }
}

fn default_concurrency() -> std::num::NonZeroUsize {
    std::num::NonZeroUsize::new(8).unwrap_or(std::num::NonZeroUsize::MIN)
}

fn default_timeout() -> Duration {
    Duration::from_secs(10)
}

/// A handler with what the TOML says of it.
#[derive(Debug)]
pub struct Consumer {
    /// Its name in the TOML.
    pub name: HandlerName,
    /// Its settings.
    pub settings: Settings,
    /// What it does.
    pub handler: AnyHandler,
}

impl Consumer {
    /// What it asks of the store.
    pub fn subscription(&self) -> Subscription {
        Subscription {
            handler: self.name.clone(),
            patterns: self.settings.events.clone(),
            ordered: self.settings.order == Order::Key,
        }
    }
}
