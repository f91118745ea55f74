//! Many appends at the same time.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

use super::{Place, at, by_key, eventually, keyed, on_every_engine};
use crate::{event::Notification, store::Verdict};

on_every_engine![
    concurrent_appends_are_all_stored_in_the_order_of_each_sender,
    events_are_delivered_in_order_while_more_arrive,
    stored_events_free_their_memory_for_more,
];

/// Event `turn` of sender `sender`. Each sender has an ordering key of its own.
fn sent(sender: u64, turn: u64) -> Notification {
    keyed(sender * 1000 + turn, &format!("sender {sender}"))
}

async fn concurrent_appends_are_all_stored_in_the_order_of_each_sender(place: Place) {
    let store = Arc::new(place.subscribed().await);
    let senders: Vec<_> = (0..32)
        .map(|sender| {
            let store = store.clone();
            tokio::spawn(async move {
                let events: Vec<_> = (0..20).map(|turn| sent(sender, turn)).collect();
                store.append_all(events.clone()).await;
                events
            })
        })
        .collect();
    let mut events = Vec::new();
    for sender in senders {
        events.extend(sender.await.unwrap());
    }
    let got = store.drain("crm").await;
    let of = |id| events.iter().find(|event| event.id == id).unwrap();
    assert_eq!(by_key(got.into_iter().map(of)), by_key(&events));
}

async fn events_are_delivered_in_order_while_more_arrive(place: Place) {
    let store = Arc::new(place.subscribed().await);
    let finished = Arc::new(AtomicBool::new(false));
    let sender = {
        let (store, finished) = (store.clone(), finished.clone());
        tokio::spawn(async move {
            // Few keys have many events, and one batch of the store has several of them.
            let mut events = Vec::new();
            for turn in 0..40 {
                let batch: Vec<_> = (0..8).map(|sender| sent(sender, turn)).collect();
                let appends = batch.iter().map(|event| {
                    let (store, event) = (store.clone(), event.clone());
                    tokio::spawn(async move { store.append(&event).await.unwrap() })
                });
                for append in appends.collect::<Vec<_>>() {
                    append.await.unwrap();
                }
                events.extend(batch);
            }
            finished.store(true, Ordering::SeqCst);
            events
        })
    };
    let mut got = Vec::new();
    eventually("all events are delivered", async || {
        let last = finished.load(Ordering::SeqCst);
        let claims = store.claim("crm", at(10)).await;
        let keys: HashSet<_> = claims.iter().map(|c| c.notification.key.clone()).collect();
        assert_eq!(keys.len(), claims.len(), "two of one key at once");
        for claim in &claims {
            got.push(claim.notification.clone());
            store.settle("crm", claim, Verdict::Done).await;
        }
        (last && claims.is_empty()).then_some(())
    })
    .await;
    let events = sender.await.unwrap();
    assert_eq!(by_key(got.iter().map(|event| &**event)), by_key(&events));
}

async fn stored_events_free_their_memory_for_more(place: Place) {
    let store = place.subscribed().await;
    let large = |n| Notification {
        body: Bytes::from(vec![b' '; 1 << 20]),
        ..keyed(n, "a")
    };
    // The store lets fewer bytes wait than these events have.
    store.append_all((0..40).map(large)).await;
    assert_eq!(store.drain("crm").await.len(), 40);
}
