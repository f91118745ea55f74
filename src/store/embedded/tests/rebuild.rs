//! What the journal still says once everything that was made from it is lost.

use std::{fs, path::PathBuf, sync::Arc};

use tokio::task::JoinSet;

use super::{Opened, Place};
use crate::{
    event::{EventId, HandlerName, Notification},
    store::{
        DeliveryDetails, DeliveryState, ReplaySelection, Store, Verdict,
        tests::{at, event, ids, keyed, operator::all_parked, parked, retry},
    },
};

/// Takes away all that is made from the journal.
pub(super) fn lose_the_views(place: &Place) {
    let views = place.kept("ledger").into_iter().chain(place.kept("seen"));
    let views: Vec<PathBuf> = views.collect();
    assert!(views.len() >= 2, "{views:?}");
    for view in views {
        fs::remove_file(view).unwrap();
    }
}

/// A service's store on `place`, with everything read.
pub(super) async fn start(place: &Place, handlers: &[&str]) -> Opened {
    let store = place.open();
    store.subscribe(handlers).await;
    store.settle_down().await;
    store
}

/// How the deliveries of `event` stand.
pub(super) fn deliveries(place: &Place, event: EventId) -> Vec<DeliveryDetails> {
    place.records().event(event).unwrap().unwrap().deliveries
}

pub(super) fn all_deliveries(place: &Place, events: &[Notification]) -> String {
    let all = events
        .iter()
        .map(|event| (event.id, deliveries(place, event.id)));
    format!("{:#?}", all.collect::<Vec<_>>())
}

/// A store that has one event for each thing that can have become of a delivery.
async fn of_all_kinds(place: &Place) -> (Opened, Vec<Notification>) {
    let store = place.open();
    store.subscribe(&["crm"]).await;
    let events: Vec<_> = (1..=8).map(event).collect();
    store.append_all(events.clone()).await;
    let claims = store.claim("crm", at(10)).await;
    assert_eq!(claims.len(), 8);
    let verdicts = [
        Verdict::Done,
        parked(),
        retry(500),
        parked(),
        parked(),
        Verdict::Done,
        Verdict::Released,
    ];
    for (claim, verdict) in claims.iter().zip(verdicts) {
        store.settle("crm", claim, verdict).await;
    }
    // The last one is claimed, and nothing more is known of it.
    let skipped = [(events[3].id, "crm".into())];
    skip(place, &skipped);
    for replayed in [&events[4], &events[5]] {
        replay(place, replayed, "the target was down");
    }
    let again = store.claim("crm", at(300)).await;
    let again = again
        .iter()
        .find(|claim| claim.notification.id == events[4].id);
    store.settle("crm", again.unwrap(), Verdict::Done).await;
    (store, events)
}

fn skip(place: &Place, parked: &[(EventId, HandlerName)]) {
    let skip = || place.records().skip(parked, "nobody asks for it", at(200));
    assert_eq!(tokio::task::block_in_place(skip).unwrap(), 1);
}

