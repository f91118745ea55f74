//! Duplicates are recognized, whatever happens to the table of the deduplication index.

use std::{
    fs::{self, OpenOptions},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::Place;
use crate::{
    event::{DedupeKey, Notification},
    store::{
        Verdict,
        embedded::{
            dedup_index::{DedupIndex, Found, IndexError},
            reader::{Scan, ScanItem},
            segment::Position,
        },
        tests::{at, event, parked},
    },
};

fn key(n: u64) -> DedupeKey {
    DedupeKey::new("zoom", "body", &n.to_le_bytes())
}

fn place_of(n: u64) -> Position {
    Position::new(1 + (n >> 16) as u32, 64 + (n & 0xffff))
}

/// Adds `numbers` to the table, which is rebuilt whenever it is crowded. Returns how often.
fn add(dedup_index: &mut DedupIndex, numbers: Range<u64>, oldest: Position) -> u32 {
    let mut rebuilds = 0;
    for n in numbers {
        let Found::Free(slot) = dedup_index.find(&key(n), |_| true).unwrap() else {
            panic!("{n} is known already");
        };
        if dedup_index.add(&key(n), slot, place_of(n)).unwrap() {
            dedup_index.rebuild(oldest).unwrap();
            rebuilds += 1;
        }
    }
    rebuilds
}

fn is_known(dedup_index: &DedupIndex, n: u64) -> bool {
    dedup_index.find(&key(n), |_| true).unwrap() == Found::Known(place_of(n))
}

#[test]
fn the_table_grows_with_its_live_entries_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table");
    assert!(DedupIndex::open(&path).unwrap().is_none());
    let mut dedup_index = DedupIndex::create(&path).unwrap();
    assert!(add(&mut dedup_index, 0..200_000, Position::default()) >= 2);
    assert!((0..200_000).all(|n| is_known(&dedup_index, n)));
    assert!((200_000..210_000).all(|n| !is_known(&dedup_index, n)));
    let large = fs::metadata(&path).unwrap().len();

    let oldest = place_of(190_000);
    dedup_index.rebuild(oldest).unwrap();
    assert!(fs::metadata(&path).unwrap().len() < large);
    drop(dedup_index);
    let dedup_index = DedupIndex::open(&path).unwrap().unwrap();
    assert!((190_000..200_000).all(|n| is_known(&dedup_index, n)));
    assert!((0..190_000).all(|n| !is_known(&dedup_index, n)));
}

/// The slots of a small table: those that keys have as their own, and with those behind them.
const OWN_SLOTS: u64 = 1 << 16;
const SLOTS: u64 = OWN_SLOTS + 4096;

/// Where a slot is in the file.
fn offset(slot: u64) -> usize {
    4096 + 16 * slot as usize
}

/// A key whose own slot in a small table is number `slot`.
fn key_of(slot: u64) -> DedupeKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(slot << 48).to_le_bytes());
    DedupeKey::from_bytes(bytes)
}

/// A small table that is a quarter full, and what its file holds.
fn small_table(path: &Path) -> (DedupIndex, Vec<u8>) {
    let mut dedup_index = DedupIndex::create(path).unwrap();
    add(&mut dedup_index, 0..16_000, Position::default());
    (dedup_index, fs::read(path).unwrap())
}

/// What a slot may hold in place of what was written to it.
fn other_contents(table: &[u8], slot: u64) -> [[u8; 16]; 5] {
    let at = |slot: u64| <[u8; 16]>::try_from(&table[offset(slot)..][..16]).unwrap();
    let mut flipped = at(slot);
    let bit = (slot % 128) as usize;
    flipped[bit / 8] ^= 1 << (bit % 8);
    let of_another_block = at((slot + 256) % SLOTS);
    let noise = *key(slot).as_bytes();
    [[0; 16], [0xff; 16], flipped, of_another_block, noise]
}

fn is_damaged<T>(done: &Result<T, IndexError>) -> bool {
    matches!(done, Err(IndexError::Damaged(_)))
}

