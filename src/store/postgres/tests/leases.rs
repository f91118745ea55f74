//! Claims that are lost, and claims that are given up.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{Replica, postgres::Database, settings};
use crate::store::{
    Deliveries, Verdict,
    postgres::{
        leases::{ClaimedDelivery, Leases, PreparedClaim},
        rows,
    },
    tests::{at, clock, event, eventually, ids, keyed},
};

/// Has all claims run out, as when their replicas were frozen.
const RUN_OUT: &str = "UPDATE hookswitch.claims SET until = clock_timestamp() - interval '1 s'";

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_notices_a_lost_claim_before_an_attempt() {
    let database = Database::new();
    let one = Replica::new(&database).await;
    one.store.append_all([event(1), event(2)]).await;
    let claims = one.store.claim("crm", at(10)).await;
    assert_eq!(claims.len(), 2);
    // Somebody else has taken one of them.
    database.sql(
        "UPDATE hookswitch.claims SET token = gen_random_uuid()
         WHERE position = (SELECT min(position) FROM hookswitch.claims)",
    );
    eventually("it is known to be lost", async || {
        (!one.store.store.holds(claims[0].lease)).then_some(())
    })
    .await;
    assert!(one.store.store.holds(claims[1].lease), "that is still ours");
}

#[test]
fn the_lease_of_a_run_counts_from_its_first_delivery() {
    let term = Duration::from_mins(1);
    let prepared = |n: u64, since| PreparedClaim {
        delivery: ClaimedDelivery {
            handler: 1,
            first: 1,
            token: Uuid::nil(),
            day: rows::day(at(0)),
            position: n as i64,
            group: None,
            replays: 0,
            since,
        },
        due_at: at(0),
        notification: Arc::new(event(n)),
        attempt: 1,
        since: at(0),
        replay: None,
        superseded: false,
    };
    let now = Instant::now();
    let old = now.checked_sub(term).unwrap();
    for (first, second, holds) in [(now, old, true), (old, now, false)] {
        let leases = Leases::new(term);
        let run = VecDeque::from([prepared(1, first), prepared(2, second)]);
        let claim = leases.hand_out(run).unwrap();
        assert_eq!(leases.holds(claim.lease), holds);
        let next = leases.next_claim(claim.lease).unwrap();
        assert_eq!(leases.holds(next.lease), holds);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_a_closed_store_are_free_at_once() {
    let database = Database::new();
    let mut settings = settings(&database.url());
    settings.lease = Duration::from_hours(1);
    let (one, other) = (
        Replica::open(settings.clone(), clock).await,
        Replica::open(settings, clock).await,
    );
    one.store.subscribe(&["crm"]).await;
    other.store.subscribe(&["crm"]).await;
    let events = [keyed(1, "a"), event(2)];
    one.store.append_all(events.clone()).await;
    assert_eq!(one.store.claim("crm", at(10)).await.len(), 2);
    one.store.close().await;
    let taken_over = other.store.claim("crm", at(10)).await;
    assert_eq!(ids(&taken_over), events.map(|event| event.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_a_store_leaves_the_claims_of_other_replicas() {
    let database = Database::new();
    let (one, other) = (Replica::new(&database).await, Replica::new(&database).await);
    let third = Replica::new(&database).await;
    let events = [keyed(1, "a"), keyed(2, "a")];
    one.store.append_all(events.clone()).await;
    assert_eq!(one.store.claim("crm", at(10)).await.len(), 1);
    database.sql(RUN_OUT);
    let taken_over = other.store.claim("crm", at(10)).await;
    assert_eq!(ids(&taken_over), [events[0].id]);
    one.store.close().await;
    assert_eq!(ids(&third.store.claim("crm", at(10)).await), []);
    other
        .store
        .settle("crm", &taken_over[0], Verdict::Done)
        .await;
    assert_eq!(third.store.drain("crm").await, [events[1].id]);
}
