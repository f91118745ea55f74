//! The PostgreSQL store: one database, and as many replicas on it as there are.
//!
//! # Constraints
//!
//! A replica can die, freeze and come back, or lose its network, at any moment, and so can the
//! database's primary. No replica knows of another one but through the database. The clocks of the
//! replicas differ. An event that was acknowledged is in the database for good; an event that was
//! not may be there all the same, and then its resend is a copy of it.
//!
//! # Tables
//!
//! They are in the schema `hookswitch`; `001.sql` and its successors have them with their columns.
//!
//! | table | a row is | it changes |
//! |---|---|---|
//! | `events` | an event with its body; a partition for each day (UTC) of arrival | never |
//! | `seen` | a dedupe key; small and apart, since a unique key of `events` would hold for one day only | never |
//! | `topics` | the latest provider time of a topic, known by a hash | with newer events |
//! | `unlearnt` | an event whose topics are still to be added to `topics`, since it has very many | comes and goes with the event |
//! | `handlers` | a handler, and when a replica named it last | every few seconds |
//! | `deliveries` | a delivery that is open, narrow, with its first ordering key | with each retry; deleted at its end |
//! | `further_keys` | an ordering key behind the first one of an open delivery | comes and goes with the delivery |
//! | `claims` | a claim: who is at work on which delivery | comes and goes with each attempt |
//! | `ended` | a delivery that is parked, done or skipped; by day, as its event | when it is replayed |
//! | `attempts` | an attempt that did not end well; by day, as its event | never |
//! | `tally` | a change of the counts of open and parked deliveries | added up every few seconds |
//! | `moves` | a store that was moved in, or is being moved | with each move |
//!
//! So what changes often is small, however much is stored, and old days are dropped whole.
//!
//! # Appends
//!
//! What waits is taken together (see `append`). One statement, a transaction of its own, looks for the
//! dedupe keys, and where it finds none of them draws a position for each event and adds keys, topics,
//! events, deliveries and counts. Where it finds some it adds nothing, and is made again without the
//! copies. Two replicas that store copies at once meet in the unique key of `seen`: the later one fails,
//! looks again, and finds a copy. Copies are answered behind a commit as well, since what they are
//! copies of may have been committed here and not on a standby yet.
//!
//! A position is drawn after the events before it in their sender's order have been committed, so
//! an event that was acknowledged before another was sent has the smaller one. Between events that
//! were under way at the same time any order is right.
//!
//! # Order
//!
//! Two deliveries of one ordered handler conflict if their events share an ordering key. Keys stand in a
//! scope, and a delivery of all keys of its scope conflicts with every other one of the scope.
//!
//! The claims of one handler are made one after the other, by a lock that a claim holds until its
//! commit. So a claim, whose snapshot is taken under the lock, sees all claims before it. A delivery may
//! be claimed if no open delivery conflicts with it that is older, and no claim. What it waits for is
//! looked up by the index of scope and key: the youngest older delivery for each of its keys, and for
//! all keys of the scope.
//!
//! That a delivery is ready is a hint. Appends add deliveries as ready, but for those that wait for one
//! of the same batch, and take no lock that a claim or a settlement waits for. A claim that comes upon
//! one that has to wait has it queued behind what it waits for; a settlement that ends a delivery wakes
//! what is queued behind it. The deliveries of one scope and first key are a line, and what waits for the
//! one before it in its line needs no note of that: where a run ends, the oldest of its line is woken.
//!
//! No wake-up is lost. Who queues a delivery locks the one that it waits for, so that this does not end
//! before the queueing is committed, and does not queue behind one that is ending at that moment. A
//! settlement wakes by a statement of its own, after the one that ends deliveries: where that had to
//! wait for such a lock, the next statement's snapshot has what was queued meanwhile. A claim that ran
//! out is taken over where it was: its delivery is ready, or made ready.
//!
//! Whoever claims a delivery of one key claims a run: the deliveries that follow it in its line, 16 at
//! most. The next one of the run is handed out by the settlement of the one before it, in whose
//! transaction the claim stays. So a claim, which has to wait for the disk, is paid once a run, and
//! nothing is attempted before the end of what was before it is on record. A replay that comes to stand
//! before the rest of a run is made after it. Claims pass over what is in a run, as far as `claims.last`
//! says: who queued it would make the run's settlements wait.
//!
//! An event of more keys than `event::ordering::MOST_KEYS` has all keys of its scope, so a
//! delivery has at most so many rows of `further_keys`, and a look at it takes at most so many look-ups.
//! What a whole scope waits for is looked for among all that is open of the scope.
//!
//! # Leases
//!
//! A claim holds until `claims.until`, by the database's clock, and is renewed from a third of that
//! time on. A settlement carries the claim's token, and everything it changes hangs on deleting the
//! row that still has it: who was frozen past the lease changes nothing. Before an attempt begins
//! the process asks its own clock whether the lease can still be good. No transaction is open while
//! a handler works.
//!
//! Claims wait for the disk, and for standbys, as appends do: had a crash or a failover forgotten
//! a claim, its delivery could be under way twice, and the slower one come after the next of its key.
//! Settlements do not wait. What a crash takes away of them, a second at most, is
//! made again once their claims have run out: deliveries come twice, in order.
//!
//! # Locks
//!
//! In this order: the lock of a handler's claims, dedupe keys and topics, each kind ascending and both
//! by the one statement that adds them, then rows of `claims`, then deliveries, ascending as well.
//! What is queued behind a delivery locks it only where nobody else has (`SKIP LOCKED`). Where two
//! transactions collide in spite of that, one is taken back and made again. A replica that vanishes
//! within a transaction keeps its locks for `statement_timeout` at most.
//!
//! # What happens when
//!
//! | failure | what happens |
//! |---|---|
//! | no server, no primary, disk full, too many connections | appends are refused at once with [`AppendError::Unavailable`], the store is [`Health::Unavailable`]; it is tried again after 0.1 s, then ever more slowly up to 2 s, with a transaction that must become durable |
//! | a COMMIT takes longer than [`APPEND_BUDGET`](super::APPEND_BUDGET), such as one that waits for a standby | the same; the COMMIT is not cut short, since that would have it done here alone |
//! | claims or settlements fail or hang for 5 s while the database takes events | the service is not ready until they go on; events are stored all the same |
//! | the connection is lost in a COMMIT | the outcome is not known: an error for the sender, whose resend is a copy if it was done |
//! | one event of a batch cannot be stored | the batch is halved until that one is alone; the others are stored |
//! | no partition for a day | it is made, and the transaction done again |
//! | a replica dies | its claims run out, and others take them |
//! | a store is moved in while a service runs | it is refused, by the lock of who does the upkeep |
//! | a service starts while a store is moved in, or after that was cut short | it answers 503 until all of it is there |
//! | a replica freezes and comes back | its settlements of claims that ran out change nothing |
//! | notices do not come through | replicas look for work every second |
//! | a wrong password, no such database, tables of a newer version, `synchronous_commit` off | at the start: the service ends and says so; later: as if there were no server, or, for newer tables, [`Health::Poisoned`] |
//! | no server at the start | the service starts, and answers 503 until there is one |
//!
//! # Other engines
//!
//! What of PostgreSQL is used that an engine which speaks its language may lack. None of them is
//! part of the tests.
//!
//! | feature | used for | without it |
//! |---|---|---|
//! | declarative partitions (`PARTITION BY LIST`) | dropping old days | no store can be made: CockroachDB, Aurora DSQL |
//! | `FOR KEY SHARE SKIP LOCKED` | queueing without a lost wake-up | no claims: Aurora DSQL |
//! | sequences that ascend over all nodes | order of events of one key | order is lost: YugabyteDB unless sequences are cached on the server, with a cache of 1 |
//! | `pg_advisory_xact_lock` | claims one after the other; making tables and partitions | no store can be made: Aurora DSQL, older YugabyteDB |
//! | `pg_try_advisory_lock` | one replica for upkeep | several do it, which is harmless |
//! | `LISTEN`, `NOTIFY` | waking other replicas | they look every second: Aurora DSQL, YugabyteDB, CockroachDB |
//! | session settings, session locks | all of it | poolers must be in session mode |
//!
//! **Invariant:** an append is answered `Ok` only after the COMMIT of its transaction has returned
//! on a connection whose `synchronous_commit` is not off or local.
//!
//! **Invariant:** statements that are used often follow indexes, however much is stored and whatever
//! the planner believes; a test keeps it so.

