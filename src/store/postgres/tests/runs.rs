//! Deliveries of one key that are claimed together.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{Replica, connection, postgres::Database, settings, until_somebody_waits};
use crate::{
    event::{EventId, Notification},
    store::{
        Claim, Verdict,
        postgres::claim::MOST_RUN_DELIVERIES,
        tests::{at, clock, eventually, ids, keyed, numbered, parked, retry},
    },
};

/// The most deliveries of one run.
const LONGEST: usize = MOST_RUN_DELIVERIES as usize;

/// What `replica` gets of its key, one settlement after the other, until nothing comes with one.
async fn settle_run(replica: &Replica, first: Vec<Claim>) -> Vec<Claim> {
    let mut got = Vec::new();
    let mut now = first;
    while !now.is_empty() {
        assert_eq!(now.len(), 1, "one at a time");
        let next = replica.store.settle_all("crm", &now, Verdict::Done).await;
        got.append(&mut now);
        now = next;
    }
    got
}

async fn append_one_key(replica: &Replica, length: usize) -> Vec<Notification> {
    let events: Vec<_> = (0..length as u64).map(|n| keyed(n, "a")).collect();
    replica.store.append_all(events.clone()).await;
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_returns_the_next_delivery_of_the_key_until_the_run_ends() {
    let database = Database::new();
    let (one, other) = (Replica::new(&database).await, Replica::new(&database).await);
    let events = append_one_key(&one, LONGEST + 4).await;
    let run = settle_run(&one, one.store.claim("crm", at(10)).await).await;
    let expected: Vec<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(ids(&run), expected[..LONGEST], "others have their turn too");
    assert_eq!(other.store.drain("crm").await, expected[LONGEST..]);
    assert_eq!(one.store.drain("crm").await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_replica_gets_a_key_during_a_run() {
    let database = Database::new();
    let (one, other) = (Replica::new(&database).await, Replica::new(&database).await);
    let events = append_one_key(&one, 3).await;
    let first = one.store.claim("crm", at(10)).await;
    let second = one.store.settle_all("crm", &first, Verdict::Done).await;
    assert_eq!(ids(&second), [events[1].id]);
    assert!(other.store.claim("crm", at(10)).await.is_empty());
    assert!(one.store.claim("crm", at(10)).await.is_empty());
    // A parked delivery blocks no other.
    let third = one.store.settle_all("crm", &second, parked()).await;
    assert_eq!(ids(&third), [events[2].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_run_is_taken_over_where_it_stopped() {
    // In the first run, before which all of the key looked ready, and in the second, before which
    // all of it was queued.
    for before in [0, LONGEST] {
        let database = Database::new();
        let (one, other) = (Replica::new(&database).await, Replica::new(&database).await);
        let events = append_one_key(&one, LONGEST + 4).await;
        if before > 0 {
            settle_run(&one, one.store.claim("crm", at(10)).await).await;
        }
        let first = one.store.claim("crm", at(10)).await;
        let second = one.store.settle_all("crm", &first, Verdict::Done).await;
        database.sql("UPDATE hookswitch.claims SET until = clock_timestamp() - interval '1 s'");
        let taken_over = eventually("it is taken over", async || {
            let claims = other.store.claim("crm", at(10)).await;
            (!claims.is_empty()).then_some(claims)
        })
        .await;
        assert_eq!(ids(&taken_over), [events[before + 1].id]);
        // It comes back, and goes on with nothing.
        let late = one.store.settle_all("crm", &second, Verdict::Done).await;
        assert_eq!(ids(&late), []);
        assert!(one.store.claim("crm", at(10)).await.is_empty());
        let mut got = ids(&settle_run(&other, taken_over).await);
        got.extend(one.store.drain("crm").await);
        let rest: Vec<_> = events[before + 1..].iter().map(|event| event.id).collect();
        assert_eq!(got, rest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_or_a_release_ends_its_run_and_loses_nothing_of_the_key() {
    let database = Database::new();
    let one = Replica::new(&database).await;
    let events = append_one_key(&one, 4).await;
    for verdict in [retry(20), Verdict::Released] {
        let first = one.store.claim("crm", at(30)).await;
        let second = one.store.settle_all("crm", &first, Verdict::Done).await;
        let none = one.store.settle_all("crm", &second, verdict).await;
        assert_eq!(ids(&none), []);
    }
    let rest = settle_run(&one, one.store.claim("crm", at(30)).await).await;
    assert_eq!(ids(&rest), [events[2].id, events[3].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_within_a_run_follows_the_run() {
    let database = Database::new();
    let one = Replica::new(&database).await;
    let events = append_one_key(&one, 3).await;
    let first = one.store.claim("crm", at(10)).await;
    let second = one.store.settle_all("crm", &first, Verdict::Done).await;
    // As `replay` does to a delivery in flight.
    database.sql(
        "UPDATE hookswitch.deliveries d SET replays = replays + 1, state = 0 FROM hookswitch.claims h
         WHERE d.position = h.position",
    );
    let third = one.store.settle_all("crm", &second, Verdict::Done).await;
    assert_eq!(ids(&third), [events[2].id]);
    assert_eq!(ids(&settle_run(&one, third).await), [events[2].id]);
    assert_eq!(one.store.drain("crm").await, [events[1].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_form_no_run() {
    let database = Database::new();
    let one = Replica::new(&database).await;
    let large = |n| Notification {
        body: Bytes::from(vec![b' '; 40 << 10]),
        ..keyed(n, "a")
    };
    one.store.append_all((0..2).map(large)).await;
    let first = one.store.claim("crm", at(10)).await;
    let next = one.store.settle_all("crm", &first, Verdict::Done).await;
    assert_eq!(ids(&next), []);
    assert_eq!(one.store.drain("crm").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_before_an_event_that_has_further_keys() {
    let database = Database::new();
    let one = Replica::new(&database).await;
    let (a, b) = ("+12025550100", "+12025550101");
    for between in [&[a, b][..], &[]] {
        let events = [
            numbered(1, "acme", &[a]),
            numbered(2, "acme", &[a]),
            numbered(3, "acme", between),
            numbered(4, "acme", &[a]),
        ];
        let events = events.map(|event| Notification {
            id: EventId::new(clock()),
            dedupe: Vec::new(),
            ..event
        });
        one.store.append_all(events.clone()).await;
        for expected in [&events[..2], &events[2..3], &events[3..]] {
            let run = settle_run(&one, one.store.claim("crm", at(10)).await).await;
            let expected: Vec<_> = expected.iter().map(|event| event.id).collect();
            assert_eq!(ids(&run), expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_to_queue_fails_no_claim_and_loses_nothing() {
    let database = Database::new();
    let mut settings = settings(&database.url());
    settings.statement_timeout = Duration::from_secs(1);
    let one = Replica::open(settings, clock).await;
    one.store.subscribe(&["crm"]).await;
    let events = append_one_key(&one, 3).await;
    let other = connection(&database).await;
    let lock = "BEGIN; SELECT FROM deliveries ORDER BY position DESC LIMIT 1 FOR UPDATE";
    other.client.batch_execute(lock).await.unwrap();
    let first = one.store.claim("crm", at(10)).await;
    assert_eq!(ids(&first), [events[0].id]);
    other.client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(settle_run(&one, first).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_wakes_a_delivery_queued_while_it_waits() {
    let database = Database::new();
    let one = Arc::new(Replica::new(&database).await);
    let (a, b) = ("+12025550100", "+12025550101");
    let events = [numbered(1, "acme", &[a, b]), numbered(2, "acme", &[b])];
    one.store.append_all(events.clone()).await;
    let first = one.store.claim_once("crm", 1, at(10)).await;
    // Another one has found the second one ready, and queues it.
    let other = connection(&database).await;
    let queue = "UPDATE deliveries SET state = 0, behind = NULL;
        BEGIN;
        SELECT FROM deliveries ORDER BY position LIMIT 1 FOR KEY SHARE;
        UPDATE deliveries SET state = 1, behind = (SELECT min(position) FROM deliveries)
            WHERE position = (SELECT max(position) FROM deliveries)";
    other.client.batch_execute(queue).await.unwrap();
    let settling = {
        let one = one.clone();
        tokio::spawn(async move { one.store.settle("crm", &first[0], Verdict::Done).await })
    };
    until_somebody_waits(&database, "transactionid").await;
    other.client.batch_execute("COMMIT").await.unwrap();
    settling.await.unwrap();
    assert_eq!(ids(&one.store.claim("crm", at(10)).await), [events[1].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_queued_behind_a_delivery_that_is_being_settled() {
    let database = Database::new();
    let one = Replica::new(&database).await;
    let events = [keyed(1, "a"), keyed(2, "a")];
    one.store.append_all(events.clone()).await;
    // Another one is settling the first one, and has not committed yet.
    let other = connection(&database).await;
    let end = "BEGIN; DELETE FROM deliveries WHERE position =
        (SELECT min(position) FROM deliveries)";
    other.client.batch_execute(end).await.unwrap();
    let first = one.store.claim("crm", at(10)).await;
    assert_eq!(ids(&first), [events[0].id], "its end cannot be seen yet");
    other.client.batch_execute("COMMIT").await.unwrap();
    let queued = "SELECT count(*) FROM hookswitch.deliveries WHERE state = 1";
    assert_eq!(database.sql(queued), "0");
}
