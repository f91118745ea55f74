//! What an acknowledgement stands on: the disk, and the standbys that the operator has asked for.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use super::{Replica, postgres::Postgres, settings};
use crate::{
    event::Notification,
    store::{
        AppendError, Health, Monitored,
        tests::{clock, event, eventually},
    },
};

/// A server of its own, whose commits can be made to wait for a standby that is not there.
struct Primary {
    server: Postgres,
    database: String,
}

impl Primary {
    fn new() -> Self {
        let server = Postgres::start(&[]);
        let database = server.create_database();
        Self { server, database }
    }

    async fn replica(&self) -> Arc<Replica> {
        let mut settings = settings(&self.server.url(&self.database));
        settings.statement_timeout = Duration::from_secs(1);
        let replica = Replica::open(settings, clock).await;
        replica.store.subscribe(&["crm"]).await;
        Arc::new(replica)
    }

    fn sql(&self, statement: &str) -> String {
        self.server.sql(&self.database, statement)
    }

    /// From now on commits wait for `standbys`.
    async fn wait_for(&self, standbys: &str) {
        let setting = format!("ALTER SYSTEM SET synchronous_standby_names = '{standbys}'");
        self.sql(&setting);
        self.sql("SELECT pg_reload_conf()");
        eventually("it is in force", async || {
            let now = self.sql("SHOW synchronous_standby_names");
            (now == standbys).then_some(())
        })
        .await;
    }

    /// Those who wait for a standby with an event, and have done so for `seconds`.
    fn waiting(&self, seconds: u32) -> String {
        self.sql(&format!(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'
                AND query LIKE '%INSERT INTO seen%'
                AND clock_timestamp() - query_start > {seconds} * interval '1 s'"
        ))
    }

    /// Has `replica` store `event`, and returns when that has waited for a standby for `seconds`.
    async fn append(&self, replica: &Arc<Replica>, event: Notification, seconds: u32) -> Appending {
        let replica = replica.clone();
        let mut append = tokio::spawn(async move { replica.store.append(&event).await });
        tokio::select! {
            answer = &mut append => panic!("answered without a standby: {answer:?}"),
            () = eventually("it waits for a standby", async || {
                (self.waiting(seconds) == "1").then_some(())
            }) => append,
        }
    }
}

type Appending = JoinHandle<Result<(), AppendError>>;

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_events_survive_a_crash_of_the_database() {
    // What does not wait for the disk stays in memory for as long as it can.
    let lazy = ["wal_writer_delay=10s"];
    let mut server = Postgres::start(&lazy);
    let url = server.url(&server.create_database());
    let replica = Replica::open(settings(&url), clock).await;
    replica.store.subscribe(&["crm"]).await;
    let events: Vec<_> = (1..=3).map(event).collect();
    replica.store.append_all(events.clone()).await;
    // Without a checkpoint, and without writing what is in memory.
    server.server().stop("QUIT");
    server.restart(&lazy);
    eventually("it is back", async || {
        replica.store.append(&event(4)).await.ok()
    })
    .await;
    let got = replica.store.drain("crm").await;
    for event in events {
        assert!(got.contains(&event.id), "{} in {got:?}", event.id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_timeout_acknowledges_an_event_that_no_standby_has() {
    let primary = Primary::new();
    let replica = primary.replica().await;
    replica.store.append(&event(1)).await.unwrap();
    primary.wait_for("nobody").await;
    // Twice as long as a statement may take.
    let append = primary.append(&replica, event(2), 2).await;
    let health = replica.store.store.health();
    let refuses = matches!(*health.borrow(), Health::Unavailable { .. });
    assert!(refuses, "{:?}", *health.borrow());
    primary.wait_for("").await;
    append.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_waits_for_the_standby_as_well() {
    let primary = Primary::new();
    let (one, other) = (primary.replica().await, primary.replica().await);
    one.store.append(&event(1)).await.unwrap();
    primary.wait_for("nobody").await;
    let append = primary.append(&one, event(2), 0).await;
    // Its wait is cut short: it is committed here alone, and the commit is not reported.
    primary.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE wait_event = 'SyncRep' AND query LIKE '%INSERT INTO seen%'",
    );
    assert!(append.await.unwrap().is_err());
    let duplicate = primary.append(&other, event(2), 0).await;
    primary.wait_for("").await;
    duplicate.await.unwrap().unwrap();
    assert_eq!(other.metrics.duplicates.get(), 1);
    assert_eq!(other.store.drain("crm").await.len(), 2);
}
