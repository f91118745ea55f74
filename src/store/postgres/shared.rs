//! The state that the tasks of a store share, and the end of the tasks.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_postgres::Client;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{
    append::{AppendQueue, COMMITTERS},
    error::PgError,
    leases::Leases,
    pool::{Connector, Durability, Pool, on},
    registry::HandlerRegistry,
    settings::Settings,
    statistics, terms,
};
use crate::{
    provider::Verified,
    store::{
        AppendError, Context, Health, StoreError, health::HealthReporter, pending::Ack,
        terms::TermHasher,
    },
    telemetry::Metrics,
};

/// The limit of an orderly end of the store.
const CLOSING: Duration = Duration::from_secs(5);

/// The state that the tasks share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) context: Context,
    pub(super) connector: Connector,
    /// For appends, whose commits are durable.
    pub(super) appends: Pool,
    /// For claims, whose commits are durable: a crash of the database must not lose a claim whose
    /// attempt goes on.
    pub(super) claims: Pool,
    /// For everything else, with lazy commits.
    pub(super) pool: Pool,
    pub(super) append_queue: AppendQueue,
    pub(super) registry: HandlerRegistry,
    /// Set once the key of the terms has been read.
    hasher: OnceLock<TermHasher>,
    pub(super) leases: Leases,
    pub(super) health: HealthReporter,
    pub(super) work: watch::Sender<u64>,
    /// Other replicas are to be notified of work.
    pub(super) replica_wakeup: Notify,
    /// The database is to be checked at once.
    pub(super) health_check: Notify,
    /// Maintenance is to run at once.
    pub(super) maintenance: Notify,
    /// The name of this replica in notifications.
    pub(super) replica: String,
    pub(super) opened: Instant,
    /// The tasks that store appends. They end by themselves when the queue is closed.
    pub(super) committers: TaskTracker,
    /// All other tasks, including those of connections.
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl Shared {
    pub(super) fn new(settings: Settings, context: Context) -> Result<Self, StoreError> {
        let tasks = TaskTracker::new();
        let connector = settings.connector(tasks.clone())?;
        let patience = settings.statement_timeout + Duration::from_secs(1);
        let pool = |durability, size| Pool::new(connector.clone(), durability, size, patience);
        let unseen = Health::Unavailable {
            why: "the database has not been checked yet".to_owned(),
        };
        let health = HealthReporter::new(unseen, context.metrics.clone());
        Ok(Self {
            // One for each committer, and one for the health monitor.
            appends: pool(Durability::Full, COMMITTERS + 1),
            claims: pool(Durability::Full, settings.connections.div_ceil(2)),
            pool: pool(Durability::Lazy, settings.connections / 2),
            append_queue: AppendQueue::new(),
            registry: HandlerRegistry::default(),
            hasher: OnceLock::new(),
            leases: Leases::new(settings.lease),
            health,
            work: watch::Sender::new(0),
            replica_wakeup: Notify::new(),
            health_check: Notify::new(),
            maintenance: Notify::new(),
            replica: Uuid::now_v7().to_string(),
            opened: Instant::now(),
            committers: TaskTracker::new(),
            stop: CancellationToken::new(),
            settings,
            context,
            connector,
            tasks,
        })
    }

    /// The hasher of the terms, whose key is read the first time.
    pub(super) async fn hasher(&self, client: &Client) -> Result<&TermHasher, PgError> {
        if let Some(hasher) = self.hasher.get() {
            return Ok(hasher);
        }
        let hasher = terms::hasher(client).await?;
        Ok(self.hasher.get_or_init(|| hasher))
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    /// Queues an event, if the store accepts events.
    pub(super) fn put(&self, event: Verified) -> Result<Ack, AppendError> {
        if self.stop.is_cancelled() {
            return Err(AppendError::Closed);
        }
        self.health.check()?;
        self.append_queue.put(event)
    }

    pub(super) fn is_sound(&self) -> bool {
        self.health.get() == Health::Sound
    }

    /// Wakes workers of all replicas.
    pub(super) fn wake_all(&self) {
        self.wake_local();
        self.replica_wakeup.notify_one();
    }

    /// Wakes the workers of this replica.
    pub(super) fn wake_local(&self) {
        self.work.send_modify(|count| *count += 1);
    }

    /// Marks the store unavailable, if `error` concerns more than one operation.
    pub(super) fn mark_unavailable(&self, error: &PgError) {
        if !matches!(error, PgError::Unavailable(_) | PgError::Fatal(_)) {
            return;
        }
        self.health.set(Health::Unavailable {
            why: error.to_string(),
        });
        for pool in self.pools() {
            pool.forget();
        }
        self.health_check.notify_one();
    }

    /// Converts the error of an operation, and has the database checked.
    pub(super) fn checked_on_error<T>(
        &self,
        result: Result<T, PgError>,
        what: &str,
    ) -> Result<T, StoreError> {
        result.map_err(|error| {
            // The error may be a mere lack of free connections: the check decides about the health.
            self.health_check.notify_one();
            error.into_store_error(what)
        })
    }

    pub(super) async fn measure(&self, now: Timestamp) -> Result<(), PgError> {
        on!(self.pool, connection => statistics::measure(&mut connection, self.metrics(), now))
    }

    /// Stores waiting appends, releases all claims, and ends the tasks.
    pub(super) async fn close(&self) {
        self.append_queue.close();
        let closing = async {
            self.committers.wait().await;
            let released = on!(self.pool, connection => self.leases.release(&mut connection));
            if let Err(error) = released {
                tracing::debug!("claims are left to expire: {error}");
            }
        };
        if timeout(CLOSING, closing).await.is_err() {
            tracing::warn!("the store was not closed in order: the database does not answer");
        }
        self.stop_tasks();
        if timeout(CLOSING, self.tasks.wait()).await.is_err() {
            tracing::debug!("connections to the database end with the process");
        }
    }

    pub(super) fn stop_tasks(&self) {
        self.append_queue.close();
        self.stop.cancel();
        self.tasks.close();
        for pool in self.pools() {
            pool.close();
        }
    }

    const fn pools(&self) -> [&Pool; 3] {
        [&self.appends, &self.claims, &self.pool]
    }
}
