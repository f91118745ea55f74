//! Deliveries with a shared key are made one at a time and in order. Others do not wait for each
//! other.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Place, at, by_key, clock, event, eventually, everything, ids, keyed, loose, numbered,
    on_every_engine, parked, retry,
};
use crate::{
    event::{self, HandlerName, Notification},
    store::{Operator, ReplaySelection, Subscription, Verdict},
};

on_every_engine![
    events_of_one_key_are_delivered_one_at_a_time_in_order,
    events_without_a_key_wait_for_no_other,
    a_delivery_that_waits_for_its_retry_blocks_its_key,
    nothing_overtakes_a_retry_behind_a_replay,
    a_parked_delivery_blocks_no_other,
    an_unordered_handler_gets_everything_at_once,
    a_retry_of_an_unordered_handler_blocks_no_other,
    a_handler_follows_a_change_of_its_order,
    a_claim_gets_the_oldest_and_no_more_than_requested,
    a_failing_head_loses_nothing_and_breaks_no_order,
    an_event_of_very_many_numbers_is_ordered_by_its_account,
];

async fn events_of_one_key_are_delivered_one_at_a_time_in_order(place: Place) {
    let store = place.subscribed().await;
    let (a, b) = ([keyed(1, "a"), keyed(2, "a"), keyed(3, "a")], keyed(4, "b"));
    store.append_all(a.clone()).await;
    store.append(&b).await.unwrap();
    let first = store.claim("crm", at(10)).await;
    assert_eq!(ids(&first), [a[0].id, b.id]);
    assert!(store.claim("crm", at(10)).await.is_empty());
    store.settle("crm", &first[0], Verdict::Done).await;
    let second = store.claim("crm", at(10)).await;
    assert_eq!(ids(&second), [a[1].id]);
    let why = "old".to_owned();
    store
        .settle("crm", &second[0], Verdict::Skipped { why })
        .await;
    assert_eq!(ids(&store.claim("crm", at(10)).await), [a[2].id]);
}

async fn events_without_a_key_wait_for_no_other(place: Place) {
    let store = place.subscribed().await;
    let events = [loose(1), loose(2), keyed(3, "a"), loose(4)];
    store.append_all(events.clone()).await;
    let claims = store.claim("crm", at(10)).await;
    assert_eq!(ids(&claims), events.each_ref().map(|event| event.id));
}

async fn a_delivery_that_waits_for_its_retry_blocks_its_key(place: Place) {
    let store = place.subscribed().await;
    let events = [keyed(1, "a"), keyed(2, "a")];
    store.append_all(events.clone()).await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], retry(60)).await;
    let handler = HandlerName::from("crm");
    // The first claim may find the delivery behind the retry, and ask for another claim.
    eventually("the due time is known", async || {
        let waiting = store.store.claim(&handler, 10, at(59)).await.unwrap();
        assert!(waiting.claims.is_empty());
        (waiting.next_due == Some(at(60))).then_some(())
    })
    .await;
    let again = store.claim("crm", at(60)).await;
    assert_eq!(ids(&again), [events[0].id]);
    assert_eq!(again[0].attempt, 2);
    store.settle("crm", &again[0], Verdict::Done).await;
    assert_eq!(ids(&store.claim("crm", at(60)).await), [events[1].id]);
}

async fn nothing_overtakes_a_retry_behind_a_replay(place: Place) {
    let store = place.subscribed().await;
    let events = [keyed(1, "a"), keyed(2, "a"), keyed(3, "a")];
    store.append_all(events.clone()).await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], Verdict::Done).await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], retry(60)).await;
    let selection = ReplaySelection {
        ids: vec![events[0].id],
        ..ReplaySelection::default()
    };
    let replay =
        |records: &mut dyn Operator| records.replay(&selection, "again", at(20), &mut |_| {});
    place.operator(replay).unwrap();
    let first = store.claim("crm", at(30)).await;
    assert_eq!(ids(&first), [events[0].id]);
    let next = store.settle_all("crm", &first, Verdict::Done).await;
    assert_eq!(ids(&next), [], "the next one is not due");
    assert_eq!(ids(&store.claim("crm", at(59)).await), []);
    assert_eq!(store.drain("crm").await, [events[1].id, events[2].id]);
}

async fn a_parked_delivery_blocks_no_other(place: Place) {
    let store = place.subscribed().await;
    let events = [keyed(1, "a"), keyed(2, "a")];
    store.append_all(events.clone()).await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], parked()).await;
    assert_eq!(store.drain("crm").await, [events[1].id]);
}

async fn an_unordered_handler_gets_everything_at_once(place: Place) {
    let store = place.open().await;
    store.store.subscribe(vec![unordered()]).await.unwrap();
    // The appends run at the same time, so that an engine may store the events together.
    let store = Arc::new(store);
    let appends: Vec<_> = (0..50)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.append(&keyed(n, "a")).await })
        })
        .collect();
    for append in appends {
        append.await.unwrap().unwrap();
    }
    assert_eq!(store.claim("crm", at(10)).await.len(), 50);
}

