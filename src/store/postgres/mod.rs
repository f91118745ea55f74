//! The PostgreSQL store: one database for many replicas.
mod append;
mod batch;
mod claim;
mod fault;
mod leases;
mod notify;
mod partition;
mod pool;
mod records;
mod replay;
mod roster;
mod rows;
mod schema;
mod settings;
mod settle;
mod standing;
mod steward;
mod text;
mod tls;
mod upkeep;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

pub use self::settings::{Address, BadAddress, Settings};
use self::{
    append::{COMMITTERS, Inbox},
    fault::Fault,
    leases::Leases,
    pool::{Connector, Durability, Pool, within},
    roster::Roster,
};
use super::{
    AppendError, BoxFuture, Claims, Context, Engine, Health, Kind, Lease, Records, Settlement,
    Store, StoreError, Subscription,
};
use crate::{event::HandlerName, provider::Verified, telemetry::Metrics};

/// How long the end of everything may take.
const CLOSING: Duration = Duration::from_secs(5);

impl Kind for Settings {
    const KIND: &'static str = "postgres";
}

impl Engine for Settings {
    fn open(&self, context: Context) -> Result<Arc<dyn Store>, StoreError> {
        let store = Handle::current().block_on(Postgres::open(self.clone(), context))?;
        Ok(Arc::new(store))
    }

    fn records(&self) -> Result<Box<dyn Records>, StoreError> {
        Ok(Box::new(records::Operator::open(self)?))
    }
}

impl Settings {
    /// How connections are made, with their tasks on `tasks`.
    fn connector(&self, tasks: TaskTracker) -> Result<Connector, StoreError> {
        Ok(Connector {
            hosts: self.url.hosts(),
            tls: tls::connector(self)?,
            statement_timeout: self.statement_timeout,
            tasks,
        })
    }
}

/// An open store. Ends its tasks when it is dropped.
pub(super) struct Postgres {
    parts: Arc<Parts>,
}

/// What its tasks share.
struct Parts {
    settings: Settings,
    context: Context,
    connector: Connector,
    /// For events that arrive: their transactions are waited for.
    appends: Pool,
    /// For everything else.
    pool: Pool,
    inbox: Inbox,
    roster: Roster,
    leases: Leases,
    health: watch::Sender<Health>,
    work: watch::Sender<u64>,
    /// There is work that other replicas may not know of.
    news: Notify,
    /// There is something for the steward to look at.
    alarm: Notify,
    /// There is something for upkeep to do at once.
    chores: Notify,
    /// Our name among the replicas.
    replica: String,
    opened: Instant,
    /// Those that store events, which end by themselves when there are no more.
    committers: TaskTracker,
    /// All others, with those of the connections.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Postgres {
    async fn open(settings: Settings, context: Context) -> Result<Self, StoreError> {
        let tasks = TaskTracker::new();
        let connector = settings.connector(tasks.clone())?;
        let patience = settings.statement_timeout + Duration::from_secs(1);
        let pool = |durability, size| Pool::new(connector.clone(), durability, size, patience);
        let parts = Arc::new(Parts {
            // One more than there are committers, for who looks after them.
            appends: pool(Durability::Full, COMMITTERS + 1),
            pool: pool(Durability::Lazy, settings.connections),
            inbox: Inbox::new(),
            roster: Roster::new(),
            leases: Leases::new(settings.lease),
            health: watch::Sender::new(Health::Full {
                why: "the database has not been looked at".to_owned(),
            }),
            work: watch::Sender::new(0),
            news: Notify::new(),
            alarm: Notify::new(),
            chores: Notify::new(),
            replica: Uuid::now_v7().to_string(),
            opened: Instant::now(),
            committers: TaskTracker::new(),
            stop: CancellationToken::new(),
            settings,
            context,
            connector,
            tasks,
        });
        steward::begin(&parts).await?;
        for _ in 0..COMMITTERS {
            parts.committers.spawn(append::run(parts.clone()));
        }
        parts.committers.close();
        parts.tasks.spawn(steward::run(parts.clone()));
        parts.tasks.spawn(notify::tell(parts.clone()));
        parts.tasks.spawn(notify::listen(parts.clone()));
        parts.tasks.spawn(upkeep::run(parts.clone()));
        Ok(Self { parts })
    }
}

