//! Ledgers of older versions, which a service brings up to date when it starts on them.

use jiff::Timestamp;
use rusqlite::Connection;

use super::{Opened, Place, rebuild::lose_the_views};
use crate::{
    event::{EventId, Notification},
    store::{
        Claim, Deliveries, DeliveryDetails, DeliveryState, Engine, EventFilter, ReplaySelection,
        StoreError, Subscription, Verdict,
        embedded::ledger::sqlite,
        tests::{at, clock, eventually, everything, ids, loose, numbered, operator::all_parked},
    },
};

/// Version 1 as it was when it was in use, with the rows of [`events`]. It is never written anew.
const VERSION_1: &str = include_str!("../../../../fixtures/ledger/1.sql");

/// The events that the fixtures have deliveries of, numbered from 1.
fn events() -> [Notification; 9] {
    const A: &str = "+12025550141";
    const B: &str = "+12025550142";
    const C: &str = "+12025550143";
    [
        numbered(1, "customer", &[A]),
        numbered(2, "customer", &[A]),
        numbered(3, "customer", &[B]),
        numbered(4, "customer", &[A]),
        numbered(5, "customer", &[B]),
        numbered(6, "customer", &[C]),
        numbered(7, "customer", &[C, A]),
        loose(8),
        numbered(9, "another", &[A]),
    ]
}

/// A store that holds `events`, and whose ledger is of version 1.
async fn of_version_1(events: &[Notification]) -> Place {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store.append_all(events.iter().cloned()).await;
    store.settle_down().await;
    store.close().await;
    let path = place.settings.ledger();
    let current = path.with_extension("current");
    std::fs::rename(&path, &current).unwrap();
    let db = Connection::open(&path).unwrap();
    db.execute_batch(VERSION_1).unwrap();
    db.execute("ATTACH ?1 AS current", [current.to_str()])
        .unwrap();
    // The tables that follow from the journal are the same in both versions.
    db.execute_batch(
        "DELETE FROM progress;
         INSERT INTO progress SELECT only, through, records, 0 FROM current.progress;
         INSERT INTO events SELECT * FROM current.events;
         INSERT INTO topics SELECT * FROM current.topics;",
    )
    .unwrap();
    for table in ["deliveries", "attempts"] {
        let numbered =
            "SELECT row_number() OVER (ORDER BY position) AS number, position FROM events";
        db.execute_batch(&format!(
            "UPDATE {table} SET position = event.position
             FROM ({numbered}) AS event WHERE event.number = {table}.position"
        ))
        .unwrap();
    }
    place
}

/// A service's store on `place`, with the handlers that the fixtures have.
async fn start(place: &Place) -> Opened {
    let store = place.open();
    let desk = Subscription {
        ordered: false,
        ..everything("desk")
    };
    let subscriptions = vec![everything("crm"), desk];
    store.store.subscribe(subscriptions).await.unwrap();
    store
}

/// How the delivery of `event` to `crm` stands.
fn delivery(place: &Place, event: &Notification) -> DeliveryDetails {
    let event = place.records().event(event.id).unwrap().unwrap();
    let mut deliveries = event.deliveries.into_iter();
    deliveries.find(|one| one.handler == "crm".into()).unwrap()
}

