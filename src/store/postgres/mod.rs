//! The PostgreSQL store: one database for any number of replicas.
//!
//! # Constraints
//!
//! A replica can die, freeze and come back, or lose its network at any moment. So can the database's
//! primary. Replicas know of each other only through the database, and their clocks differ. An
//! acknowledged event is in the database for good. An event that was not acknowledged may be there all
//! the same, and then the provider's resend is a duplicate.
//!
//! # Tables
//!
//! The tables are in the schema `hookswitch`. `001.sql` and its successors define them.
//!
//! | table | a row is | rows change |
//! |---|---|---|
//! | `events` | an event with its body; partitioned by day (UTC) of receipt | never |
//! | `seen` | a dedupe key; a small table of its own, since a unique key of `events` could span one day only | never |
//! | `topics` | the latest provider time of a topic, identified by a hash | with newer events |
//! | `terms` | a hash of a number, an extension or a key that an event is looked up by; partitioned as its event | never |
//! | `term_key` | the key of these hashes | never |
//! | `unindexed` | events that may lack their terms | until they have them |
//! | `unlearnt` | an event with very many topics, which are not in `topics` yet | with the event |
//! | `handlers` | a handler, and when a replica last named it | every few seconds |
//! | `deliveries` | an open delivery, narrow, with its first ordering key | with each retry; deleted at the end |
//! | `further_keys` | a further ordering key of an open delivery | with the delivery |
//! | `claims` | a claim of a delivery by a replica | with each attempt |
//! | `ended` | a parked, done or skipped delivery; partitioned as its event | with a replay |
//! | `attempts` | a failed attempt; partitioned as its event | never |
//! | `tally` | a change of the counts of open and parked deliveries | added up every few seconds |
//! | `moves` | a transfer into this store | with each transfer |
//!
//! So the rows that change often are few and small, however much is stored, and old days are dropped as
//! a whole.
//!
//! # Appends
//!
//! Waiting appends are stored together (see `append`), by one statement, which is a transaction. The
//! statement looks for the dedupe keys. If it finds none of them, it draws a position for each event and
//! adds keys, topics, events, deliveries and counts. If it finds some, it adds nothing, and is repeated
//! without the duplicates. When two replicas store duplicates at once, the unique key of `seen` makes the
//! later one fail; its repetition finds the duplicate. Duplicates are acknowledged after a commit too,
//! since the events that they duplicate may have been committed here, and not on a standby yet.
//!
//! If an event was acknowledged before another one was sent, it has the smaller position. Events that
//! were sent concurrently may be stored in any order.
//!
//! # Order
//!
//! Two deliveries of one ordered handler conflict if their events share an ordering key. A key belongs to
//! a scope, and a delivery with all keys of its scope conflicts with every other one of the scope.
//!
//! Claims of one handler are serialized by a lock, which a claim holds until its commit. The claim takes
//! its snapshot under the lock, and so sees all earlier claims. A delivery can be claimed if it conflicts
//! with no older open delivery and with no claimed one. The claim finds the blocker of a delivery in the
//! index of scope and key: the youngest older delivery of each of its keys, and of all keys of the scope.
//!
//! The state "ready" is a hint. An append adds deliveries as ready, unless they wait for one of the same
//! batch, and takes no lock that a claim or a settlement waits for. A claim that finds a blocked delivery
//! queues it behind its blocker. A settlement that ends a delivery wakes the deliveries that are queued
//! behind it. The deliveries of one scope and first key form an ordering group. A delivery that waits for
//! its predecessor in the group needs no note of it: when a run ends, the oldest delivery of its group is
//! woken.
//!
//! No wake-up is lost. Whoever queues a delivery locks its blocker, so that the blocker does not end
//! before the queueing is committed. A blocker that is ending at that moment is skipped. A settlement
//! wakes queued deliveries by a second statement, whose snapshot includes what was queued while the first
//! one waited for such a lock. An expired claim is taken over as it is: its delivery is ready, or is made
//! ready.
//!
//! A claim of a delivery with one key takes a run: the delivery and its successors in the ordering group,
//! 32 at most. The settlement of each delivery of a run hands out the next one, and the claim stays, in
//! the same transaction. So a claim, which has to wait for the disk, is made once a run, and no delivery
//! is attempted before the end of its predecessor is recorded. A replayed delivery that precedes the rest
//! of a run is attempted after the run. Claims ignore the deliveries of a run, up to `claims.last`: to
//! queue them would delay the run's settlements.
//!
//! An event with more than `event::ordering::MAX_KEYS` keys has all keys of its scope. So a
//! delivery has a bounded number of rows in `further_keys`, and checking it takes a bounded number of
//! look-ups. The blocker of a delivery with all keys is searched among all open deliveries of the scope.
//!
//! # Leases
//!
//! A claim expires at `claims.until`, by the database's clock, and is renewed when a third of its term is
//! over. A settlement carries the claim's token and depends on the claim's row: a replica that was frozen
//! past its lease changes nothing. Before an attempt begins, the replica checks by its own clock whether
//! the lease can still be valid. No transaction is open while a handler works.
//!
//! Claims wait for the disk and for standbys, as appends do: if a crash or a failover lost a claim, its
//! delivery could be attempted twice at once, and the slower attempt could end after the key's next one.
//! Settlements do not wait. A crash loses at most one second of settlements. Their deliveries are made
//! again after their claims have expired: twice, and in order.
//!
//! # Locks
//!
//! Locks are taken in this order: the lock of a handler's claims; dedupe keys and topics, each ascending,
//! by the one statement that adds them; rows of `claims`; deliveries, ascending. Queueing behind a
//! delivery skips locked rows (`SKIP LOCKED`). If two transactions conflict all the same, one is rolled
//! back and repeated. A replica that vanishes within a transaction keeps its locks for
//! `statement_timeout` at most.
//!
//! # Failures
//!
//! | failure | effect |
//! |---|---|
//! | no server, no primary, disk full, too many connections | appends are refused at once with [`AppendError::Unavailable`], and the store is [`Health::Unavailable`]; it tries a durable transaction again after 0.1 s, and then at intervals of up to 2 s |
//! | a COMMIT takes longer than [`APPEND_BUDGET`](super::APPEND_BUDGET), for example while it waits for a standby | the same; the COMMIT is not cancelled, since then it would be done here alone |
//! | claims or settlements fail or hang for 5 s while the database accepts events | the service is not ready until they make progress; events are stored all the same |
//! | the connection is lost during a COMMIT | the outcome is unknown: the sender gets an error, and its resend is a duplicate if the COMMIT was done |
//! | one event of a batch cannot be stored | the batch is halved until the event is alone; the others are stored |
//! | a day has no partition | the partition is created, and the transaction repeated |
//! | a replica dies | its claims expire, and other replicas make them |
//! | a transfer begins while a service runs | the transfer is refused, by the lock of the maintenance |
//! | a service starts during a transfer, or after an interrupted one | it answers 503 until the transfer is complete |
//! | a replica freezes and comes back | settlements of its expired claims change nothing |
//! | notifications are lost | replicas poll every second |
//! | a wrong password, a missing database, newer tables, `synchronous_commit` off | at the start, the service ends with an error; later, as without a server, or, with newer tables, [`Health::Poisoned`] |
//! | no server at the start | the service starts, and answers 503 until the server is there |
//!
//! # Other engines
//!
//! Features of PostgreSQL that other engines with its protocol may lack. The tests cover none of these
//! engines.
//!
//! | feature | use | without the feature |
//! |---|---|---|
//! | declarative partitions (`PARTITION BY LIST`) | dropping old days | no store can be created: CockroachDB, Aurora DSQL |
//! | `FOR KEY SHARE SKIP LOCKED` | queueing without a lost wake-up | no claims: Aurora DSQL |
//! | sequences that ascend over all nodes | order of events of one key | order is lost: YugabyteDB, unless sequences are cached on the server with a cache of 1 |
//! | `pg_advisory_xact_lock` | serializing claims; creating tables and partitions | no store can be created: Aurora DSQL, older YugabyteDB |
//! | `pg_try_advisory_lock` | electing one replica for maintenance | several replicas do it, which is harmless |
//! | `LISTEN`, `NOTIFY` | waking other replicas | replicas poll every second: Aurora DSQL, YugabyteDB, CockroachDB |
//! | session settings, session locks | everything | a connection pooler must be in session mode |
//!
//! **Invariant:** an append is acknowledged only after the COMMIT of its transaction has returned, on a
//! connection whose `synchronous_commit` is neither off nor local.
//!
//! **Invariant:** frequent statements follow indexes, however much is stored and whatever the planner
//! assumes. A test checks their plans.

