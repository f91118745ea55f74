//! Copies are known, whatever becomes of the table that they are known by.

use std::{fs, ops::Range, path::PathBuf};

use super::Place;
use crate::{
    event::{DedupeKey, Notification},
    store::{
        embedded::{
            reader::{Scan, Step},
            seen::{Found, Seen},
            segment::Position,
        },
        tests::event,
    },
};

fn key(n: u64) -> DedupeKey {
    DedupeKey::new("zoom", "body", &n.to_le_bytes())
}

fn place_of(n: u64) -> Position {
    Position::new(1 + (n >> 16) as u32, 64 + (n & 0xffff))
}

/// Adds `numbers` to the table, which is made anew whenever it is crowded. Says how often it was.
fn add(seen: &mut Seen, numbers: Range<u64>, oldest: Position) -> u32 {
    let mut renewed = 0;
    for n in numbers {
        let Found::Free(slot) = seen.find(&key(n), |_| true).unwrap() else {
            panic!("{n} is known already");
        };
        if seen.add(&key(n), slot, place_of(n)).unwrap() {
            seen.renew(oldest).unwrap();
            renewed += 1;
        }
    }
    renewed
}

fn is_known(seen: &Seen, n: u64) -> bool {
    seen.find(&key(n), |_| true).unwrap() == Found::Known(place_of(n))
}

#[test]
fn the_table_grows_with_what_it_holds_and_not_with_what_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table");
    let (mut seen, is_new) = Seen::open(&path).unwrap();
    assert!(is_new);
    assert!(add(&mut seen, 0..200_000, Position::default()) >= 2);
    assert!((0..200_000).all(|n| is_known(&seen, n)));
    assert!((200_000..210_000).all(|n| !is_known(&seen, n)));
    let large = fs::metadata(&path).unwrap().len();

    let oldest = place_of(190_000);
    seen.renew(oldest).unwrap();
    assert!(fs::metadata(&path).unwrap().len() < large);
    drop(seen);
    let (seen, is_new) = Seen::open(&path).unwrap();
    assert!(!is_new);
    assert!((190_000..200_000).all(|n| is_known(&seen, n)));
    assert!((0..190_000).all(|n| !is_known(&seen, n)));
}

/// Two keys whose hashes in the table are the same.
fn twins() -> [DedupeKey; 2] {
    [1, 2].map(|last| {
        let mut bytes = [7; 16];
        bytes[15] = last;
        DedupeKey::from_bytes(bytes)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_look_alike_in_the_table_are_told_apart() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    let [one, other] = twins();
    let with = |n, key| Notification {
        dedupe: vec![key],
        ..event(n)
    };
    store
        .append_all([with(1, one), with(2, other), with(3, one), with(4, other)])
        .await;
    assert_eq!(store.drain("crm").await.len(), 2);
    assert_eq!(place.metrics.duplicates.get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_keys_of_one_event_that_want_the_same_slot_are_both_learnt() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    let [one, other] = twins();
    let with = |n, dedupe| Notification { dedupe, ..event(n) };
    store
        .append_all([
            with(1, vec![one, other]),
            with(2, vec![other]),
            with(3, vec![one]),
        ])
        .await;
    assert_eq!(store.drain("crm").await.len(), 1);
}

fn table(place: &Place) -> PathBuf {
    place.settings.path.join("seen.table")
}

/// Stores two events, lets `harm` happen to the table, and says how many of two copies and a new
/// event are delivered afterwards.
async fn delivered_after(harm: impl FnOnce(&Place), stops: bool) -> usize {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store.append_all([event(1), event(2)]).await;
    assert_eq!(store.drain("crm").await.len(), 2);
    let place = if stops {
        store.close().await;
        place
    } else {
        place.crash()
    };
    harm(&place);
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store.append_all([event(1), event(3), event(2)]).await;
    store.drain("crm").await.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_known_after_a_stop_and_after_a_crash() {
    for stops in [true, false] {
        assert_eq!(delivered_after(|_| {}, stops).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_lost_or_broken_is_made_from_the_journal() {
    for stops in [true, false] {
        let remove = |place: &Place| fs::remove_file(table(place)).unwrap();
        assert_eq!(delivered_after(remove, stops).await, 1);
        let overwrite = |place: &Place| fs::write(table(place), "no table").unwrap();
        assert_eq!(delivered_after(overwrite, stops).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_table_has_lost_with_the_power_is_learnt_again() {
    let lose = |place: &Place| {
        let mut bytes = fs::read(table(place)).unwrap();
        bytes[4096..].fill(0);
        fs::write(table(place), bytes).unwrap();
    };
    assert_eq!(delivered_after(lose, false).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_learnt_before_a_stop_is_not_read_again() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store.append_all([event(1), event(2)]).await;
    store.settle_down().await;
    store.close().await;
    let (seen, _) = Seen::open(&table(&place)).unwrap();
    let mut scan = Scan::open(&place.journal(), Position::new(1, 0)).unwrap();
    let mut last = None;
    while let Some(Step::Record { position, .. }) = scan.next().unwrap() {
        last = Some(position);
    }
    assert_eq!(Some(seen.mark().unwrap()), last);
}

/// The table of a store with `events`, which was stopped.
async fn table_of(events: &[u64]) -> Vec<u8> {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    for n in events {
        store.append(&event(*n)).await.unwrap();
    }
    store.settle_down().await;
    store.close().await;
    fs::read(table(&place)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_any_other_moment_hides_nothing_and_lets_no_copy_through() {
    for other in [
        &[][..],
        &[1],
        &[1, 2, 9],
        &[1, 2, 9, 9, 9, 1],
        &[8, 7],
        &[3],
        &[2, 1],
    ] {
        let table_of_other = table_of(other).await;
        let replace = |place: &Place| fs::write(table(place), table_of_other).unwrap();
        assert_eq!(delivered_after(replace, true).await, 1, "{other:?}");
    }
}

/// The table says of a copy's position that the event is there, since it was before the journal lost
/// its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_used_again_hides_no_earlier_event() {
    let table_of_other = table_of(&[1, 2, 3, 4]).await;
    let place = Place::new();
    drop(place.open());
    fs::write(table(&place), table_of_other).unwrap();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    // Events are of one size: the second 4 is where the table has one.
    store
        .append_all([event(4), event(2), event(3), event(4)])
        .await;
    assert_eq!(store.drain("crm").await.len(), 3);
}
