//! Replays beside what deletes old days.

use super::{Replica, postgres::Database, settings};
use crate::store::{
    Engine, ReplaySelection, Verdict,
    postgres::{maintenance, pool::Durability},
    tests::{at, clock, event, eventually, ids},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_day_whose_events_are_being_replayed_is_not_dropped() {
    let database = Database::new();
    let replica = Replica::new(&database).await;
    replica.store.append(&event(1)).await.unwrap();
    let claims = replica.store.claim("crm", at(10)).await;
    replica.store.settle("crm", &claims[0], Verdict::Done).await;
    // A replay that is stopped before it is committed.
    database.sql(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
         CREATE TRIGGER gate AFTER INSERT ON hookswitch.deliveries
         FOR EACH STATEMENT EXECUTE FUNCTION wait()",
    );
    let settings = settings(&database.url());
    let connector = settings.connector(Default::default()).unwrap();
    let gate = connector.connect(Durability::Full).await.unwrap();
    let close = "SELECT pg_advisory_lock(1)";
    gate.client.batch_execute(close).await.unwrap();
    let replay = tokio::task::spawn_blocking(move || {
        let mut records = settings.operator(clock).unwrap();
        let everything = ReplaySelection::default();
        records.replay(&everything, "mended", at(20), &mut |_| {})
    });
    let waits_for = async |kind: &str| {
        let waits = format!(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = '{kind}'
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        );
        eventually("somebody waits", async || {
            (database.sql(&waits) != "0").then_some(())
        })
        .await;
    };
    waits_for("advisory").await;
    let connector = &replica.shared().connector;
    let mut connection = connector.connect(Durability::Lazy).await.unwrap();
    // Retention that meets a lock gives up soon, and is retried.
    let dropping = eventually("retention drops the partition", async || {
        let later = at(100 * 24 * 3600);
        let dropped = maintenance::retain(replica.shared(), &mut connection, later).await;
        dropped.ok()
    });
    let committing = async {
        waits_for("relation").await;
        let open = "SELECT pg_advisory_unlock(1)";
        gate.client.batch_execute(open).await.unwrap();
        assert_eq!(replay.await.unwrap().unwrap().total(), 1);
    };
    tokio::join!(dropping, committing);
    assert_eq!(ids(&replica.store.claim("crm", at(30)).await), ids(&claims));
}
