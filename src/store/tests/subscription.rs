//! Which handler gets which event, and what happens when subscriptions change.

use std::sync::Arc;

use super::{
    Place, at, clock, event, eventually, everything, ids, keyed, on_every_engine, operator, retry,
};
use crate::{
    event::{HandlerName, Notification, Pattern},
    store::{Claim, Subscription, Verdict},
};

on_every_engine![
    handlers_get_what_their_patterns_match_and_do_not_wait_for_each_other,
    an_event_without_a_handler_is_kept,
    an_event_is_superseded_when_all_its_topics_are,
    the_latest_of_concurrent_events_supersedes_the_others,
    deliveries_of_a_removed_handler_are_parked,
];

async fn handlers_get_what_their_patterns_match_and_do_not_wait_for_each_other(place: Place) {
    let store = place.open().await;
    let subscriptions = vec![everything("all"), zoom_only()];
    store.store.subscribe(subscriptions).await.unwrap();
    let other = Notification {
        name: "zoom.unrecognized".into(),
        ..keyed(2, "a")
    };
    store.append_all([keyed(1, "a"), other.clone()]).await;
    assert_eq!(store.claim("all", at(10)).await.len(), 1);
    assert_eq!(ids(&store.claim("zoom-only", at(10)).await), [other.id]);
    assert!(store.claim("nobody", at(10)).await.is_empty());
}

fn zoom_only() -> Subscription {
    Subscription {
        patterns: vec![Pattern::new("zoom.*").unwrap()],
        ..everything("zoom-only")
    }
}

async fn an_event_without_a_handler_is_kept(place: Place) {
    let store = place.open().await;
    store.store.subscribe(vec![zoom_only()]).await.unwrap();
    let event = event(1);
    store.append(&event).await.unwrap();
    assert!(store.claim("zoom-only", at(10)).await.is_empty());
    let record = place.operator(|records| records.event(event.id));
    let record = record.unwrap().unwrap();
    assert_eq!(record.notification, event);
    assert!(record.deliveries.is_empty());
}

async fn an_event_is_superseded_when_all_its_topics_are(place: Place) {
    let store = place.subscribed().await;
    let about = |n: u64, time: i64, topics: &[&str]| Notification {
        occurred_at: Some(at(time)),
        topics: topics.iter().map(|topic| (*topic).into()).collect(),
        ..event(n)
    };
    store
        .append_all([
            about(1, 50, &["x", "y"]),
            about(2, 60, &["x"]),
            about(3, 40, &["x"]),
            about(4, 40, &[]),
            about(5, 60, &["x"]),
        ])
        .await;
    let superseded =
        |claims: &[Claim]| -> Vec<bool> { claims.iter().map(|c| c.superseded).collect() };
    let claims = store.claim("crm", at(10)).await;
    assert_eq!(superseded(&claims), [false, false, true, false, false]);
    store.append(&about(6, 51, &["y"])).await.unwrap();
    for claim in &claims {
        store.settle("crm", claim, Verdict::Released).await;
    }
    assert_eq!(
        superseded(&store.claim("crm", at(10)).await),
        [true, false, true, false, false, false]
    );
}

async fn the_latest_of_concurrent_events_supersedes_the_others(place: Place) {
    let store = Arc::new(place.subscribed().await);
    // The event with the latest provider time is the first one to be appended.
    let appends: Vec<_> = (0..50)
        .map(|n| {
            let event = Notification {
                occurred_at: Some(at(100 - n)),
                topics: vec!["x".into()],
                ..event(n.cast_unsigned())
            };
            let store = store.clone();
            tokio::spawn(async move { store.append(&event).await })
        })
        .collect();
    for append in appends {
        append.await.unwrap().unwrap();
    }
    let claims = store.claim("crm", at(10)).await;
    assert_eq!(claims.len(), 50);
    for claim in claims {
        let is_latest = claim.notification.occurred_at == Some(at(100));
        assert_eq!(claim.superseded, !is_latest, "{:?}", claim.notification);
    }
}

async fn deliveries_of_a_removed_handler_are_parked(place: Place) {
    let store = place.open().await;
    store.subscribe(&["old", "crm"]).await;
    store.append_all([keyed(1, "a"), keyed(2, "b")]).await;
    let in_flight = store.claim("old", at(10)).await;
    store.subscribe(&["crm", "new"]).await;
    let all = operator::all_parked();
    let parked = || {
        let listed = place.operator(|records| records.parked(&all));
        listed.unwrap().deliveries
    };
    // An engine may wait for a while, in case another replica still has the handler.
    let both = eventually("the deliveries are parked", async || {
        Some(parked()).filter(|parked| parked.len() == 2)
    });
    assert_eq!(both.await[0].why, "no handler of this name is configured");
    // A retry has no handler any more, so the delivery stays parked.
    store.settle("old", &in_flight[1], retry(0)).await;
    let whys: Vec<_> = parked().into_iter().map(|parked| parked.why).collect();
    assert_eq!(whys, ["no handler of this name is configured"; 2]);
    // A delivery in flight may still be finished.
    store.settle("old", &in_flight[0], Verdict::Done).await;
    assert_eq!(parked().len(), 1);
    store.store.measure(clock()).await.unwrap();
    let old = (&HandlerName::from("old")).into();
    let metrics = &place.metrics;
    assert_eq!(metrics.parked_deliveries.get_or_create(&old).get(), 1);
    assert_eq!(metrics.open_deliveries.get_or_create(&old).get(), 0);
    store.append(&event(3)).await.unwrap();
    assert_eq!(
        store.drain("new").await.len(),
        1,
        "a new handler gets what comes from then on"
    );
    assert_eq!(store.drain("crm").await.len(), 3);
    assert!(store.claim("old", at(10)).await.is_empty());
}
