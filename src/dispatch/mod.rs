//! Floor 4b: at least once, in order per number.
//!
//! Each handler has a worker of its own, which claims deliveries from the store, attempts
//! a bounded number of them at once, and settles them. Order is the store's doing: of two deliveries
//! whose events share an ordering key, it gives out the later one when the earlier one is settled for
//! good.
//!
//! **Invariant:** every delivery that is claimed is settled (done, skipped, due again, parked or
//! released), or is lost together with this process, and then claimed again by the next one.
//!
//! **Invariant:** one handler, slow or broken, holds up no other.

mod retry;
#[cfg(test)]
mod tests;
mod verdict;
mod worker;

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, de};
use tokio::{
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use retry::Retry;

use crate::{
    event::{HandlerName, Pattern},
    handler::AnyHandler,
    quantity,
    store::{Deliveries, Followers, StoreError, Subscription},
    telemetry::Metrics,
};
use worker::Worker;

/// How long [`Dispatcher::drain`] waits past its deadline for attempts that it has just given up.
/// Dropping one takes no time, unless it blocks its thread.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(1);

/// Delivers what the store holds to the handlers that there are at the time.
pub struct Dispatcher {
    context: WorkerContext,
    tasks: TaskTracker,
    /// Workers that have not been seen to end, also those that have been told to.
    workers: Mutex<Vec<RunningWorker>>,
    /// Tells every worker to stop, those that are started later too.
    stop: CancellationToken,
    /// Tells every worker to give up the attempts that are under way.
    abandon: CancellationToken,
    /// Cancelled when a worker has ended by a panic.
    broken: CancellationToken,
}

/// What every worker needs.
#[derive(Clone)]
struct WorkerContext {
    store: Arc<dyn Deliveries>,
    followers: Followers,
    metrics: Arc<Metrics>,
    clock: fn() -> Timestamp,
}

/// A worker that has been started.
struct RunningWorker {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Dispatcher {
    /// A dispatcher without handlers. Its workers are among `followers`, and are spawned on `tasks`, all of
    /// which [`drain`](Self::drain) ends.
    pub fn new(
        store: Arc<dyn Deliveries>,
        followers: Followers,
        metrics: Arc<Metrics>,
        clock: fn() -> Timestamp,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            context: WorkerContext {
                store,
                followers,
                metrics,
                clock,
            },
            tasks,
            workers: Mutex::default(),
            stop: CancellationToken::new(),
            abandon: CancellationToken::new(),
            broken: CancellationToken::new(),
        }
    }

    /// Completes when a worker has panicked, which no handler can make it do: its handler would get
    /// nothing more from this process.
    pub async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// Delivers to `handlers` and to nobody else from now on. Attempts that are under way are
    /// finished by the handlers that they were begun by; what those had claimed and not begun is
    /// released, and claimed by their successors.
    ///
    /// # Errors
    ///
    /// When the store cannot take the new subscriptions; everything stays as it was.
    pub async fn replace(&self, handlers: Vec<ConfiguredHandler>) -> Result<(), StoreError> {
        let mut workers = self.workers.lock().await;
        let subscriptions = handlers
            .iter()
            .map(ConfiguredHandler::subscription)
            .collect();
        self.context.store.subscribe(subscriptions).await?;
        for worker in workers.iter() {
            worker.stop.cancel();
        }
        workers.retain(|worker| !worker.task.is_finished());
        for handler in handlers {
            let stop = self.stop.child_token();
            let worker = Worker::new(
                handler,
                self.context.clone(),
                stop.clone(),
                self.abandon.clone(),
            );
            let alarm = self.broken.clone().drop_guard();
            let task = self.tasks.spawn(async move {
                worker.run().await;
                alarm.disarm();
            });
            workers.push(RunningWorker { stop, task });
        }
        Ok(())
    }

    /// Ends all deliveries: nothing more is begun, what is under way has until `deadline`, and what
    /// is not over then is dropped, to be delivered again by the next process. Returns whether
    /// nothing had to be dropped.
    pub async fn drain(&self, deadline: Instant) -> bool {
        self.stop.cancel();
        let mut workers = self.workers.lock().await;
        let mut late = Vec::new();
        for mut worker in workers.drain(..) {
            // An `Err` of the task itself leaves nothing to be waited for either.
            if timeout_at(deadline, &mut worker.task).await.is_err() {
                late.push(worker.task);
            }
        }
        let in_time = late.is_empty();
        self.abandon.cancel();
        let deadline = Instant::now() + ABANDON_TIMEOUT;
        for task in late {
            // What blocks its thread even now ends with the process.
            timeout_at(deadline, task).await.ok();
        }
        in_time
    }
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").finish_non_exhaustive()
    }
}

/// A handler with what the TOML says of it.
#[derive(Debug)]
pub struct ConfiguredHandler {
    /// Its name in the TOML.
    pub name: HandlerName,
    /// Its settings.
    pub settings: Settings,
    /// Its implementation.
    pub implementation: AnyHandler,
}

impl ConfiguredHandler {
    /// What it asks of the store.
    pub fn subscription(&self) -> Subscription {
        Subscription {
            handler: self.name.clone(),
            patterns: self.settings.events.clone(),
            ordered: self.settings.order == Order::Key,
        }
    }
}

/// What the TOML says of a handler besides its kind and what only its kind knows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Which events it gets.
    pub events: Vec<Pattern>,
    /// Whether events that share an ordering key reach it one at a time and in order.
    #[serde(default)]
    pub order: Order,
    /// How many deliveries may be under way at once.
    #[serde(default = "default_concurrency")]
    pub concurrency: NonZeroUsize,
    /// How long one attempt may take: up to a day, since a delivery that is under way is no longer
    /// seen as one that waits.
    #[serde(default = "default_timeout", deserialize_with = "timeout_up_to_a_day")]
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
    /// Those that share an ordering key one at a time, as they were stored; a delivery that is retried
    /// holds up those that share a key with it, a parked one does not.
    #[default]
    Key,
    /// Any.
    None,
}

fn default_concurrency() -> NonZeroUsize {
    NonZeroUsize::new(8).unwrap_or(NonZeroUsize::MIN)
}

fn default_timeout() -> Duration {
    Duration::from_secs(10)
}

fn timeout_up_to_a_day<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let time = quantity::duration::deserialize(deserializer)?;
    if time.is_zero() || time > Duration::from_secs(24 * 3600) {
        return Err(de::Error::custom(
            "a timeout is more than nothing and at most a day, such as \"10s\"",
        ));
    }
    Ok(time)
}