#[test]
fn a_lookup_notices_damage_of_any_slot() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table");
    let (dedup_index, table) = small_table(&path);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for slot in 0..OWN_SLOTS {
        for other in other_contents(&table, slot) {
            file.write_all_at(&other, offset(slot) as u64).unwrap();
            let found = dedup_index.find(&key_of(slot), |_| false);
            assert!(is_damaged(&found), "slot {slot}: {other:?}, {found:?}");
        }
        let before = &table[offset(slot)..][..16];
        file.write_all_at(before, offset(slot) as u64).unwrap();
        dedup_index.find(&key_of(slot), |_| false).unwrap();
    }
}

#[test]
fn a_table_with_a_damaged_slot_is_not_rebuilt_from_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table");
    let (mut dedup_index, table) = small_table(&path);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for slot in [0, 1, 40_000, OWN_SLOTS - 1, OWN_SLOTS, SLOTS - 1] {
        for other in other_contents(&table, slot) {
            file.write_all_at(&other, offset(slot) as u64).unwrap();
            assert!(
                is_damaged(&dedup_index.rebuild(Position::default())),
                "slot {slot}"
            );
        }
        let before = &table[offset(slot)..][..16];
        file.write_all_at(before, offset(slot) as u64).unwrap();
    }
    dedup_index.rebuild(Position::default()).unwrap();
    assert!((0..16_000).all(|n| is_known(&dedup_index, n)));
}