mod append;
mod batch;
mod claim;
mod error;
mod escape;
mod exclusive_lock;
mod health_monitor;
mod leases;
mod maintenance;
mod notify;
mod operator;
mod ordering;
mod partition;
mod pool;
mod registry;
mod replay;
mod rows;
mod schema;
mod settings;
mod settle;
mod statistics;
mod target;
#[cfg(test)]
pub(super) mod tests;
mod tls;
mod topics;

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

pub use self::settings::Settings;
use self::{
    append::{AppendQueue, COMMITTERS},
    error::PgError,
    leases::Leases,
    pool::{Connector, Durability, Pool, on},
    registry::HandlerRegistry,
};
use super::{
    Append, AppendError, BoxFuture, Claim, Claims, Context, Deliveries, Engine, Followers, Health,
    Lease, Monitored, Operator, Settlement, Store, StoreError, StoreKind, Subscription,
    TransferTarget,
    health::HealthReporter,
    pending::{self, Ack},
};
use crate::{
    cleartext::CleartextWarning, event::HandlerName, provider::Verified, telemetry::Metrics,
};

/// How long the end of everything may take.
const CLOSING: Duration = Duration::from_secs(5);

impl StoreKind for Settings {
    const KIND: &'static str = "postgres";

    fn check(&self) -> Result<(), String> {
        self.tls().map(|_| ())
    }
}