/// What can be claimed for `crm`, oldest first.
async fn claim(store: &Opened, now: Timestamp) -> Vec<Claim> {
    let mut claims = store.claim("crm", now).await;
    claims.sort_by_key(|claim| claim.notification.received_at);
    claims
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_of_a_ledger_of_version_1_are_kept() {
    let events = events();
    let place = of_version_1(&events).await;
    let store = start(&place).await;

    let retried = delivery(&place, &events[1]);
    assert_eq!(retried.attempts, 2);
    assert_eq!(retried.due_at, Some(at(500)));
    let why: Vec<_> = retried
        .failures
        .iter()
        .map(|failure| &failure.why)
        .collect();
    assert_eq!(why, ["the server answered 503", "the server answered 500"]);
    let parked = place.records().parked(&all_parked()).unwrap().deliveries;
    assert_eq!(parked.len(), 1);
    assert_eq!((parked[0].id, parked[0].attempts), (events[4].id, 3));
    assert_eq!(parked[0].why, "the server answered 422");
    assert_eq!(delivery(&place, &events[0]).state, DeliveryState::Done);
    let skipped = delivery(&place, &events[5]);
    assert_eq!(skipped.state, DeliveryState::Skipped);
    assert_eq!(skipped.why.as_deref(), Some("nobody asks for it"));

    // Those of `desk`, which asks for no order, and is not given any.
    let of_desk = ids(&store.claim("desk", at(500)).await);
    assert_eq!(of_desk, [events[0].id, events[1].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn open_deliveries_of_a_ledger_of_version_1_are_ordered_per_number() {
    let events = events();
    let place = of_version_1(&events).await;
    let store = start(&place).await;
    let behind = |n: usize| delivery(&place, &events[n - 1]).waits_for;
    let id = |n: usize| events[n - 1].id;
    assert_eq!(behind(4), Some(id(2)));
    assert_eq!(behind(7), Some(id(4)));

    // The second of the customer is due later, and holds up no number but its own.
    let claims = claim(&store, at(499)).await;
    assert_eq!(ids(&claims), [id(3), id(8), id(9)]);
    for claim in &claims {
        store.settle("crm", claim, Verdict::Done).await;
    }
    assert!(claim(&store, at(499)).await.is_empty());
    for (n, attempt) in [(2, 3), (4, 1), (7, 1)] {
        let claims = claim(&store, at(500)).await;
        assert_eq!(ids(&claims), [id(n)]);
        assert_eq!(claims[0].attempt, attempt);
        store.settle("crm", &claims[0], Verdict::Done).await;
    }
    assert!(claim(&store, at(500)).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_deliveries_of_a_ledger_of_version_1_are_replayed_in_order() {
    let events = events();
    let place = of_version_1(&events).await;
    let store = start(&place).await;
    let third = claim(&store, at(10)).await.swap_remove(0);
    let parked = ReplaySelection {
        parked_only: true,
        ..ReplaySelection::default()
    };
    let made = place
        .records()
        .replay(&parked, "again", at(10), &mut |_| {});
    made.unwrap();
    assert_eq!(delivery(&place, &events[4]).waits_for, Some(events[2].id));
    store.settle("crm", &third, Verdict::Done).await;
    assert_eq!(ids(&claim(&store, at(10)).await), [events[4].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_refuse_a_ledger_of_version_1_until_a_service_upgrades_it() {
    let place = of_version_1(&events()).await;
    let refused = place.settings.operator(clock).err().unwrap();
    assert!(matches!(refused, StoreError::TooOld(_)), "{refused}");
    let text = format!(
        "{} is of ledger version 1, written by an older hookswitch; start this version's service \
         on it first",
        place.settings.ledger().display()
    );
    assert_eq!(refused.to_string(), text);
    start(&place).await.close().await;
    assert_eq!(
        place
            .records()
            .parked(&all_parked())
            .unwrap()
            .deliveries
            .len(),
        1
    );
}

/// What is found by `about`, and the time before which events may be missing.
fn look_up(place: &Place, about: &str) -> (Vec<EventId>, Option<Timestamp>) {
    let filter = EventFilter {
        about: Some(about.to_owned()),
        limit: 10,
        ..EventFilter::default()
    };
    let list = place.records().events(&filter).unwrap();
    let found = list.events.iter().map(|event| event.id).collect();
    (found, list.incomplete_before)
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_an_older_ledger_are_indexed_in_the_background() {
    let mut events = events();
    // Journals had the first number of an event only.
    for event in &mut events {
        event.subjects.truncate(1);
    }
    let place = of_version_1(&events).await;
    // As upgraded by a service that ended before it had indexed anything.
    drop(sqlite::open(&place.settings.ledger(), true).unwrap());
    let (found, incomplete_before) = look_up(&place, "2025550141");
    assert!(found.is_empty());
    let last = events[8].received_at;
    assert!(incomplete_before.is_some_and(|before| before > last));

    let store = start(&place).await;
    let id = |n: usize| events[n - 1].id;
    let indexed = eventually("the events are indexed", async || {
        let (found, incomplete_before) = look_up(&place, "2025550141");
        incomplete_before.is_none().then_some(found)
    });
    assert_eq!(indexed.await, [9, 7, 4, 2, 1].map(id));
    assert_eq!(look_up(&place, "(202) 555-0143").0, [7, 6].map(id));
    let shown = place.records().events(&EventFilter {
        about: Some("+12025550143".to_owned()),
        limit: 1,
        ..EventFilter::default()
    });
    let subjects = &shown.unwrap().events[0].subjects;
    assert_eq!(subjects, &["+12025550143", "+12025550141"]);
    let new = numbered(10, "customer", &["+12025550141"]);
    store.append(&new).await.unwrap();
    store.settle_down().await;
    assert_eq!(look_up(&place, "2025550141").0[..2], [new.id, id(9)]);
    store.close().await;
    lose_the_views(&place);
    let store = start(&place).await;
    store.settle_down().await;
    let (found, incomplete_before) = look_up(&place, "+12025550143");
    assert_eq!((found, incomplete_before), ([7, 6].map(id).to_vec(), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_shows_nothing_whose_hash_only_is_the_same() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    let events = [1, 2].map(|n| {
        numbered(
            n,
            "acme",
            &[["+12025550141", "+12025550142"][n as usize - 1]],
        )
    });
    store.append_all(events.clone()).await;
    store.settle_down().await;
    let db = Connection::open(place.settings.ledger()).unwrap();
    let added = db.execute(
        "INSERT OR IGNORE INTO terms SELECT a.segment, a.term, b.offset FROM terms a, terms b",
        [],
    );
    assert!(added.unwrap() > 0);
    assert_eq!(look_up(&place, "+12025550141").0, [events[0].id]);
    assert_eq!(look_up(&place, "+12025550142").0, [events[1].id]);
}
