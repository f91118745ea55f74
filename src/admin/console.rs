//! The running service as its operator sees it: what the API and the pages show.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use tokio::{sync::Semaphore, task::spawn_blocking, time::Instant};

use super::Readiness;
use crate::{
    dispatch::Dispatcher,
    http::Webhook,
    store::{Engine, Operator, Pause, Store, StoreError},
    telemetry::Metrics,
};

/// The components of a running service.
pub struct Console {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Connections for the operator's queries.
    pub operators: Arc<Operators>,
    /// The handlers.
    pub dispatcher: Arc<Dispatcher>,
    /// The endpoints.
    pub webhook: Arc<Webhook>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The phase of the service.
    pub readiness: Arc<Readiness>,
    /// The clock.
    pub clock: fn() -> Timestamp,
    /// When the process began.
    pub started_at: Timestamp,
    /// The paused handlers. Empty at first.
    pub pauses: ArcSwap<Vec<Pause>>,
    /// Why the paused handlers could not be read the last time.
    pub pauses_problem: ArcSwapOption<String>,
}

impl Console {
    /// The paused handlers, as of the last second.
    pub(super) fn pauses(&self) -> Arc<Vec<Pause>> {
        self.pauses.load_full()
    }

    /// Reads which handlers are paused, and has the dispatcher obey. Another replica or a command may
    /// have changed that.
    ///
    /// # Errors
    ///
    /// When the store cannot be read. The dispatcher goes on as before.
    pub async fn refresh_pauses(&self) -> Result<(), StoreError> {
        let read = self.ask(|operator| operator.pauses()).await;
        let problem = read.as_ref().err().map(|error| Arc::new(error.to_string()));
        self.pauses_problem.store(problem);
        let pauses = read?;
        let names = pauses.iter().map(|pause| pause.handler.clone());
        self.dispatcher.set_paused(names.collect());
        self.pauses.store(Arc::new(pauses));
        Ok(())
    }

    /// The names of the handlers in force.
    pub(super) fn handler_names(&self) -> Vec<String> {
        let handlers = self.dispatcher.handlers();
        handlers
            .iter()
            .map(|handler| handler.name.to_string())
            .collect()
    }

    /// Asks the store what an operator asks.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        query: impl FnOnce(&mut dyn Operator) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        Arc::clone(&self.operators).run(query).await
    }

    /// The time.
    pub(super) fn now(&self) -> Timestamp {
        (self.clock)()
    }
}

/// The most queries at the same time. An operator's queries share the disk with the service.
const MAX_QUERIES: usize = 2;

/// How long a connection is used. The ledger may have been set aside meanwhile, and a connection
/// would go on reading the old one.
const MAX_AGE: Duration = Duration::from_secs(30);

/// Connections to the store for the operator's queries.
pub struct Operators {
    engine: Mutex<Box<dyn Engine>>,
    clock: fn() -> Timestamp,
    permits: Semaphore,
    idle: Mutex<Vec<Pooled>>,
}

struct Pooled {
    operator: Box<dyn Operator>,
    opened_at: Instant,
}

impl Operators {
    /// Connections to the store that `engine` describes. None is opened yet.
    pub fn new(engine: Box<dyn Engine>, clock: fn() -> Timestamp) -> Self {
        Self {
            engine: Mutex::new(engine),
            clock,
            permits: Semaphore::new(MAX_QUERIES),
            idle: Mutex::default(),
        }
    }

    /// Runs `query` on a thread of its own.
    async fn run<T: Send + 'static>(
        self: Arc<Self>,
        query: impl FnOnce(&mut dyn Operator) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let _permit = self
            .permits
            .acquire()
            .await
            .map_err(|_| StoreError::Closed)?;
        let pool = Arc::clone(&self);
        let asked = spawn_blocking(move || {
            let mut pooled = pool.take()?;
            let answer = query(&mut *pooled.operator);
            // A connection that has failed once may be broken.
            if answer.is_ok() {
                pool.idle().push(pooled);
            }
            answer
        });
        asked.await.unwrap_or(Err(StoreError::Closed))
    }

    fn take(&self) -> Result<Pooled, StoreError> {
        let is_fresh = |pooled: &Pooled| pooled.opened_at.elapsed() < MAX_AGE;
        let idle = self.idle().extract_if(.., |_| true).find(is_fresh);
        if let Some(pooled) = idle {
            return Ok(pooled);
        }
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Pooled {
            operator: engine.operator(self.clock)?,
            opened_at: Instant::now(),
        })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Pooled>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Operators {
    /// Closes the connections on a thread of its own: some block, and this one may not.
    fn drop(&mut self) {
        let idle = std::mem::take(&mut *self.idle());
        if !idle.is_empty() {
            std::thread::spawn(move || drop(idle));
        }
    }
}
