//! The ledger, compared with its own rules and with the disk.

use super::Place;
use crate::store::{
    Monitored,
    tests::{at, event, ids, keyed, long_run, operator::all_parked},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_its_checksum_is_parked_and_the_next_is_delivered() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    let events = [keyed(1, "a"), keyed(2, "a")];
    store.append_all(events.clone()).await;
    store.settle_down().await;
    place.damage(1, |bytes| bytes[64 + 100] ^= 1);
    assert_eq!(ids(&store.claim("crm", at(10)).await), [events[1].id]);
    store.settle_down().await;
    let parked = place.records().parked(&all_parked()).unwrap().deliveries;
    assert_eq!(parked[0].why, "the event fails its checksum in the journal");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gauges_report_the_disk_space() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store.append(&event(1)).await.unwrap();
    store.settle_down().await;
    store.store.measure(at(0)).await.unwrap();
    let metrics = &place.metrics;
    let bytes = std::fs::metadata(place.journal().segment(1)).unwrap().len();
    assert_eq!(metrics.journal_bytes.get(), bytes as i64);
    assert!(metrics.disk_free_bytes.get() > 0);
}

/// The counts in `handlers` follow `deliveries` through everything that can happen to them.
#[tokio::test(flavor = "multi_thread")]
async fn counts_are_right_throughout_a_long_run() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    let replay = |selection: &_| {
        let mut records = place.records();
        let made = records.replay(selection, "again", at(120), &mut |_| {});
        made.unwrap();
    };
    long_run(&store, replay, async || check_counts(&place)).await;
}

fn check_counts(place: &Place) {
    let db = rusqlite::Connection::open(place.settings.ledger()).unwrap();
    let counted: (i64, i64) = db
        .query_row(
            "SELECT count(*) FILTER (WHERE state < 2), count(*) FILTER (WHERE state = 2) FROM deliveries",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    let kept: (i64, i64) = db
        .query_row("SELECT open, parked FROM handlers", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(kept, counted);
}
