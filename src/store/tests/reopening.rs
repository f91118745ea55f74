//! Closing or dropping a store, and opening it again.

use super::{Opened, Place, at, event, eventually, ids, keyed, on_every_engine, retry};
use crate::store::{AppendError, StoreError, Verdict};

on_every_engine![
    a_missing_store_is_an_error_to_an_operator,
    an_append_to_a_closed_store_is_an_error,
    dropping_a_store_without_closing_it_loses_nothing,
    closing_a_store_loses_nothing,
    an_interrupted_claim_is_made_again,
    order_survives_restarts,
    retries_and_their_count_survive_a_restart,
];

async fn a_missing_store_is_an_error_to_an_operator(place: Place) {
    let absent = place.try_records().err();
    assert!(matches!(absent, Some(StoreError::Absent(_))), "{absent:?}");
}

async fn an_append_to_a_closed_store_is_an_error(place: Place) {
    let store = place.open().await;
    store.append(&event(1)).await.unwrap();
    store.store.close().await.unwrap();
    assert_eq!(store.append(&event(2)).await, Err(AppendError::Closed));
    assert!(store.store.close().await.is_ok());
}

async fn dropping_a_store_without_closing_it_loses_nothing(place: Place) {
    reopen_often(&place, async |store| drop(store)).await;
}

async fn closing_a_store_loses_nothing(place: Place) {
    reopen_often(&place, Opened::close).await;
}

/// Opens the store several times, appends events each time, and ends with `end`. Checks that all
/// events are there.
async fn reopen_often(place: &Place, end: impl AsyncFn(Opened)) {
    for round in 0..5 {
        let store = place.subscribed().await;
        let events = round * 10..round * 10 + 10;
        store.append_all(events.map(event)).await;
        end(store).await;
    }
    let store = place.subscribed().await;
    assert_eq!(store.drain("crm").await.len(), 50);
}

async fn an_interrupted_claim_is_made_again(place: Place) {
    let store = place.open().await;
    store.subscribe(&["archive"]).await;
    store.append_all([event(1), event(2)]).await;
    let claims = store.claim("archive", at(10)).await;
    store.settle("archive", &claims[0], Verdict::Done).await;
    drop(store);
    let store = place.open().await;
    store.subscribe(&["archive"]).await;
    // Immediately, or when the lease of the dropped store has expired.
    let again = eventually("the delivery is claimed", async || {
        Some(store.claim("archive", at(10)).await).filter(|claims| !claims.is_empty())
    });
    let again = again.await;
    assert_eq!(ids(&again), ids(&claims[1..]));
    assert_eq!(again[0].attempt, 1, "it never ended");
}

async fn order_survives_restarts(place: Place) {
    let events: Vec<_> = (0..6).map(|n| keyed(n, "a")).collect();
    for event in &events {
        let store = place.subscribed().await;
        store.append(event).await.unwrap();
        store.close().await;
    }
    let store = place.subscribed().await;
    let wanted: Vec<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(store.drain("crm").await, wanted);
}

async fn retries_and_their_count_survive_a_restart(place: Place) {
    let store = place.open().await;
    store.subscribe(&["archive"]).await;
    store.append(&event(1)).await.unwrap();
    let claims = store.claim("archive", at(10)).await;
    assert_eq!((claims[0].attempt, claims[0].since), (1, at(10)));
    store.settle("archive", &claims[0], retry(200)).await;
    store.close().await;
    let store = place.open().await;
    store.subscribe(&["archive"]).await;
    assert!(store.claim("archive", at(199)).await.is_empty());
    let claims = store.claim("archive", at(200)).await;
    assert_eq!((claims[0].attempt, claims[0].since), (2, at(100)));
}