impl Engine for Settings {
    fn cleartext_warning(&self) -> Option<CleartextWarning> {
        self.url.cleartext_warning()
    }

    fn open(&self, context: Context) -> Result<Arc<dyn Store>, StoreError> {
        let store = Handle::current().block_on(Postgres::open(self.clone(), context))?;
        Ok(Arc::new(store))
    }

    fn operator(&self, _: fn() -> Timestamp) -> Result<Box<dyn Operator>, StoreError> {
        Ok(Box::new(operator::OperatorConnection::open(self)?))
    }

    fn target(&self) -> Result<Box<dyn TransferTarget>, StoreError> {
        Ok(Box::new(operator::OperatorConnection::create(self)?))
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
    shared: Arc<Shared>,
}

/// What its tasks share.
struct Shared {
    settings: Settings,
    context: Context,
    connector: Connector,
    /// For events that arrive: their transactions are waited for.
    appends: Pool,
    /// For claims, which a crash of the database must not take back: whoever had them goes on.
    claims: Pool,
    /// For everything else.
    pool: Pool,
    append_queue: AppendQueue,
    registry: HandlerRegistry,
    leases: Leases,
    health: HealthReporter,
    work: watch::Sender<u64>,
    /// There is work that other replicas may not know of.
    replica_wakeup: Notify,
    /// There is something for the steward to look at.
    health_check: Notify,
    /// There is something for upkeep to do at once.
    maintenance: Notify,
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
        let unseen = Health::Unavailable {
            why: "the database has not been looked at".to_owned(),
        };
        let health = HealthReporter::new(unseen, context.metrics.clone());
        let shared = Arc::new(Shared {
            // One more than there are committers, for who looks after them.
            appends: pool(Durability::Full, COMMITTERS + 1),
            claims: pool(Durability::Full, settings.connections.div_ceil(2)),
            pool: pool(Durability::Lazy, settings.connections / 2),
            append_queue: AppendQueue::new(),
            registry: HandlerRegistry::default(),
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
        });
        health_monitor::begin(&shared).await?;
        for _ in 0..COMMITTERS {
            shared.committers.spawn(append::run(shared.clone()));
        }
        shared.committers.close();
        shared.tasks.spawn(health_monitor::run(shared.clone()));
        shared.tasks.spawn(notify::tell(shared.clone()));
        shared.tasks.spawn(notify::listen(shared.clone()));
        shared.tasks.spawn(maintenance::run(shared.clone()));
        Ok(Self { shared })
    }
}