fn replay(place: &Place, event: &Notification, reason: &str) {
    let selection = ReplaySelection {
        ids: vec![event.id],
        ..ReplaySelection::default()
    };
    let replay = || {
        let mut records = place.records();
        records.replay(&selection, reason, at(250), &mut |_| {})
    };
    let made = tokio::task::block_in_place(replay);
    assert_eq!(made.unwrap().deliveries, [("crm".into(), 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_delivery_is_rebuilt_with_its_outcome() {
    let place = Place::new();
    let (store, events) = of_all_kinds(&place).await;
    store.close().await;
    let before = all_deliveries(&place, &events);
    let parked = format!(
        "{:?}",
        place.records().parked(&all_parked()).unwrap().deliveries
    );
    lose_the_views(&place);

    let store = start(&place, &["crm"]).await;
    assert_eq!(all_deliveries(&place, &events), before);
    let again = format!(
        "{:?}",
        place.records().parked(&all_parked()).unwrap().deliveries
    );
    assert_eq!(again, parked);
    // What comes again is known as well.
    store.append_all(events.clone()).await;
    let mut open = ids(&store.claim("crm", at(499)).await);
    open.sort_unstable();
    assert_eq!(open, [events[5].id, events[6].id, events[7].id]);
    assert_eq!(ids(&store.claim("crm", at(500)).await), [events[2].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_of_a_store_that_was_never_closed_are_rebuilt() {
    let place = Place::new();
    let (store, events) = of_all_kinds(&place).await;
    // An append that is answered comes behind all that was handed over before.
    store.append(&event(9)).await.unwrap();
    let before = all_deliveries(&place, &events);
    let copy = place.crash();
    lose_the_views(&copy);
    let _again = start(&copy, &["crm"]).await;
    assert_eq!(all_deliveries(&copy, &events), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_by_commands_without_a_service_are_rebuilt() {
    let place = Place::new();
    let store = start(&place, &["crm"]).await;
    let events: Vec<_> = (1..=3).map(event).collect();
    store.append_all(events.clone()).await;
    let claims = store.claim("crm", at(10)).await;
    for (claim, verdict) in claims.iter().zip([parked(), parked(), Verdict::Done]) {
        store.settle("crm", claim, verdict).await;
    }
    store.close().await;
    let skipped = [(events[0].id, "crm".into())];
    skip(&place, &skipped);
    replay(&place, &events[1], "the target was down");
    replay(&place, &events[2], "they lost it");
    let before = all_deliveries(&place, &events);
    lose_the_views(&place);

    let store = start(&place, &["crm"]).await;
    assert_eq!(all_deliveries(&place, &events), before);
    let claims = store.claim("crm", at(300)).await;
    let reasons: Vec<_> = claims.iter().map(|claim| claim.replay.as_deref()).collect();
    assert_eq!(reasons, [Some("the target was down"), Some("they lost it")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_handler_gets_the_events_of_its_own_time() {
    let place = Place::new();
    let store = start(&place, &["crm"]).await;
    let events: Vec<_> = (1..=3).map(event).collect();
    store.append(&events[0]).await.unwrap();
    store.settle_down().await;
    store.subscribe(&["crm", "desk"]).await;
    store.append(&events[1]).await.unwrap();
    store.settle_down().await;
    store.subscribe(&["desk"]).await;
    store.append(&events[2]).await.unwrap();
    store.settle_down().await;
    store.close().await;
    let before = all_deliveries(&place, &events);
    lose_the_views(&place);

    let store = start(&place, &["desk"]).await;
    assert_eq!(all_deliveries(&place, &events), before);
    assert_eq!(
        ids(&store.claim("desk", at(10)).await),
        [events[1].id, events[2].id]
    );
    let of_crm = place.records().parked(&all_parked()).unwrap().deliveries;
    let of_crm: Vec<_> = of_crm.iter().map(|parked| parked.id).collect();
    assert_eq!(of_crm, [events[0].id, events[1].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_claimed_before_the_whole_journal_is_read() {
    let place = Place::new();
    let store = Arc::new(start(&place, &["crm"]).await);
    // More than is read at once.
    let events: Vec<_> = (1..=5000).map(|n| keyed(n, &n.to_string())).collect();
    let mut appends = JoinSet::new();
    for event in events.clone() {
        let store = store.clone();
        appends.spawn(async move { store.append(&event).await.unwrap() });
        if appends.len() == 500 {
            appends.join_next().await.unwrap().unwrap();
        }
    }
    appends.join_all().await;
    let mut claims = store.claim("crm", at(10_000)).await;
    while claims.len() < events.len() {
        claims.extend(store.claim_once("crm", 10_000, at(10_000)).await);
    }
    let (open, done): (Vec<_>, Vec<_>) = claims
        .iter()
        .partition(|claim| claim.notification.id == events[4000].id);
    let done: Vec<_> = done.into_iter().cloned().collect();
    assert_eq!(open.len(), 1);
    store.settle_all("crm", &done, Verdict::Done).await;
    store.store.close().await.unwrap();
    lose_the_views(&place);

    let store = place.open();
    store.subscribe(&["crm"]).await;
    let claims = loop {
        let claims = store.claim_once("crm", 10_000, at(10_000)).await;
        if !claims.is_empty() {
            break claims;
        }
    };
    assert_eq!(ids(&claims), [events[4000].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_replay_of_a_done_delivery_is_rebuilt() {
    let place = Place::new();
    let store = start(&place, &["crm"]).await;
    let event = event(1);
    store.append(&event).await.unwrap();
    for n in 1..=2 {
        let claims = store.claim("crm", at(300)).await;
        store.settle("crm", &claims[0], Verdict::Done).await;
        replay(&place, &event, &format!("again {n}"));
    }
    store.close().await;
    lose_the_views(&place);
    let store = start(&place, &["crm"]).await;
    let claims = store.claim("crm", at(1000)).await;
    assert_eq!(claims[0].replay.as_deref(), Some("again 2"));
    assert_eq!(deliveries(&place, event.id)[0].state, DeliveryState::Ready);
}
