//! Preallocated segments.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{Opened, Place, fault::faulty};
use crate::{
    event::Notification,
    store::{
        EventFilter, Health, Monitored,
        embedded::segment::{HEADER_BYTES, Position},
        tests::{at, event},
    },
};

/// The size of a segment here, in bytes.
const SEGMENT: u64 = 1 << 20;

/// How far what is on stable storage goes.
fn end(store: &Opened) -> Position {
    store.store.shared.core.progress.end()
}

fn size(place: &Place, number: u32) -> u64 {
    fs::metadata(place.journal().segment(number)).unwrap().len()
}

fn preallocated(place: &Place) -> PathBuf {
    place.journal().path().join("spare.new")
}

/// An event so large that a segment is preallocated.
fn large(n: u64) -> Notification {
    Notification {
        body: vec![b'x'; 100_000].into(),
        ..event(n)
    }
}

/// Lets others go on, and panics once a test has waited far too long.
async fn wait(since: Instant) {
    assert!(since.elapsed().as_secs() < 30, "it never comes about");
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Appends until a preallocated segment is written to. Says which, and how many events that
/// took.
async fn fill(place: &Place, store: &Opened) -> (u32, usize) {
    let began = Instant::now();
    store.append(&large(1_000_000)).await.unwrap();
    let mut count = 1;
    loop {
        let number = end(store).segment();
        if number > 1 && size(place, number) > end(store).offset() {
            return (number, count);
        }
        wait(began).await;
        store
            .append(&event(1_000_000 + count as u64))
            .await
            .unwrap();
        count += 1;
    }
}

/// A store that writes to a preallocated segment.
async fn filled() -> (Place, Opened, u32, usize) {
    let mut place = Place::new();
    place.settings.segment = SEGMENT;
    let store = place.open();
    store.subscribe(&["crm"]).await;
    let (number, count) = fill(&place, &store).await;
    (place, store, number, count)
}

/// How many events a store at `place` knows by its journal alone.
async fn known(place: &Place) -> usize {
    for ledger in place.kept("ledger") {
        fs::remove_file(ledger).unwrap();
    }
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store.settle_down().await;
    let all = EventFilter {
        limit: 100_000,
        ..EventFilter::default()
    };
    place.records().events(&all).unwrap().events.len()
}

fn damaged_bytes(place: &Place) -> i64 {
    place.metrics.journal_damaged_bytes.get()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_store_soon_writes_to_a_preallocated_segment() {
    let (place, store, number, count) = filled().await;
    assert_eq!(size(&place, number), SEGMENT);
    assert!(size(&place, number - 1) < SEGMENT, "it need not be full");
    let first = end(&store);
    store.append_all((0..10).map(event)).await;
    assert_eq!(end(&store).segment(), first.segment());
    assert_eq!(size(&place, number), SEGMENT, "it does not grow");
    assert_eq!(store.drain("crm").await.len(), count + 10);
    store.store.measure(at(0)).await.unwrap();
    let sealed: u64 = (1..number).map(|number| size(&place, number)).sum();
    let written = sealed + end(&store).offset();
    assert_eq!(place.metrics.journal_bytes.get(), written as i64);
    assert_eq!(damaged_bytes(&place), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_rolls_from_one_preallocated_segment_to_the_next() {
    let (place, store, number, count) = filled().await;
    let began = Instant::now();
    let mut more = 0;
    while end(&store).segment() == number
        || size(&place, end(&store).segment()) <= end(&store).offset()
    {
        wait(began).await;
        store.append(&large(more as u64)).await.unwrap();
        more += 1;
    }
    assert!(size(&place, number) >= SEGMENT);
    assert_eq!(store.drain("crm").await.len(), count + more);
    store.close().await;
    assert_eq!(known(&place).await, count + more);
    assert_eq!(damaged_bytes(&place), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_after_the_last_record_are_kept_and_overwritten() {
    let (place, store, number, count) = filled().await;
    let before = end(&store);
    store.close().await;
    let store = place.open();
    assert_eq!(end(&store), before);
    assert_eq!(size(&place, number), SEGMENT);
    assert!(place.kept("torn").is_empty());
    store.append_all((0..3).map(event)).await;
    assert_eq!(end(&store).segment(), number);
    assert_eq!(size(&place, number), SEGMENT);
    store.close().await;
    assert_eq!(known(&place).await, count + 3);
    assert_eq!(damaged_bytes(&place), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_ends_in_zeros_is_read_whole() {
    let (place, store, _, count) = filled().await;
    let mut zeros = event(1);
    zeros.body = vec![0; 5000].into();
    store.append(&zeros).await.unwrap();
    let before = end(&store);
    store.close().await;
    let store = place.open();
    assert_eq!(end(&store), before);
    assert!(place.kept("torn").is_empty());
    store.append(&event(2)).await.unwrap();
    store.close().await;
    assert_eq!(known(&place).await, count + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loses_nothing_of_a_preallocated_segment() {
    let (place, store, number, count) = filled().await;
    store.append_all((0..50).map(event)).await;
    let after = place.crash();
    drop(store);
    assert_eq!(known(&after).await, count + 50);
    assert_eq!(known(&place).await, count + 50);
    assert_eq!(size(&after, number), SEGMENT);
    assert!(after.kept("torn").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_record_is_cut_with_the_preallocated_zeros_after_it() {
    let (place, store, number, count) = filled().await;
    let started = end(&store).offset();
    store.append(&event(1)).await.unwrap();
    let torn = end(&store).offset() - started - 7;
    drop(store);
    place.damage(number, |bytes| {
        let from = (started + torn) as usize;
        bytes[from..].fill(0);
    });
    let store = place.open();
    assert_eq!(size(&place, number), started);
    let kept = place.kept("torn");
    assert_eq!(fs::metadata(&kept[0]).unwrap().len(), torn + 7);
    store.append(&event(2)).await.unwrap();
    store.close().await;
    assert_eq!(known(&place).await, count + 1);
    assert_eq!(damaged_bytes(&place), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_in_the_middle_are_damage_and_cost_no_more_than_they_cover() {
    let (place, store, number, count) = filled().await;
    store.append(&event(1)).await.unwrap();
    let from = end(&store).offset() as usize;
    store.append(&event(2)).await.unwrap();
    let to = end(&store).offset() as usize;
    store.append(&event(3)).await.unwrap();
    drop(store);
    place.damage(number, |bytes| bytes[from..to].fill(0));
    assert_eq!(known(&place).await, count + 2);
    assert_eq!(damaged_bytes(&place), (to - from) as i64);
    assert!(place.kept("torn").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_at_the_end_of_a_sealed_segment_are_damage() {
    let (place, store, number, count) = filled().await;
    store.close().await;
    let sealed = number - 1;
    let length = size(&place, sealed);
    let header = place.journal().header(number).unwrap().unwrap();
    assert_eq!(header.previous, Some((sealed, length)));
    place.damage(sealed, |bytes| {
        let end = bytes.len();
        bytes[HEADER_BYTES..end].fill(0);
    });
    let left = known(&place).await;
    assert!(left < count);
    assert_eq!(damaged_bytes(&place), length as i64 - HEADER_BYTES as i64);
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
async fn a_sealed_segment_holds_no_unused_zeros() {
    let mut place = Place::new();
    place.settings.segment = SEGMENT;
    place.clock = moving_clock;
    let store = place.open();
    store.subscribe(&["crm"]).await;
    let (number, _) = fill(&place, &store).await;
    let length = end(&store).offset();
    LATE.store(true, Ordering::Relaxed);
    store.append(&event(1)).await.unwrap();
    assert!(end(&store).segment() > number);
    assert_eq!(size(&place, number), length);
    let next = place.journal().header(number + 1).unwrap().unwrap();
    assert_eq!(next.previous, Some((number, length)));
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_begin_empty_without_room_to_preallocate() {
    let (mut place, disk) = faulty();
    place.settings.segment = SEGMENT;
    place.settings.reserve = 1000;
    disk.free.store(1000 + 4 * SEGMENT - 1, Ordering::SeqCst);
    let store = place.open();
    store.subscribe(&["crm"]).await;
    let began = Instant::now();
    let mut count = 0;
    while disk.preallocator_looks.load(Ordering::SeqCst) == 0 || end(&store).segment() < 3 {
        wait(began).await;
        store.append(&large(count)).await.unwrap();
        count += 1;
    }
    assert!(!preallocated(&place).exists());
    for number in 1..3 {
        assert!(size(&place, number) >= SEGMENT);
    }
    assert_eq!(size(&place, end(&store).segment()), end(&store).offset());
    assert_eq!(store.drain("crm").await.len() as u64, count);
    drop(store);

    disk.free.store(1000 + 4 * SEGMENT, Ordering::SeqCst);
    let store = place.open();
    fill(&place, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_during_preallocation_costs_no_event() {
    let (mut place, disk) = faulty();
    place.settings.segment = SEGMENT;
    disk.fill.store(true, Ordering::SeqCst);
    let store = place.open();
    store.append(&large(0)).await.unwrap();
    let began = Instant::now();
    let mut count = 1;
    while disk.preallocator_looks.load(Ordering::SeqCst) == 0 || preallocated(&place).exists() {
        wait(began).await;
        store.append(&event(count)).await.unwrap();
        count += 1;
    }
    assert_eq!(*store.store.health().borrow(), Health::Sound);
    assert_eq!(size(&place, end(&store).segment()), end(&store).offset());
    store.close().await;
    assert_eq!(known(&place).await as u64, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_to_a_preallocated_segment_leaves_nothing_of_it() {
    let (mut place, disk) = faulty();
    place.settings.segment = SEGMENT;
    let store = place.open();
    let (number, count) = fill(&place, &store).await;
    let before = end(&store);
    disk.write.store(true, Ordering::SeqCst);
    store.append(&event(1)).await.unwrap_err();
    assert_eq!(size(&place, number), before.offset());
    disk.write.store(false, Ordering::SeqCst);
    let mut health = store.store.health();
    let sound = |health: &Health| *health == Health::Sound;
    health.wait_for(sound).await.unwrap();
    store.append(&event(2)).await.unwrap();
    store.close().await;
    assert_eq!(known(&place).await, count + 1);
    assert_eq!(damaged_bytes(&place), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_segment_is_removed_when_room_is_short_and_at_close() {
    let (mut place, disk) = faulty();
    place.settings.segment = SEGMENT;
    place.settings.reserve = 2;
    let store = place.open();
    fill(&place, &store).await;
    store.append(&large(1)).await.unwrap();
    let made = || fs::metadata(preallocated(&place)).is_ok_and(|file| file.len() == SEGMENT);
    let began = Instant::now();
    while !made() {
        wait(began).await;
    }
    store.close().await;
    assert!(!preallocated(&place).exists());

    let store = place.open();
    store.append(&large(2)).await.unwrap();
    while !made() {
        wait(began).await;
    }
    disk.free.store(1, Ordering::SeqCst);
    while preallocated(&place).exists() {
        wait(began).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn remains_of_a_preallocated_segment_are_never_used() {
    let mut place = Place::new();
    place.settings.segment = SEGMENT;
    drop(place.open());
    fs::write(preallocated(&place), vec![0x5a; SEGMENT as usize]).unwrap();
    let store = place.open();
    assert!(!preallocated(&place).exists());
    let (number, count) = fill(&place, &store).await;
    let length = end(&store).offset();
    store.close().await;
    let file = OpenOptions::new()
        .read(true)
        .open(place.journal().segment(number))
        .unwrap();
    let mut rest = vec![1; (SEGMENT - length) as usize];
    file.read_exact_at(&mut rest, length).unwrap();
    assert!(rest.iter().all(|byte| *byte == 0));
    assert_eq!(known(&place).await, count);
}