impl Store for Postgres {
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.shared.close().await;
            Ok(())
        })
    }
}

impl Append for Postgres {
    fn append(&self, event: Verified) -> BoxFuture<'_, Result<(), AppendError>> {
        Box::pin(pending::acknowledged(self.shared.put(event)))
    }
}

impl Deliveries for Postgres {
    fn subscribe(&self, subscriptions: Vec<Subscription>) -> BoxFuture<'_, Result<(), StoreError>> {
        let shared = self.shared.clone();
        Box::pin(async move { health_monitor::subscribe(&shared, subscriptions).await })
    }

    fn claim(
        &self,
        handler: &HandlerName,
        at_most: usize,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<Claims, StoreError>> {
        let handler = self.shared.registry.find(handler);
        Box::pin(async move {
            let Some(handler) = handler.filter(|_| self.shared.is_sound() && at_most > 0) else {
                return Ok(Claims::default());
            };
            let claimed = claim::claim(&self.shared, &handler, at_most, now).await;
            self.shared.watched(claimed, "claiming deliveries")
        })
    }

    fn settle(
        &self,
        settlements: Arc<[Settlement]>,
    ) -> BoxFuture<'_, Result<Vec<Claim>, StoreError>> {
        Box::pin(async move {
            let settled = settle::settle(&self.shared, &settlements).await;
            let next = self.shared.watched(settled, "settling deliveries")?;
            if next.len() < settlements.len() {
                self.shared.wake_local();
            }
            Ok(next)
        })
    }

    fn holds(&self, lease: Lease) -> bool {
        self.shared.leases.holds(lease)
    }

    fn work(&self) -> watch::Receiver<u64> {
        self.shared.work.subscribe()
    }
}

impl Monitored for Postgres {
    fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    fn followers(&self) -> Followers {
        self.shared.health.followers().clone()
    }

    fn measure(&self, now: Timestamp) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let measured = self.shared.measure(now).await;
            self.shared.watched(measured, "measuring")
        })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.shared.let_go();
    }
}

impl Shared {
    fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    /// Has an event stored, if any are taken.
    fn put(&self, event: Verified) -> Result<Ack, AppendError> {
        if self.stop.is_cancelled() {
            return Err(AppendError::Closed);
        }
        self.health.check()?;
        self.append_queue.put(event)
    }

    fn is_sound(&self) -> bool {
        self.health.get() == Health::Sound
    }

    /// There may be something to claim, for everybody.
    fn wake_all(&self) {
        self.wake_local();
        self.replica_wakeup.notify_one();
    }

    /// There may be something to claim, for us.
    fn wake_local(&self) {
        self.work.send_modify(|count| *count += 1);
    }

    /// Takes note of a fault that concerns more than what it was found by.
    fn lose(&self, error: &PgError) {
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

    /// `result` as the error of what was done, noted where it concerns more than that.
    fn watched<T>(&self, result: Result<T, PgError>, what: &str) -> Result<T, StoreError> {
        result.map_err(|error| {
            // Too few connections for what is asked are no sign of trouble with the database, and
            // it is asked again by whoever looks.
            self.health_check.notify_one();
            error.into_store_error(what)
        })
    }

    async fn measure(&self, now: Timestamp) -> Result<(), PgError> {
        on!(self.pool, connection => statistics::measure(&mut connection, self.metrics(), now))
    }

    /// Stores what waits, gives every claim up, and ends the tasks.
    async fn close(&self) {
        self.append_queue.close();
        let closing = async {
            self.committers.wait().await;
            let released = on!(self.pool, connection => self.leases.release(&mut connection));
            if let Err(error) = released {
                tracing::debug!("claims are left to run out: {error}");
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
