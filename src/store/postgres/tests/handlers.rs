//! Handlers that come, go and change, while replicas differ about them.

use std::time::Duration;

use super::{Replica, postgres::Database, settings};
use crate::{
    event::Notification,
    store::{
        Deliveries, Subscription, Verdict,
        postgres::rows,
        tests::{at, clock, event, eventually, everything, ids, keyed},
    },
};

/// As if no replica had named `handler` for an hour.
fn forget(database: &Database, handler: &str) {
    database.sql(&format!(
        "UPDATE hookswitch.handlers SET named_at = clock_timestamp() - interval '1 h'
         WHERE name = '{handler}'"
    ));
}

fn parked(database: &Database) -> String {
    database.sql(
        "SELECT string_agg(name, ' ') FROM hookswitch.ended
         JOIN hookswitch.handlers ON handlers.id = ended.handler WHERE state = 2",
    )
}

async fn open_abandoning_after(database: &Database, abandon_after: Duration) -> Replica {
    let mut settings = settings(&database.url());
    settings.abandon_after = abandon_after;
    Replica::open(settings, clock).await
}

/// Has an event stored for handlers whose replica is gone after that.
async fn append_and_leave(database: &Database, handlers: &[&str]) {
    let gone = Replica::open(settings(&database.url()), clock).await;
    gone.store.subscribe(handlers).await;
    gone.store.append(&event(1)).await.unwrap();
    gone.store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_parked_once_no_replica_has_had_their_handler_for_a_while() {
    let database = Database::new();
    append_and_leave(&database, &["crm", "other", "gone"]).await;
    forget(&database, "gone");
    // Just now, for as long as this takes.
    database.sql(
        "UPDATE hookswitch.handlers SET named_at = clock_timestamp() + interval '1 h'
         WHERE name = 'other'",
    );
    let replica = open_abandoning_after(&database, Duration::from_millis(1)).await;
    eventually("what is left behind is parked", async || {
        // The maintenance looks when handlers are named.
        replica.store.subscribe(&["crm"]).await;
        forget(&database, "crm");
        (!parked(&database).is_empty()).then_some(())
    })
    .await;
    assert_eq!(parked(&database), "gone");
    forget(&database, "other");
    eventually("the rest follows", async || {
        replica.store.subscribe(&["crm"]).await;
        forget(&database, "crm");
        (parked(&database).len() == "gone other".len()).then_some(())
    })
    .await;
    assert_eq!(replica.store.drain("crm").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_parked_before_other_replicas_had_time_to_return() {
    let database = Database::new();
    append_and_leave(&database, &["late"]).await;
    // All of them were away for long.
    forget(&database, "late");
    let old = Notification {
        received_at: at(-10 * 24 * 3600),
        ..event(2)
    };
    let first = open_abandoning_after(&database, Duration::from_hours(1)).await;
    first.store.append(&old).await.unwrap();
    let day = rows::day(old.received_at).strftime("events_%Y%m%d");
    let partition = format!("SELECT to_regclass('hookswitch.{day}') IS NULL");
    // A round of the maintenance ends with old days.
    eventually("a round has passed", async || {
        first.store.subscribe(&["crm"]).await;
        (database.sql(&partition) == "t").then_some(())
    })
    .await;
    assert_eq!(parked(&database), "");
    let late = open_abandoning_after(&database, Duration::from_hours(1)).await;
    late.store.subscribe(&["late"]).await;
    assert_eq!(late.store.drain("late").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_keeps_registering_its_handlers() {
    let database = Database::new();
    let replica = Replica::new(&database).await;
    forget(&database, "crm");
    let named = "SELECT named_at > clock_timestamp() - interval '30 min' FROM hookswitch.handlers";
    eventually("it is named again", async || {
        (database.sql(named) == "t").then_some(())
    })
    .await;
    // Others have given it up meanwhile, as if it had not been heard of for long.
    database.sql("UPDATE hookswitch.handlers SET configured = false");
    let known = "SELECT configured FROM hookswitch.handlers";
    eventually("it is taken back", async || {
        (database.sql(known) == "t").then_some(())
    })
    .await;
    replica.store.append(&event(1)).await.unwrap();
    assert_eq!(replica.store.drain("crm").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_event_is_stored_before_its_subscriptions_are() {
    let database = Database::new();
    let replica = Replica::open(settings(&database.url()), clock).await;
    replica.store.append(&event(1)).await.unwrap();
    database.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN RAISE SQLSTATE '57P03'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON hookswitch.handlers
         FOR EACH STATEMENT EXECUTE FUNCTION refuse()",
    );
    let failed = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    let failed = || database.sql(failed).parse::<u64>().unwrap();
    let before = failed();
    let subscription = vec![everything("crm")];
    replica.store.store.subscribe(subscription).await.unwrap();
    // The subscription is retried, and fails again, while events are refused.
    eventually("the subscription is retried", async || {
        assert!(replica.store.append(&event(2)).await.is_err());
        (failed() > before + 3).then_some(())
    })
    .await;
    database.sql("DROP TRIGGER refuse ON hookswitch.handlers");
    let stored = event(3);
    eventually("events are accepted", async || {
        replica.store.append(&stored).await.ok()
    })
    .await;
    assert_eq!(replica.store.drain("crm").await, [stored.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_returns_gets_what_was_not_parked_yet() {
    let database = Database::new();
    append_and_leave(&database, &["crm"]).await;
    // Parking was cut short behind the first of a key, which was the one that looked ready.
    database.sql(
        "UPDATE hookswitch.handlers SET configured = false;
         UPDATE hookswitch.deliveries SET state = 1",
    );
    let back = open_abandoning_after(&database, Duration::from_hours(1)).await;
    back.store.subscribe(&["crm"]).await;
    assert_eq!(back.store.drain("crm").await.len(), 1);
}

fn unordered() -> Vec<Subscription> {
    vec![Subscription {
        ordered: false,
        ..everything("crm")
    }]
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_a_dead_replica_block_nothing_after_a_change_of_order() {
    let database = Database::new();
    let gone = Replica::open(settings(&database.url()), clock).await;
    gone.store.store.subscribe(unordered()).await.unwrap();
    let events = [keyed(1, "a"), keyed(2, "a"), event(3)];
    gone.store.append_all(events.clone()).await;
    assert_eq!(gone.store.claim_once("crm", 1, at(10)).await.len(), 1);
    drop(gone);
    let ordered = Replica::new(&database).await;
    let expected = events.map(|event| event.id);
    let mut got = Vec::new();
    eventually("all of it is delivered", async || {
        got.extend(ordered.store.drain("crm").await);
        (got.len() == expected.len()).then_some(())
    })
    .await;
    got.sort_unstable();
    assert_eq!(got, expected);
    // And back, with a claimed key.
    ordered
        .store
        .append_all([keyed(4, "a"), keyed(5, "a")])
        .await;
    assert_eq!(ordered.store.claim("crm", at(10)).await.len(), 1);
    drop(ordered);
    let last = Replica::open(settings(&database.url()), clock).await;
    last.store.store.subscribe(unordered()).await.unwrap();
    let mut got = Vec::new();
    eventually("all of it is delivered", async || {
        got.extend(last.store.drain("crm").await);
        (got.len() == 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_queued_under_the_previous_order_are_delivered() {
    let database = Database::new();
    let (old, new) = (Replica::new(&database).await, Replica::new(&database).await);
    new.store.store.subscribe(unordered()).await.unwrap();
    // The old one has not been restarted yet, and queues what it finds of a key.
    old.store.append_all((1..=20).map(|n| keyed(n, "a"))).await;
    let first = old.store.claim("crm", at(10)).await;
    assert_eq!(first.len(), 1);
    old.store.settle("crm", &first[0], Verdict::Released).await;
    old.store.close().await;
    let mut got = Vec::new();
    eventually("all of it is delivered", async || {
        // The maintenance looks when handlers are named, and now and then.
        new.store.store.subscribe(unordered()).await.unwrap();
        got.extend(new.store.drain("crm").await);
        (got.len() == 20).then_some(())
    })
    .await;
    assert_eq!(ids(&new.store.claim("crm", at(10)).await), []);
}