async fn a_retry_of_an_unordered_handler_blocks_no_other(place: Place) {
    let store = place.open().await;
    store.store.subscribe(vec![unordered()]).await.unwrap();
    let events: Vec<_> = (0..4).map(|n| keyed(n, "a")).collect();
    store.append_all(events.clone()).await;
    store.settle_down().await;
    // Each event is handed out although earlier ones are unfinished.
    for event in &events[..3] {
        let claims = store.claim_once("crm", 1, at(10)).await;
        assert_eq!(ids(&claims), [event.id]);
        store.settle("crm", &claims[0], Verdict::Released).await;
        let again = store.claim_once("crm", 1, at(10)).await;
        assert_eq!(ids(&again), [event.id]);
        if event.id == events[0].id {
            store.settle("crm", &again[0], retry(60)).await;
        }
    }
    assert_eq!(ids(&store.claim("crm", at(59)).await), [events[3].id]);
    assert_eq!(ids(&store.claim("crm", at(60)).await), [events[0].id]);
}

fn unordered() -> Subscription {
    Subscription {
        ordered: false,
        ..everything("crm")
    }
}

async fn a_handler_follows_a_change_of_its_order(place: Place) {
    let store = place.subscribed().await;
    let events = [keyed(1, "a"), keyed(2, "a"), keyed(3, "a")];
    store.append_all(events.clone()).await;
    let in_flight = store.claim("crm", at(10)).await;
    assert_eq!(in_flight.len(), 1);
    store.store.subscribe(vec![unordered()]).await.unwrap();
    let second = store.claim_once("crm", 1, at(10)).await;
    assert_eq!(ids(&second), [events[1].id], "the first one is in flight");
    store.subscribe(&["crm"]).await;
    assert!(
        store.claim("crm", at(10)).await.is_empty(),
        "one of the key is in flight"
    );
    store.settle("crm", &in_flight[0], Verdict::Released).await;
    assert!(
        store.claim("crm", at(10)).await.is_empty(),
        "another one still is"
    );
    store.store.subscribe(vec![unordered()]).await.unwrap();
    let rest = store.claim("crm", at(10)).await;
    assert_eq!(ids(&rest), [events[0].id, events[2].id]);
}

async fn a_claim_gets_the_oldest_and_no_more_than_requested(place: Place) {
    let store = place.subscribed().await;
    let events: Vec<_> = (0..10).map(event).collect();
    store.append_all(events.clone()).await;
    store.settle_down().await;
    assert_eq!(
        ids(&store.claim_once("crm", 3, at(10)).await),
        [events[0].id, events[1].id, events[2].id]
    );
    assert_eq!(
        ids(&store.claim_once("crm", 1, at(10)).await),
        [events[3].id]
    );
}

async fn a_failing_head_loses_nothing_and_breaks_no_order(place: Place) {
    let store = place.subscribed().await;
    let events: Vec<_> = (0..40)
        .map(|n| keyed(n, ["a", "b"][n as usize % 2]))
        .collect();
    store.append_all(events.clone()).await;
    let mut got = Vec::new();
    let mut failed = BTreeSet::new();
    while got.len() < events.len() {
        for claim in store.claim("crm", at(1000)).await {
            if failed.insert(claim.notification.id) {
                store.settle("crm", &claim, retry(900)).await;
            } else {
                got.push(claim.notification.clone());
                store.settle("crm", &claim, Verdict::Done).await;
            }
        }
    }
    let got = got.iter().map(|event| &**event);
    assert_eq!(by_key(got), by_key(&events));
    assert_eq!(
        store
            .store
            .claim(&"crm".into(), 1, clock())
            .await
            .unwrap()
            .next_due,
        None
    );
}

async fn an_event_of_very_many_numbers_is_ordered_by_its_account(place: Place) {
    let store = place.subscribed().await;
    let numbers: Vec<_> = (0..80_000).map(|n| (10_000_000 + n).to_string()).collect();
    let numbers: Vec<_> = numbers.iter().map(String::as_str).collect();
    let large = numbered(2, "acme", &numbers);
    let reported = |event: Notification, time| Notification {
        topics: event::recognize("zoom", &event.body).facts.topics,
        occurred_at: Some(at(time)),
        ..event
    };
    let large = reported(large, 60);
    assert_eq!(large.topics.len(), 80_000);
    let other = "+12025550100";
    let events = [
        numbered(1, "acme", &[other]),
        large,
        reported(numbered(3, "acme", &numbers[70_000..70_002]), 50),
        numbered(4, "elsewhere", &[other]),
    ];
    store.append_all(events.clone()).await;
    let claims = store.claim("crm", at(10)).await;
    assert_eq!(ids(&claims), [events[0].id, events[3].id]);
    store.settle("crm", &claims[0], Verdict::Done).await;
    let claims = store.claim("crm", at(10)).await;
    assert_eq!(ids(&claims), [events[1].id]);
    store.settle("crm", &claims[0], Verdict::Done).await;
    let claims = store.claim("crm", at(10)).await;
    assert_eq!(ids(&claims), [events[2].id]);
    assert!(claims[0].superseded, "the large one is newer");
    // A replay of the large event waits for the other events of its account too.
    let selection = ReplaySelection {
        ids: vec![events[1].id],
        ..ReplaySelection::default()
    };
    let replay =
        |records: &mut dyn Operator| records.replay(&selection, "again", at(10), &mut |_| {});
    place.operator(replay).unwrap();
    assert_eq!(ids(&store.claim("crm", at(10)).await), []);
    store.settle("crm", &claims[0], Verdict::Done).await;
    assert_eq!(ids(&store.claim("crm", at(10)).await), [events[1].id]);
}