mod append;
mod audit;
mod batch;
mod claim;
mod error;
mod escape;
mod exclusive_lock;
mod health_monitor;
mod leases;
mod listing;
mod maintenance;
mod notify;
mod operator;
mod ordering;
mod parked;
mod partition;
mod pool;
mod registry;
mod replay;
mod rows;
mod schema;
mod settings;
mod settle;
mod shared;
mod statistics;
mod target;
mod terms;
#[cfg(test)]
pub(super) mod tests;
mod tls;
mod topics;

use std::sync::Arc;

use jiff::Timestamp;
use tokio::{runtime::Handle, sync::watch};
use tokio_util::task::TaskTracker;

pub use self::settings::Settings;
use self::{append::COMMITTERS, pool::Connector, shared::Shared};
use super::{
    Append, AppendError, BoxFuture, Claim, Claims, Context, Deliveries, Engine, Followers, Health,
    Lease, Monitored, Operator, Settlement, Store, StoreError, StoreKind, Subscription,
    TransferTarget, pending,
};
use crate::{cleartext::CleartextWarning, event::HandlerName, provider::Verified};

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
    /// Makes connections, whose tasks run on `tasks`.
    fn connector(&self, tasks: TaskTracker) -> Result<Connector, StoreError> {
        Ok(Connector {
            hosts: self.url.hosts(),
            tls: tls::connector(self)?,
            statement_timeout: self.statement_timeout,
            tasks,
        })
    }
}

/// An open store. Dropping it ends its tasks.
pub(super) struct Postgres {
    shared: Arc<Shared>,
}

impl Postgres {
    async fn open(settings: Settings, context: Context) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared::new(settings, context)?);
        health_monitor::first_check(&shared).await?;
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
            self.shared.checked_on_error(claimed, "claiming deliveries")
        })
    }

    fn settle(
        &self,
        settlements: Arc<[Settlement]>,
    ) -> BoxFuture<'_, Result<Vec<Claim>, StoreError>> {
        Box::pin(async move {
            let settled = settle::settle(&self.shared, &settlements).await;
            let next = self
                .shared
                .checked_on_error(settled, "settling deliveries")?;
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
            self.shared.checked_on_error(measured, "measuring")
        })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.shared.stop_tasks();
    }
}