#[test]
fn a_table_with_a_damaged_header_or_without_its_end_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table");
    let (mut dedup_index, _) = small_table(&path);
    dedup_index.sync(place_of(15_999)).unwrap();
    let table = fs::read(&path).unwrap();
    for bit in 0..28 * 8 {
        let mut other = table.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, other).unwrap();
        assert!(is_damaged(&DedupIndex::open(&path)), "bit {bit}");
    }
    for length in [0, 27, 4096, table.len() - 16] {
        fs::write(&path, &table[..length]).unwrap();
        assert!(is_damaged(&DedupIndex::open(&path)), "{length} bytes");
    }
    fs::write(&path, &table).unwrap();
    let dedup_index = DedupIndex::open(&path).unwrap().unwrap();
    assert_eq!(dedup_index.watermark(), place_of(15_999));
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
async fn keys_with_equal_hashes_are_distinguished() {
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
async fn two_keys_of_one_event_with_the_same_slot_are_both_added() {
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

/// Stores two events, lets `harm` happen to the table, and says how many of two duplicates and a new
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
async fn duplicates_are_recognized_after_a_stop_and_after_a_crash() {
    for stops in [true, false] {
        assert_eq!(delivered_after(|_| {}, stops).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_or_broken_table_is_rebuilt_from_the_journal() {
    for stops in [true, false] {
        let remove = |place: &Place| fs::remove_file(table(place)).unwrap();
        assert_eq!(delivered_after(remove, stops).await, 1);
        let overwrite = |place: &Place| fs::write(table(place), "no table").unwrap();
        assert_eq!(delivered_after(overwrite, stops).await, 1);
    }
}

/// What may become of a table's file.
type Harm = fn(&mut Vec<u8>);

const HARMS: &[(&str, Harm)] = &[
    ("noise", |table| fill_with_noise(table)),
    ("zeros", |table| table.fill(0)),
    ("noise behind the header", |table| {
        fill_with_noise(&mut table[4096..]);
    }),
    ("zeros behind the header", |table| table[4096..].fill(0)),
    ("noise in the header", |table| {
        fill_with_noise(&mut table[..4096]);
    }),
    ("slots of other blocks", |table| {
        table[4096..].rotate_left(4096);
    }),
    ("nothing", |table| table.clear()),
];

/// Bytes that nothing can be made of.
fn fill_with_noise(bytes: &mut [u8]) {
    for (n, part) in (0..).zip(bytes.chunks_mut(16)) {
        part.copy_from_slice(key(n).as_bytes());
    }
}

/// Has `harm` happen to the file that a store may have open.
fn do_harm(place: &Place, harm: Harm) {
    let mut bytes = fs::read(table(place)).unwrap();
    harm(&mut bytes);
    let file = OpenOptions::new().write(true).open(table(place)).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_damaged_while_the_store_is_closed_is_rebuilt() {
    for (what, harm) in HARMS {
        for stops in [true, false] {
            let delivered = delivered_after(|place| do_harm(place, *harm), stops).await;
            assert_eq!(delivered, 1, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_damaged_while_the_store_is_open_is_rebuilt() {
    for (what, harm) in HARMS {
        let place = Place::new();
        let store = place.open();
        store.subscribe(&["crm"]).await;
        store.append_all((1..=3).map(event)).await;
        let claims = store.claim("crm", at(10)).await;
        store.settle("crm", &claims[0], Verdict::Done).await;
        store.settle("crm", &claims[1], parked()).await;
        do_harm(&place, *harm);
        let again = [1, 4, 2, 3, 4].map(event);
        store.append_all(again.clone()).await;
        let after = store.claim("crm", at(1_000_000)).await;
        assert_eq!(after.len(), 1, "{what}");
        assert_eq!(after[0].notification.id, again[1].id, "{what}");
        assert_eq!(place.metrics.duplicates.get(), 4, "{what}");
        store.settle("crm", &claims[2], Verdict::Done).await;
        store.settle("crm", &after[0], Verdict::Done).await;
        // The new table knows all of them, now and when it is opened again.
        store.append_all((1..=4).map(event)).await;
        assert!(store.drain("crm").await.is_empty(), "{what}");
        store.close().await;
        let dedup_index = DedupIndex::open(&table(&place)).unwrap().unwrap();
        assert_ne!(dedup_index.watermark(), Position::default(), "{what}");
        let store = place.open();
        store.subscribe(&["crm"]).await;
        store.append_all((1..=5).map(event)).await;
        assert_eq!(store.drain("crm").await.len(), 1, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_closed_while_it_rebuilds_its_table_delivers_no_duplicate() {
    for (what, harm) in HARMS {
        let place = Place::new();
        let store = place.open();
        store.subscribe(&["crm"]).await;
        store.append_all((1..=3).map(event)).await;
        assert_eq!(store.drain("crm").await.len(), 3);
        do_harm(&place, *harm);
        store.append_all((1..=3).map(event)).await;
        store.close().await;
        let store = place.open();
        store.subscribe(&["crm"]).await;
        store.append_all((1..=4).map(event)).await;
        assert_eq!(store.drain("crm").await.len(), 1, "{what}");
    }
}

/// A table as version 1 had it: it says that all up to `watermark` are in it, and has nothing.
fn of_version_1(watermark: Position) -> Vec<u8> {
    let mut table = vec![0; offset(SLOTS)];
    table[..8].copy_from_slice(b"hookseen");
    table[8] = 1;
    table[16..24].copy_from_slice(&watermark.to_sql().to_le_bytes());
    table
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_version_1_is_rebuilt_from_the_journal() {
    let replace = |place: &Place| {
        let dedup_index = DedupIndex::open(&table(place)).unwrap().unwrap();
        fs::write(table(place), of_version_1(dedup_index.watermark())).unwrap();
    };
    assert_eq!(delivered_after(replace, true).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_lost_with_the_power_are_added_again() {
    let lose = |place: &Place| {
        let path = place.dir.path().join("empty");
        DedupIndex::create(&path).unwrap();
        fs::copy(path, table(place)).unwrap();
    };
    assert_eq!(delivered_after(lose, false).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_added_before_a_stop_are_not_read_again() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store.append_all([event(1), event(2)]).await;
    store.settle_down().await;
    store.close().await;
    let dedup_index = DedupIndex::open(&table(&place)).unwrap().unwrap();
    let mut scan = Scan::open(&place.journal(), Position::new(1, 0)).unwrap();
    let mut last = None;
    while let Some(ScanItem::Record { position, .. }) = scan.next().unwrap() {
        last = Some(position);
    }
    assert_eq!(Some(dedup_index.watermark()), last);
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
async fn a_table_of_another_moment_hides_no_event_and_delivers_no_duplicate() {
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

/// The table says of a duplicate's position that the event is there, since it was before the journal lost
/// its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_reused_position_hides_no_earlier_event() {
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
