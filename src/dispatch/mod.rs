//! Floor 4b: delivers events at least once, in order per number.
//!
//! Each handler has its own worker, which claims deliveries from the store, attempts a bounded
//! number of them concurrently, and settles them. The store keeps the order: of two deliveries
//! whose events share an ordering key, it hands out the later one when the earlier one is finished.
//!
//! **Invariant:** every claimed delivery is settled (done, skipped, due again, parked or released),
//! or is lost with this process and claimed again by the next one.
//!
//! **Invariant:** a slow or broken handler delays no other handler.

mod health;
mod retry;
#[cfg(test)]
mod tests;
mod verdict;
mod worker;

use std::{collections::BTreeSet, num::NonZeroUsize, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};
use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use health::{Attempts, Failing};
pub use retry::Retry;

use crate::{
    event::{HandlerName, Pattern},
    handler::AnyHandler,
    quantity,
    store::{Deliveries, Followers, StoreError, Subscription},
    telemetry::Metrics,
};
use health::HandlerHealth;
use worker::Worker;

/// How long [`Dispatcher::drain`] waits, after its deadline, for the attempts that it has
/// abandoned. Dropping an attempt takes no time, unless the attempt blocks its thread.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(1);

/// Delivers the store's events to the configured handlers.
pub struct Dispatcher {
    context: WorkerContext,
    tasks: TaskTracker,
    /// The workers that have not ended, including those that were told to stop.
    workers: Mutex<Vec<RunningWorker>>,
    /// The handlers in force.
    handlers: ArcSwap<Vec<RunningHandler>>,
    /// The names of the paused handlers.
    paused: watch::Sender<Paused>,
    /// Stops all workers, including later ones.
    stop: CancellationToken,
    /// Makes all workers abandon their attempts.
    abandon: CancellationToken,
    /// Cancelled when a worker has panicked.
    broken: CancellationToken,
}

/// The context that all workers share.
#[derive(Clone)]
struct WorkerContext {
    store: Arc<dyn Deliveries>,
    followers: Followers,
    metrics: Arc<Metrics>,
    clock: fn() -> Timestamp,
    paused: watch::Receiver<Paused>,
}

/// The names of paused handlers.
type Paused = Arc<BTreeSet<HandlerName>>;

/// A handler in force. The handler itself is dropped when its worker ends.
struct RunningHandler {
    name: HandlerName,
    kind: &'static str,
    settings: Settings,
    health: Arc<HandlerHealth>,
}

/// A handler in force, as an operator sees it.
#[derive(Clone, Debug)]
pub struct HandlerStatus {
    /// The handler's name in the TOML.
    pub name: HandlerName,
    /// Its kind.
    pub kind: &'static str,
    /// The settings that all kinds have.
    pub settings: Settings,
    /// How its latest attempts have ended.
    pub attempts: Attempts,
}

/// A started worker.
struct RunningWorker {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Dispatcher {
    /// A dispatcher without handlers. Its workers report their progress to `followers`, and run on
    /// `tasks`. [`drain`](Self::drain) ends them.
    pub fn new(
        store: Arc<dyn Deliveries>,
        followers: Followers,
        metrics: Arc<Metrics>,
        clock: fn() -> Timestamp,
        tasks: TaskTracker,
    ) -> Self {
        let (paused, is_paused) = watch::channel(Paused::default());
        Self {
            context: WorkerContext {
                store,
                followers,
                metrics,
                clock,
                paused: is_paused,
            },
            paused,
            tasks,
            workers: Mutex::default(),
            handlers: ArcSwap::default(),
            stop: CancellationToken::new(),
            abandon: CancellationToken::new(),
            broken: CancellationToken::new(),
        }
    }

