//! What only the PostgreSQL store promises.

mod acknowledgement;
mod handlers;
mod leases;
mod maintenance;
mod migration;
mod plans;
#[path = "../../../../tests/support/postgres.rs"]
mod postgres;
mod replay;
mod replicas;
mod runs;
#[path = "../../../../tests/support/server.rs"]
mod server;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use tokio_util::task::TaskTracker;

use self::postgres::Database;
use super::{
    Postgres, Settings, Shared,
    pool::{Durability, PgConnection},
};
use crate::{
    client_tls::ClientTls,
    store::{
        Context, StoreError,
        tests::{self as suite, clock},
    },
    telemetry::Metrics,
};

/// A place for the suite.
pub(in crate::store) fn place() -> suite::Place {
    let database = Database::new();
    suite::Place::new(settings(&database.url()), database).shared()
}

fn settings(url: &str) -> Settings {
    Settings {
        url: url.parse().unwrap(),
        tls: ClientTls::default(),
        connections: 4,
        statement_timeout: Duration::from_secs(30),
        lease: Duration::from_secs(3),
        retain: Duration::from_secs(3600),
        abandon_after: Duration::ZERO,
    }
}

/// A connection of somebody else.
async fn connection(database: &Database) -> PgConnection {
    let connector = settings(&database.url()).connector(TaskTracker::new());
    connector.unwrap().connect(Durability::Full).await.unwrap()
}

/// Returns when a connection waits for what is called `what` among the database's wait events.
async fn until_somebody_waits(database: &Database, what: &str) {
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = '{what}'
         AND datname = current_database()"
    );
    suite::eventually("somebody waits", async || {
        (database.sql(&waits) != "0").then_some(())
    })
    .await;
}

/// One of several services on a database, with a handler that gets everything in order.
struct Replica {
    store: suite::Opened<Postgres>,
    metrics: Arc<Metrics>,
}

impl Replica {
    async fn new(database: &Database) -> Self {
        let replica = Self::open(settings(&database.url()), clock).await;
        replica.store.subscribe(&["crm"]).await;
        replica
    }

    async fn open(settings: Settings, clock: fn() -> Timestamp) -> Self {
        Self::try_open(settings, clock).await.unwrap()
    }

    async fn try_open(settings: Settings, clock: fn() -> Timestamp) -> Result<Self, StoreError> {
        let metrics = Arc::new(Metrics::default());
        let context = Context {
            metrics: metrics.clone(),
            clock,
            rebuild: Arc::new(|_, _| {}),
        };
        let store = Arc::new(Postgres::open(settings, context).await?);
        Ok(Self {
            store: suite::Opened::new(store, metrics.clone()),
            metrics,
        })
    }

    fn shared(&self) -> &Shared {
        &self.store.store.shared
    }
}
