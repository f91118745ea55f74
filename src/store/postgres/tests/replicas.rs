//! Several replicas on one database.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    Replica, connection,
    postgres::{self, Database},
    settings, until_somebody_waits,
};
use crate::store::{
    AppendError, Deliveries, Subscription, Verdict,
    tests::{at, clock, event, eventually, everything, ids, keyed, parked, retry},
};

#[tokio::test(flavor = "multi_thread")]
async fn only_one_replica_at_a_time_has_a_claim_of_a_key() {
    let database = Database::new();
    let (one, other) = (Replica::new(&database).await, Replica::new(&database).await);
    let events = [keyed(1, "a"), keyed(2, "a"), keyed(3, "b")];
    one.store.append_all(events[..1].to_vec()).await;
    other.store.append_all(events[1..].to_vec()).await;
    let first = one.store.claim("crm", at(10)).await;
    assert_eq!(ids(&first), [events[0].id, events[2].id]);
    assert!(other.store.claim("crm", at(10)).await.is_empty());
    one.store.settle("crm", &first[0], Verdict::Done).await;
    let second = other.store.claim("crm", at(10)).await;
    assert_eq!(ids(&second), [events[1].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_claims_wait_for_each_other_and_do_not_overlap() {
    for ordered in [true, false] {
        let database = Database::new();
        let replica = Arc::new(Replica::new(&database).await);
        let subscription = Subscription {
            ordered,
            ..everything("crm")
        };
        let subscribed = replica.store.store.subscribe(vec![subscription]);
        subscribed.await.unwrap();
        replica
            .store
            .append_all([keyed(1, "a"), keyed(2, "a")])
            .await;
        // Another one has just claimed the first, and has not committed yet.
        let other = connection(&database).await;
        let take = "BEGIN;
            SELECT pg_advisory_xact_lock(hashtext('hookswitch.claims'), id) FROM handlers;
            INSERT INTO claims (handler, first, position, scope, keys, token, until)
            SELECT handler, position, position, scope, '{0}', gen_random_uuid(),
                clock_timestamp() + interval '1 h'
            FROM deliveries ORDER BY position LIMIT 1";
        other.client.batch_execute(take).await.unwrap();
        let second = {
            let replica = replica.clone();
            tokio::spawn(async move { replica.store.claim_once("crm", 1, at(10)).await })
        };
        until_somebody_waits(&database, "advisory").await;
        other.client.batch_execute("COMMIT").await.unwrap();
        let expected = if ordered { 0 } else { 1 };
        assert_eq!(second.await.unwrap().len(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_concurrent_duplicates_at_all_replicas_is_delivered() {
    let database = Database::new();
    let one = Arc::new(Replica::new(&database).await);
    let other = Arc::new(Replica::new(&database).await);
    let duplicates: Vec<_> = (0..300)
        .map(|n| {
            let replica = if n % 2 == 0 { &one } else { &other }.clone();
            tokio::spawn(async move { replica.store.append(&event(n / 30)).await })
        })
        .collect();
    for duplicate in duplicates {
        duplicate.await.unwrap().unwrap();
    }
    assert_eq!(one.store.drain("crm").await.len(), 10);
    let dropped = one.metrics.duplicates.get() + other.metrics.duplicates.get();
    assert_eq!(dropped, 290);
}

#[tokio::test(flavor = "multi_thread")]
async fn settlements_of_a_replica_frozen_past_its_lease_change_nothing() {
    let database = Database::new();
    let (frozen, other) = (Replica::new(&database).await, Replica::new(&database).await);
    let verdicts = [Verdict::Done, parked(), retry(0), Verdict::Released];
    // A key that the claim is all of, and one that it is the beginning of, for each verdict.
    let key = |n: u64| format!("key {n}");
    let firsts: Vec<_> = (0..8).map(|n| keyed(n, &key(n))).collect();
    let seconds: Vec<_> = (4..8).map(|n| keyed(n + 10, &key(n))).collect();
    frozen.store.append_all(firsts.clone()).await;
    frozen.store.append_all(seconds.clone()).await;
    let stale = frozen.store.claim("crm", at(10)).await;
    assert_eq!(stale.len(), 8);
    assert!(frozen.store.store.holds(stale[0].lease));
    // Time that passes while it is frozen.
    database.sql("UPDATE hookswitch.claims SET until = clock_timestamp() - interval '1 s'");
    let taken_over = other.store.claim("crm", at(10)).await;
    assert_eq!(ids(&taken_over), ids(&stale));
    for (claim, verdict) in stale.iter().zip(verdicts.iter().cycle()) {
        frozen.store.settle("crm", claim, verdict.clone()).await;
        let got = frozen.store.claim("crm", at(10)).await;
        assert_eq!(ids(&got), [], "{verdict:?}");
    }
    let noted = "SELECT (SELECT count(*) FROM hookswitch.ended)
        + (SELECT count(*) FROM hookswitch.attempts)";
    assert_eq!(database.sql(noted), "0");
    for claim in &taken_over {
        other.store.settle("crm", claim, Verdict::Done).await;
    }
    let mut rest = frozen.store.drain("crm").await;
    rest.sort_unstable();
    assert_eq!(
        rest,
        seconds.iter().map(|event| event.id).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_renewed_until_its_replica_is_gone() {
    let database = Database::new();
    let (one, other) = (Replica::new(&database).await, Replica::new(&database).await);
    one.store.append(&event(1)).await.unwrap();
    let claim = one.store.claim("crm", at(10)).await;
    let ends = || database.sql("SELECT until FROM hookswitch.claims");
    let first = ends();
    eventually("it is renewed", async || (ends() != first).then_some(())).await;
    assert!(one.store.store.holds(claim[0].lease));
    assert!(other.store.claim("crm", at(10)).await.is_empty());
    drop(one);
    let taken_over = eventually("it has run out", async || {
        let claims = other.store.claim("crm", at(10)).await;
        (!claims.is_empty()).then_some(claims)
    });
    assert_eq!(ids(&taken_over.await), ids(&claim));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_survives_a_crash_of_the_database() {
    // What does not wait for the disk stays in memory for as long as it can.
    let lazy = ["wal_writer_delay=10s"];
    let mut server = postgres::Postgres::start(&lazy);
    let mut settings = settings(&server.url(&server.create_database()));
    settings.lease = Duration::from_mins(1);
    let one = Replica::open(settings.clone(), clock).await;
    let other = Replica::open(settings, clock).await;
    one.store.subscribe(&["crm"]).await;
    other.store.subscribe(&["crm"]).await;
    let events = [keyed(1, "a"), keyed(2, "a")];
    one.store.append_all(events.to_vec()).await;
    let claim = one.store.claim("crm", at(10)).await;
    // Without a checkpoint, and without writing what is in memory.
    server.server().stop("QUIT");
    server.restart(&lazy);
    let third = event(3);
    eventually("both are back", async || {
        let stored = one.store.append(&third).await.is_ok();
        (stored && other.store.append(&third).await.is_ok()).then_some(())
    })
    .await;
    assert!(one.store.store.holds(claim[0].lease));
    assert_eq!(ids(&other.store.claim("crm", at(10)).await), [third.id]);
    one.store.settle("crm", &claim[0], Verdict::Done).await;
    assert_eq!(ids(&other.store.claim("crm", at(10)).await), [events[1].id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_while_several_replicas_append_and_deliver() {
    let database = Database::new();
    let replicas = [
        Arc::new(Replica::new(&database).await),
        Arc::new(Replica::new(&database).await),
    ];
    let senders: Vec<_> = (0..8_u64)
        .map(|sender| {
            let replicas = replicas.clone();
            tokio::spawn(async move {
                // Each waits for an answer before it goes on, at the other replica.
                for turn in 0..20 {
                    let event = keyed(sender * 100 + turn, &format!("key {sender}"));
                    let replica = &replicas[turn as usize % 2];
                    replica.store.append(&event).await.unwrap();
                }
            })
        })
        .collect();
    let in_flight = Arc::new(std::sync::Mutex::new(HashSet::new()));
    let got = Arc::new(std::sync::Mutex::new(Vec::new()));
    let workers: Vec<_> = replicas
        .iter()
        .cloned()
        .map(|replica| {
            let (in_flight, got) = (in_flight.clone(), got.clone());
            tokio::spawn(async move {
                while got.lock().unwrap().len() < 160 {
                    let claims = replica.store.claim_once("crm", 5, at(10)).await;
                    for claim in &claims {
                        let key = claim.notification.key.clone();
                        assert!(in_flight.lock().unwrap().insert(key), "two of one key");
                    }
                    tokio::task::yield_now().await;
                    for claim in &claims {
                        let key = claim.notification.key.clone();
                        got.lock().unwrap().push(claim.notification.clone());
                        in_flight.lock().unwrap().remove(&key);
                        replica.store.settle("crm", claim, Verdict::Done).await;
                    }
                }
            })
        })
        .collect();
    for task in senders.into_iter().chain(workers) {
        tokio::time::timeout(Duration::from_secs(60), task)
            .await
            .unwrap()
            .unwrap();
    }
    let got = got.lock().unwrap();
    for sender in 0..8 {
        let key = format!("key {sender}");
        let of_key = got
            .iter()
            .filter(|event| event.key.as_ref().unwrap().as_str() == key)
            .map(|event| event.received_at);
        assert!(of_key.is_sorted(), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_started_together_on_an_empty_database_all_start() {
    let database = Database::new();
    let opened = (0..4).map(|_| {
        let settings = settings(&database.url());
        tokio::spawn(async move { Replica::try_open(settings, clock).await })
    });
    let opened: Vec<_> = opened.collect();
    for (number, replica) in opened.into_iter().enumerate() {
        let replica = replica.await.unwrap().unwrap();
        replica.store.subscribe(&["crm"]).await;
        let event = event(number as u64);
        eventually("it takes events", async || {
            replica.store.append(&event).await.ok()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_wakes_the_other_replicas() {
    let database = Database::new();
    let (one, other) = (Replica::new(&database).await, Replica::new(&database).await);
    let mut work = other.store.store.work();
    let mut n = 0;
    eventually("it hears of an event", async || {
        work.mark_unchanged();
        n += 1;
        one.store.append(&event(n)).await.unwrap();
        let heard = timeout(Duration::from_secs(1), work.changed()).await;
        heard.ok()
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_refuses_events_once_the_tables_are_too_new() {
    let database = Database::new();
    let one = Replica::new(&database).await;
    database.sql("UPDATE hookswitch.schema_version SET version = 99, needs = 99");
    let refused = eventually("it has noticed", async || {
        one.store.append(&event(1)).await.err()
    });
    let refused = refused.await;
    assert!(matches!(refused, AppendError::Poisoned(_)), "{refused}");
}
