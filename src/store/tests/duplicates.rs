//! Duplicates of one event.

use std::sync::Arc;

use super::{Place, at, event, on_every_engine};
use crate::{
    event::{DedupeKey, Notification},
    store::Verdict,
};

on_every_engine![
    one_of_a_thousand_concurrent_duplicates_is_delivered,
    an_event_with_one_known_key_is_a_duplicate_and_adds_no_keys,
    duplicates_of_an_event_delivered_before_a_restart_are_recognized,
];

async fn one_of_a_thousand_concurrent_duplicates_is_delivered(place: Place) {
    let store = Arc::new(place.subscribed().await);
    let duplicates: Vec<_> = (0..1000)
        .map(|_| {
            let store = store.clone();
            // Each duplicate is an event of its own to everything but its dedupe key.
            tokio::spawn(async move { store.append(&event(1)).await })
        })
        .collect();
    for duplicate in duplicates {
        duplicate.await.unwrap().unwrap();
    }
    assert_eq!(store.drain("crm").await.len(), 1);
    assert_eq!(place.metrics.duplicates.get(), 999);
}

async fn an_event_with_one_known_key_is_a_duplicate_and_adds_no_keys(place: Place) {
    let store = place.subscribed().await;
    let key = |what: &str| DedupeKey::new("zoom", what, b"");
    let with = |n, dedupe: Vec<DedupeKey>| Notification { dedupe, ..event(n) };
    store
        .append_all([
            with(1, vec![key("a"), key("b")]),
            with(2, vec![key("c"), key("b")]),
            with(3, vec![key("c")]),
            with(4, vec![]),
            with(5, vec![]),
        ])
        .await;
    let got: Vec<_> = store
        .claim("crm", at(10))
        .await
        .iter()
        .map(|c| c.notification.received_at)
        .collect();
    assert_eq!(got, [1, 3, 4, 5].map(|n| event(n).received_at));
}

async fn duplicates_of_an_event_delivered_before_a_restart_are_recognized(place: Place) {
    let store = place.subscribed().await;
    store.append(&event(1)).await.unwrap();
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], Verdict::Done).await;
    store.close().await;
    let store = place.subscribed().await;
    store.append_all([event(1), event(2)]).await;
    assert_eq!(store.drain("crm").await.len(), 1);
}
