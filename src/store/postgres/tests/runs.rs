//! Deliveries of one lane that are claimed together.

use std::time::Duration;

use bytes::Bytes;

use super::{Replica, postgres::Database, settings};
use crate::{
    event::Notification,
    store::{
        Claim, Verdict,
        postgres::pool::Durability,
        tests::{at, clock, ids, keyed, parked, retry},
    },
};

/// What `replica` gets of its lane, one settlement after the other, until nothing comes with one.
async fn follow(replica: &Replica, first: Vec<Claim>) -> Vec<Claim> {
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

async fn lane_of(replica: &Replica, length: u64) -> Vec<Notification> {
    let events: Vec<_> = (0..length).map(|n| keyed(n, "a")).collect();
    replica.store.append_all(events.clone()).await;
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_brings_the_next_of_the_lane_until_the_run_is_over() {
    let database = Database::new();
    let (one, other) = (Replica::new(&database).await, Replica::new(&database).await);
    let events = lane_of(&one, 20).await;
    let run = follow(&one, one.store.claim("crm", at(10)).await).await;
    let expected: Vec<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(ids(&run), expected[..16], "others have their turn too");
    assert_eq!(other.store.drain("crm").await, expected[16..]);
    assert_eq!(one.store.drain("crm").await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_gets_a_lane_between_two_of_a_run() {
    let database = Database::new();
    let (one, other) = (Replica::new(&database).await, Replica::new(&database).await);
    let events = lane_of(&one, 3).await;
    let first = one.store.claim("crm", at(10)).await;
    let second = one.store.settle_all("crm", &first, Verdict::Done).await;
    assert_eq!(ids(&second), [events[1].id]);
    assert!(other.store.claim("crm", at(10)).await.is_empty());
    assert!(one.store.claim("crm", at(10)).await.is_empty());
    // What was parked holds up nobody.
    let third = one.store.settle_all("crm", &second, parked()).await;
    assert_eq!(ids(&third), [events[2].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_within_a_run_is_taken_over_where_it_was() {
    // In the first run, before which all of the lane looked ready, and in the second, before which
    // all of it was queued.
    for before in [0, 16] {
        let database = Database::new();
        let (one, other) = (Replica::new(&database).await, Replica::new(&database).await);
        let events = lane_of(&one, 20).await;
        if before > 0 {
            follow(&one, one.store.claim("crm", at(10)).await).await;
        }
        let first = one.store.claim("crm", at(10)).await;
        let second = one.store.settle_all("crm", &first, Verdict::Done).await;
        database.sql("UPDATE hookswitch.held SET until = clock_timestamp() - interval '1 s'");
        let taken_over = other.store.claim("crm", at(10)).await;
        assert_eq!(ids(&taken_over), [events[before + 1].id]);
        // It comes back, and goes on with nothing.
        let late = one.store.settle_all("crm", &second, Verdict::Done).await;
        assert_eq!(ids(&late), []);
        assert!(one.store.claim("crm", at(10)).await.is_empty());
        let mut got = ids(&follow(&other, taken_over).await);
        got.extend(one.store.drain("crm").await);
        let rest: Vec<_> = events[before + 1..].iter().map(|event| event.id).collect();
        assert_eq!(got, rest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_to_wait_ends_its_run_and_loses_nothing_of_the_lane() {
    let database = Database::new();
    let one = Replica::new(&database).await;
    let events = lane_of(&one, 4).await;
    for verdict in [retry(20), Verdict::Released] {
        let first = one.store.claim("crm", at(30)).await;
        let second = one.store.settle_all("crm", &first, Verdict::Done).await;
        let none = one.store.settle_all("crm", &second, verdict).await;
        assert_eq!(ids(&none), []);
    }
    let rest = follow(&one, one.store.claim("crm", at(30)).await).await;
    assert_eq!(ids(&rest), [events[2].id, events[3].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_within_a_run_is_made_after_it() {
    let database = Database::new();
    let one = Replica::new(&database).await;
    let events = lane_of(&one, 3).await;
    let first = one.store.claim("crm", at(10)).await;
    let second = one.store.settle_all("crm", &first, Verdict::Done).await;
    // As `replay` does to one that is under way.
    database.sql(
        "UPDATE hookswitch.deliveries d SET replays = replays + 1, state = 0 FROM hookswitch.held h
         WHERE d.position = h.position",
    );
    let third = one.store.settle_all("crm", &second, Verdict::Done).await;
    assert_eq!(ids(&third), [events[2].id]);
    assert_eq!(ids(&follow(&one, third).await), [events[2].id]);
    assert_eq!(one.store.drain("crm").await, [events[1].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_come_one_by_one() {
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
async fn what_cannot_be_put_in_order_is_handed_out_one_by_one() {
    let database = Database::new();
    let mut settings = settings(&database.url());
    settings.statement_timeout = Duration::from_secs(1);
    let one = Replica::open(settings.clone(), clock).await;
    one.store.subscribe(&["crm"]).await;
    let events = lane_of(&one, 20).await;
    follow(&one, one.store.claim("crm", at(10)).await).await;
    // The last of the next run cannot be made ready.
    let connector = settings.connector(Default::default()).unwrap();
    let other = connector.connect(Durability::Full).await.unwrap();
    let lock = "BEGIN; SELECT FROM deliveries ORDER BY position DESC LIMIT 1 FOR UPDATE";
    other.client.batch_execute(lock).await.unwrap();
    let first = one.store.claim("crm", at(10)).await;
    assert_eq!(ids(&first), [events[16].id]);
    let next = one.store.settle_all("crm", &first, Verdict::Done).await;
    assert_eq!(ids(&next), []);
    other.client.batch_execute("ROLLBACK").await.unwrap();
    let rest: Vec<_> = events[17..].iter().map(|event| event.id).collect();
    assert_eq!(one.store.drain("crm").await, rest);
}