    /// Completes when a worker has panicked. Handlers cannot cause this. The worker's handler would
    /// get no more events from this process.
    pub async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// Replaces the handlers. Attempts in flight are finished by the old handlers. Claims that have
    /// not been attempted are released, and the new handlers' workers claim them again.
    ///
    /// # Errors
    ///
    /// When the store cannot take the new subscriptions. The old handlers stay.
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
        let mut running = Vec::new();
        for handler in handlers {
            let health = self.health(&handler.name);
            running.push(RunningHandler {
                name: handler.name.clone(),
                kind: handler.kind,
                settings: handler.settings.clone(),
                health: health.clone(),
            });
            let stop = self.stop.child_token();
            let worker = Worker::new(
                handler,
                health,
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
        self.handlers.store(Arc::new(running));
        Ok(())
    }

    /// Pauses the handlers called `names`, and resumes all others. A paused handler begins no attempt;
    /// its attempts in flight go on. Its events are stored and wait.
    pub fn set_paused(&self, names: BTreeSet<HandlerName>) {
        self.paused.send_if_modified(|paused| {
            let is_new = **paused != names;
            if is_new {
                *paused = Arc::new(names);
            }
            is_new
        });
    }

    /// The health of the handler called `name`. A reload keeps it.
    fn health(&self, name: &HandlerName) -> Arc<HandlerHealth> {
        let handlers = self.handlers.load();
        let known = handlers.iter().find(|known| known.name == *name);
        known.map(|known| known.health.clone()).unwrap_or_default()
    }

    /// The handlers in force.
    pub fn handlers(&self) -> Vec<HandlerStatus> {
        let handlers = self.handlers.load();
        let status = |running: &RunningHandler| HandlerStatus {
            name: running.name.clone(),
            kind: running.kind,
            settings: running.settings.clone(),
            attempts: running.health.latest(),
        };
        handlers.iter().map(status).collect()
    }

    /// Ends all deliveries. No attempt begins, and attempts in flight have until `deadline`. Later
    /// ones are dropped, and the next process makes them again. Returns whether none was dropped.
    pub async fn drain(&self, deadline: Instant) -> bool {
        self.stop.cancel();
        let mut workers = self.workers.lock().await;
        let mut late = Vec::new();
        for mut worker in workers.drain(..) {
            // A failed task has ended too.
            if timeout_at(deadline, &mut worker.task).await.is_err() {
                late.push(worker.task);
            }
        }
        let in_time = late.is_empty();
        self.abandon.cancel();
        let deadline = Instant::now() + ABANDON_TIMEOUT;
        for task in late {
            // A task that blocks its thread ends with the process.
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

/// A handler with its settings.
#[derive(Debug)]
pub struct ConfiguredHandler {
    /// The handler's name in the TOML.
    pub name: HandlerName,
    /// The `kind` of the handler in the TOML.
    pub kind: &'static str,
    /// The settings that all kinds have.
    pub settings: Settings,
    /// The handler itself.
    pub implementation: AnyHandler,
    /// The addresses of the servers that the handler connects to, each with its port.
    pub servers: Vec<String>,
}

impl ConfiguredHandler {
    /// The handler's subscription.
    pub fn subscription(&self) -> Subscription {
        Subscription {
            handler: self.name.clone(),
            patterns: self.settings.events.clone(),
            ordered: self.settings.order == Order::Key,
        }
    }
}

/// The settings that all kinds of handlers have.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Which events the handler gets. A pattern is an event name with `*` for any run of characters;
    /// `*` alone takes everything, the unrecognized and the unreadable too.
    #[schemars(with = "Vec<String>")]
    pub events: Vec<Pattern>,
    /// `key` for events that share an ordering key one at a time, as they were stored, or `none`. The
    /// ordering keys of an event are its phone number's id, its extension's id, or each of its Zoom
    /// numbers.
    #[serde(default)]
    pub order: Order,
    /// The most concurrent attempts.
    #[serde(default = "default_concurrency")]
    pub concurrency: NonZeroUsize,
    /// The time limit of one attempt, at most a day.
    #[serde(
        default = "default_timeout",
        deserialize_with = "timeout_up_to_a_day",
        serialize_with = "quantity::duration::serialize"
    )]
    #[schemars(with = "quantity::Time")]
    pub timeout: Duration,
    /// The pauses between attempts, and their limits. After the first failure the pause is `first`, then
    /// it doubles up to `ceiling`. A delivery is parked after `attempts` attempts, or at the age of
    /// `age`, whichever comes first.
    #[serde(default)]
    pub retry: Retry,
}

impl Settings {
    /// The keys of these settings. All other keys belong to the kind.
    pub const KEYS: &'static [&'static str] =
        &["events", "order", "concurrency", "timeout", "retry"];
}

/// The order of a handler's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Events that share an ordering key are delivered one at a time, as they were stored. A
    /// delivery that is retried delays later ones with a shared key; a parked one does not.
    #[default]
    Key,
    /// Any order.
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
            "a timeout must be more than 0 and at most a day, such as \"10s\"",
        ));
    }
    Ok(time)
}
