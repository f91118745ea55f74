//! What is deleted, and what is not.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::{
    Opened, Place,
    rebuild::{all_deliveries, lose_the_views, start},
};
use crate::store::{
    EventFilter, Verdict,
    embedded::{retention::Retention, segment::Position},
    tests::{at, event, ids, parked},
};

fn pass(store: &Opened, retain: Duration) -> usize {
    let shared = &store.store.shared;
    let (core, ledger, journal) = (&shared.core, &shared.ledger, &shared.journal);
    let mut retention = Retention::new(core.clone(), ledger.clone(), journal.clone());
    tokio::task::block_in_place(|| retention.pass(retain)).unwrap()
}

/// A store with three events, each in a segment of its own.
async fn three_segments(place: &mut Place) -> Opened {
    place.settings.segment = 1;
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store.append_all((1..4).map(event)).await;
    store.settle_down().await;
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn only_old_segments_without_needed_events_are_deleted() {
    let mut place = Place::new();
    let store = three_segments(&mut place).await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], Verdict::Done).await;
    store.settle("crm", &claims[1], parked()).await;
    store.settle("crm", &claims[2], Verdict::Done).await;
    store.append(&event(4)).await.unwrap();
    let last = store.claim("crm", at(10)).await;
    store.settle("crm", &last[0], Verdict::Done).await;
    let terms = || {
        let db = rusqlite::Connection::open(place.settings.ledger()).unwrap();
        let list = "SELECT count(DISTINCT segment), count(*) FROM terms";
        db.query_row(list, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
    };
    // Each event has a number and a key.
    assert_eq!(terms(), (4, 8));
    let before = place.journal().segments().unwrap();
    assert_eq!(
        pass(&store, Duration::from_secs(1 << 40)),
        0,
        "nothing is that old"
    );
    let deleted = pass(&store, Duration::ZERO);
    let left = place.journal().segments().unwrap();
    let left = before.iter().filter(|number| left.contains(number));
    assert_eq!(left.count(), before.len() - deleted);
    let listed = place
        .records()
        .events(&EventFilter {
            limit: 10,
            ..EventFilter::default()
        })
        .unwrap();
    let listed: Vec<_> = listed.events.iter().map(|event| event.id).collect();
    // The last segment is written to, and the second holds what is parked.
    assert_eq!(listed, [last[0].notification.id, ids(&claims)[1]]);
    assert_eq!(terms(), (2, 4));
    assert!(place.records().event(ids(&claims)[0]).unwrap().is_none());
    assert!(place.records().event(ids(&claims)[1]).unwrap().is_some());
    store.close().await;
    place.open();
    let damaged = place.metrics.journal_damaged_bytes.get();
    assert_eq!(damaged, 0, "what was deleted is not missed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_delivery_keeps_its_segment() {
    let mut place = Place::new();
    let store = three_segments(&mut place).await;
    let segments = place.journal().segments().unwrap();
    let empty = segments.len() - 3;
    assert_eq!(pass(&store, Duration::ZERO), empty);
    assert_eq!(store.drain("crm").await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_that_the_ledger_has_not_read_are_needed() {
    let mut place = Place::new();
    let store = three_segments(&mut place).await;
    store.drain("crm").await;
    let ledger = &store.store.shared.ledger;
    let watermark = ledger.run("asking", |database| database.watermark());
    let end = watermark.await.unwrap().through;
    for (to, is_needed) in [(end, false), (end.next(), true)] {
        let asked = ledger.run("asking", move |database| {
            database.is_needed(Position::default(), to)
        });
        assert_eq!(asked.await.unwrap(), is_needed, "up to {to:?} of {end:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_deleted_segment_remains() {
    let mut place = Place::new();
    let store = three_segments(&mut place).await;
    store.drain("crm").await;
    pass(&store, Duration::ZERO);
    let db = rusqlite::Connection::open(place.settings.ledger()).unwrap();
    for table in ["events", "deliveries", "topics"] {
        let rows: i64 = db
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
                row.get(0)
            })
            .unwrap();
        assert_eq!(rows, 1, "{table}");
    }
    // A duplicate of it is a new event.
    store.append(&event(1)).await.unwrap();
    assert_eq!(store.drain("crm").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_opens_after_its_first_segments_were_deleted() {
    let mut place = Place::new();
    let store = three_segments(&mut place).await;
    store.drain("crm").await;
    assert!(pass(&store, Duration::ZERO) > 0);
    store.close().await;
    for kept in place.kept("ledger") {
        std::fs::remove_file(kept).unwrap();
    }
    let store = place.open();
    assert_eq!(place.metrics.journal_damaged_bytes.get(), 0);
    store.subscribe(&["crm"]).await;
    store.append(&event(9)).await.unwrap();
    assert_eq!(store.drain("crm").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_of_kept_events_outlive_the_segments_that_recorded_them() {
    let mut place = Place::new();
    place.settings.segment = 1 << 10;
    let store = place.open();
    store.subscribe(&["crm"]).await;
    // Both in the first segment.
    let events = [event(1), event(2)];
    store.append_all(events.clone()).await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], parked()).await;
    store.settle("crm", &claims[1], Verdict::Done).await;
    // Then as many as make several segments.
    store.append_all((3..20).map(event)).await;
    store.drain("crm").await;
    let last = event(20);
    store.append(&last).await.unwrap();
    store.settle_down().await;
    let before = all_deliveries(&place, &events);
    let kept = place.journal().segments().unwrap()[0];
    assert!(pass(&store, Duration::ZERO) > 1);
    assert_eq!(place.journal().segments().unwrap()[0], kept);
    store.close().await;
    lose_the_views(&place);

    let store = start(&place, &["crm"]).await;
    assert_eq!(all_deliveries(&place, &events), before);
    assert_eq!(ids(&store.claim("crm", at(10)).await), [last.id]);
}

/// Noon, until [`LATE`] is set.
fn moving_clock() -> jiff::Timestamp {
    at(if LATE.load(Ordering::Relaxed) {
        25 * 3600
    } else {
        0
    })
}

static LATE: AtomicBool = AtomicBool::new(false);

#[tokio::test(flavor = "multi_thread")]
async fn a_small_segment_is_sealed_after_a_day() {
    let mut place = Place::new();
    place.clock = moving_clock;
    let store = place.open();
    store.append_all([event(1), event(2)]).await;
    LATE.store(true, Ordering::Relaxed);
    store.append_all([event(3), event(4)]).await;
    assert_eq!(place.journal().segments().unwrap(), [1, 2]);
}