impl Store for Postgres {
    fn append(&self, event: Verified) -> BoxFuture<'_, Result<(), AppendError>> {
        let waiting = self.parts.put(event);
        Box::pin(async move {
            match waiting?.await {
                Ok(stored) => stored,
                Err(_) => Err(AppendError::Closed),
            }
        })
    }

    fn subscribe(&self, subscriptions: Vec<Subscription>) -> BoxFuture<'_, Result<(), StoreError>> {
        let parts = self.parts.clone();
        Box::pin(async move { steward::subscribe(&parts, subscriptions).await })
    }

    fn claim(
        &self,
        handler: &HandlerName,
        at_most: usize,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<Claims, StoreError>> {
        let handler = self.parts.roster.find(handler);
        Box::pin(async move {
            let Some(handler) = handler.filter(|_| self.parts.is_sound() && at_most > 0) else {
                return Ok(Claims::default());
            };
            let claimed = claim::claim(&self.parts, &handler, at_most, now).await;
            self.parts.watched(claimed, "claiming deliveries")
        })
    }

    fn settle(&self, settlements: Vec<Settlement>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let settled = settle::settle(&self.parts, &settlements).await;
            self.parts.watched(settled, "settling deliveries")?;
            self.parts.stir_here();
            Ok(())
        })
    }

    fn holds(&self, lease: Lease) -> bool {
        self.parts.leases.holds(lease)
    }

    fn work(&self) -> watch::Receiver<u64> {
        self.parts.work.subscribe()
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.parts.health.subscribe()
    }

    fn measure(&self, now: Timestamp) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let measured = self.parts.measure(now).await;
            self.parts.watched(measured, "measuring")
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.parts.close().await;
            Ok(())
        })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.parts.let_go();
    }
}

impl Parts {
    fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    /// Has an event stored, if any are taken.
    fn put(&self, event: Verified) -> Result<append::Answer, AppendError> {
        match &*self.health.borrow() {
            _ if self.stop.is_cancelled() => Err(AppendError::Closed),
            Health::Sound => self.inbox.put(event.into_notification()),
            Health::Full { why } => Err(AppendError::Full(why.clone())),
            Health::Poisoned { why } => Err(AppendError::Poisoned(why.clone())),
        }
    }

    fn is_sound(&self) -> bool {
        *self.health.borrow() == Health::Sound
    }

    /// There may be something to claim, for everybody.
    fn stir(&self) {
        self.stir_here();
        self.news.notify_one();
    }

    /// There may be something to claim, for us.
    fn stir_here(&self) {
        self.work.send_modify(|count| *count += 1);
    }

    /// Takes note of a fault that concerns more than what it was found by.
    fn lose(&self, fault: &Fault) {
        if !matches!(fault, Fault::Away(_) | Fault::Hopeless(_)) {
            return;
        }
        self.set_health(Health::Full {
            why: fault.to_string(),
        });
        self.appends.forget();
        self.pool.forget();
        self.alarm.notify_one();
    }

    /// `result` as the error of what was done, noted where it concerns more than that.
    fn watched<T>(&self, result: Result<T, Fault>, what: &str) -> Result<T, StoreError> {
        result.map_err(|fault| {
            // Too few connections for what is asked are no sign of trouble with the database, and
            // it is asked again by whoever looks.
            self.alarm.notify_one();
            fault.during(what)
        })
    }

    /// Poison is for ever.
    fn set_health(&self, health: Health) {
        let changed = self.health.send_if_modified(|before| {
            let changes = *before != health && !matches!(before, Health::Poisoned { .. });
            if changes {
                *before = health.clone();
            }
            changes
        });
        if !changed {
            return;
        }
        let sound = matches!(health, Health::Sound);
        self.metrics().store_sound.set(i64::from(sound));
        match &health {
            Health::Sound => tracing::info!("the store takes events"),
            Health::Full { why } => tracing::warn!("the store refuses events: {why}"),
            Health::Poisoned { why } => tracing::error!("the store is poisoned: {why}"),
        }
    }

    async fn measure(&self, now: Timestamp) -> Result<(), Fault> {
        let mut taken = self.pool.take().await?;
        let deadline = taken.deadline();
        let work = standing::measure(&mut taken, self.metrics(), now);
        let measured = within(deadline, work).await;
        taken.give_back(measured)
    }

    /// Stores what waits, gives every claim up, and ends the tasks.
    async fn close(&self) {
        self.inbox.close();
        let closing = async {
            self.committers.wait().await;
            if let Ok(mut taken) = self.pool.take().await {
                let released = self.leases.release(&mut taken).await;
                if let Err(fault) = taken.give_back(released) {
                    tracing::debug!("claims are left to run out: {fault}");
                }
            }
        };
        if timeout(CLOSING, closing).await.is_err() {
            tracing::warn!("the database did not let us close in order");
        }
        self.let_go();
        if timeout(CLOSING, self.tasks.wait()).await.is_err() {
            tracing::debug!("connections to the database end with the process");
        }
    }

    fn let_go(&self) {
        self.inbox.close();
        self.stop.cancel();
        self.tasks.close();
        self.appends.close();
        self.pool.close();
    }
}
