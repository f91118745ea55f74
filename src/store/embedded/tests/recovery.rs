//! Opening what a crash, a disk or a person has left.

use std::{collections::BTreeSet, os::unix::fs::FileExt, sync::Arc};

use rusqlite::config::DbConfig;

use super::{Engine, Opened, Place, written};
use crate::store::{
    Deliveries, StoreError, Verdict,
    embedded::{
        Context, Embedded,
        reader::{Scan, ScanItem},
        record::{self, Content},
        segment::{HEADER_BYTES, Header, Position, VERSION},
    },
    tests::{at, clock, event, eventually, keyed, operator::all_parked},
};

/// Where the events of segment `number` begin.
fn offsets(place: &Place, number: u32) -> Vec<usize> {
    let mut scan = Scan::open(&place.journal(), Position::new(number, 0)).unwrap();
    let mut offsets = Vec::new();
    while let Some(step) = scan.next().unwrap() {
        if let ScanItem::Record { position, bytes } = step
            && let Some(Content::Event(_)) = record::content(&bytes, position)
        {
            offsets.push(position.offset() as usize);
        }
    }
    offsets
}

#[tokio::test(flavor = "multi_thread")]
async fn appended_events_survive_a_crash() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["archive"]).await;
    store.append_all((0..50).map(event)).await;
    let after = place.crash();
    drop(store);
    let store = after.open();
    store.subscribe(&["archive"]).await;
    assert_eq!(store.drain("archive").await.len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_cut_and_kept() {
    let place = Place::new();
    let store = place.open();
    store.append_all((0..3).map(event)).await;
    drop(store);
    let last = offsets(&place, 1)[2];
    let mut torn = Vec::new();
    place.damage(1, |bytes| {
        bytes.truncate(bytes.len() - 5);
        torn = bytes[last..].to_vec();
    });
    let store = place.open();
    assert_eq!(place.metrics.journal_damaged_bytes.get(), 0);
    let length = std::fs::metadata(place.journal().segment(1)).unwrap().len();
    assert_eq!(length, last as u64);
    let kept = place.kept("torn");
    assert_eq!(std::fs::read(&kept[0]).unwrap(), torn);
    store.append(&event(9)).await.unwrap();
    store.subscribe(&["archive"]).await;
    assert_eq!(store.drain("archive").await.len(), 3);
    assert_eq!(offsets(&place, 1).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_is_skipped_and_counted_but_never_cut() {
    let place = Place::new();
    let store = place.open();
    store.append_all((0..3).map(event)).await;
    drop(store);
    let started = offsets(&place, 1);
    place.damage(1, |bytes| bytes[started[1] + 40] ^= 1);
    let before = std::fs::read(place.journal().segment(1)).unwrap();
    let store = place.open();
    let damaged = (started[2] - started[1]) as i64;
    assert_eq!(place.metrics.journal_damaged_bytes.get(), damaged);
    store.subscribe(&["archive"]).await;
    assert_eq!(store.drain("archive").await.len(), 2);
    assert_eq!(place.metrics.journal_damaged_bytes.get(), damaged);
    let after = std::fs::read(place.journal().segment(1)).unwrap();
    assert!(after.starts_with(&before));
    assert!(place.kept("torn").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_length_costs_one_record() {
    let place = Place::new();
    let store = place.open();
    store.append_all((0..3).map(event)).await;
    drop(store);
    let started = offsets(&place, 1);
    place.damage(1, |bytes| bytes[started[0] + 6] ^= 1);
    let store = place.open();
    store.subscribe(&["archive"]).await;
    assert_eq!(store.drain("archive").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_header_costs_no_record() {
    let place = Place::new();
    let store = place.open();
    store.append_all((0..3).map(event)).await;
    drop(store);
    place.damage(1, |bytes| bytes[20] ^= 1);
    let store = place.open();
    assert_eq!(
        place.metrics.journal_damaged_bytes.get(),
        HEADER_BYTES as i64
    );
    store.append(&event(3)).await.unwrap();
    assert_eq!(
        offsets(&place, 2).len(),
        1,
        "nothing is put under a damaged header"
    );
    store.subscribe(&["archive"]).await;
    assert_eq!(store.drain("archive").await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_segment_that_has_lost_its_end_is_reported() {
    let mut place = Place::new();
    place.settings.segment = 1;
    let store = place.open();
    store.append_all((0..3).map(event)).await;
    drop(store);
    assert!(place.journal().segments().unwrap().len() >= 3);
    place.damage(2, |bytes| bytes.truncate(bytes.len() - 7));
    let store = place.open();
    assert_eq!(place.metrics.journal_damaged_bytes.get(), 7);
    store.subscribe(&["archive"]).await;
    assert_eq!(store.drain("archive").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_missing_before_it_was_indexed_is_reported() {
    let mut place = Place::new();
    place.settings.segment = 1;
    let store = place.open();
    store.subscribe(&["archive"]).await;
    store.append(&event(1)).await.unwrap();
    store.settle_down().await;
    drop(store);
    let store = place.open();
    store.append_all([event(2), event(3)]).await;
    drop(store);
    let lost = place.journal().segment(3);
    let bytes = std::fs::metadata(&lost).unwrap().len();
    std::fs::remove_file(lost).unwrap();
    let store = place.open();
    assert_eq!(place.metrics.journal_damaged_bytes.get(), bytes as i64);
    store.subscribe(&["archive"]).await;
    assert_eq!(store.drain("archive").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_position_is_used_twice_when_the_journal_has_lost_its_end() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["archive"]).await;
    store.append_all([keyed(1, "a"), keyed(2, "b")]).await;
    store.settle_down().await;
    drop(store);
    let second = offsets(&place, 1)[1];
    place.damage(1, |bytes| bytes.truncate(second));
    let store = place.open();
    store.append(&keyed(3, "c")).await.unwrap();
    // Behind the one in which the journal records what is left.
    assert_eq!(offsets(&place, 3).len(), 1);
    store.subscribe(&["archive"]).await;
    // Positions, not numbers of records: the journal counts fewer than the ledger has read.
    let shared = &store.store.shared;
    let known = async || {
        shared
            .ledger
            .run("asking", |database| database.watermark())
            .await
    };
    eventually("the third is known", async || {
        (known().await.unwrap().through >= shared.core.progress.end()).then_some(())
    })
    .await;
    assert_eq!(store.drain("archive").await.len(), 2);
    // What is lost is not passed over: it is parked.
    let parked = place.records().parked(&all_parked()).unwrap().deliveries;
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0].why, "the event is not in the journal any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_ledger_is_rebuilt_from_the_journal() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["archive"]).await;
    store.append_all((0..20).map(event)).await;
    store.append(&event(3)).await.unwrap();
    store.close().await;
    for kept in place.kept("ledger") {
        std::fs::remove_file(kept).unwrap();
    }
    let reports = Arc::new(std::sync::Mutex::new(Vec::new()));
    let listener = reports.clone();
    let context = Context {
        metrics: place.metrics.clone(),
        clock,
        rebuild: Arc::new(move |done, total| listener.lock().unwrap().push((done, total))),
    };
    let store = Embedded::open(&place.settings, context, place.disk.clone()).unwrap();
    let store = Opened::new(Arc::new(store), place.metrics.clone());
    store.append(&event(20)).await.unwrap();
    store.subscribe(&["archive"]).await;
    let got: BTreeSet<_> = store.drain("archive").await.into_iter().collect();
    assert_eq!(got.len(), 21);
    // The ledger is complete before the end is reported.
    eventually("the end is reported", async || {
        let last = reports.lock().unwrap().last().copied();
        last.filter(|(done, all)| done == all && *all > 21)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_ledger_is_set_aside_and_rebuilt() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["archive"]).await;
    store.append_all((0..20).map(event)).await;
    store.close().await;
    std::fs::write(place.settings.ledger(), b"this is no database").unwrap();
    let store = place.open();
    assert!(!place.kept("ledger.db.damaged-1").is_empty());
    store.subscribe(&["archive"]).await;
    assert_eq!(store.drain("archive").await.len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_damaged_beyond_its_first_pages_is_rebuilt() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["archive"]).await;
    store.append_all((0..2000).map(event)).await;
    store.settle_down().await;
    store.close().await;
    // The first pages are sound, so that it opens; the others are not.
    let ledger = std::fs::OpenOptions::new()
        .write(true)
        .open(place.settings.ledger())
        .unwrap();
    let length = ledger.metadata().unwrap().len() as usize;
    let from = 16 * 4096;
    ledger
        .write_all_at(&vec![0x5a; length - from], from as u64)
        .unwrap();
    let store = place.open();
    store.subscribe(&["archive"]).await;
    let mut got = BTreeSet::new();
    while got.len() < 2000 {
        let handler = "archive".into();
        // The first of these fails, and marks the ledger as damaged.
        let Ok(claims) = store.store.claim(&handler, 100, at(1000)).await else {
            continue;
        };
        for claim in claims.claims {
            got.insert(claim.notification.id);
            store.settle("archive", &claim, Verdict::Done).await;
        }
        tokio::task::yield_now().await;
    }
    assert!(!place.kept("ledger.db.damaged-1").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_sealed_before_it_was_indexed_is_read_to_its_end() {
    let mut place = Place::new();
    place.settings.segment = 1500;
    let store = place.open();
    store.subscribe(&["archive"]).await;
    store.append(&event(1)).await.unwrap();
    store.settle_down().await;
    let (release, released) = std::sync::mpsc::channel::<()>();
    let ledger = store.store.shared.ledger.clone();
    let busy = tokio::spawn(async move {
        let wait = ledger.run("waiting", move |_| {
            released.recv().ok();
            Ok(())
        });
        wait.await
    });
    store.append_all((2..10).map(event)).await;
    assert!(place.journal().segments().unwrap().len() > 2);
    drop(release);
    busy.await.unwrap().unwrap();
    assert_eq!(store.drain("archive").await.len(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_cannot_open_one_store() {
    let place = Place::new();
    let store = place.open();
    assert!(matches!(
        place.try_open().err(),
        Some(StoreError::Locked(_))
    ));
    store.close().await;
    place.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_later_version_are_left_alone() {
    let place = Place::new();
    drop(place.open());
    let db = rusqlite::Connection::open(place.settings.ledger()).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    assert!(matches!(
        place.try_open().err(),
        Some(StoreError::TooNew(_))
    ));
    assert!(matches!(
        place.settings.operator(clock).err(),
        Some(StoreError::TooNew(_))
    ));

    let place = Place::new();
    drop(place.open());
    place.damage(1, |bytes| {
        let header = Header {
            version: VERSION + 1,
            number: 1,
            previous: None,
            records_before: 0,
            begun_at: at(0),
        };
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    });
    assert!(matches!(
        place.try_open().err(),
        Some(StoreError::TooNew(_))
    ));
}

/// A store whose ledger and table know of two events more than its journal, of which the first is done.
async fn ahead() -> Place {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store.append_all([keyed(1, "a"), keyed(2, "b")]).await;
    assert_eq!(store.drain("crm").await.len(), 2);
    written(&store).await;
    let journal = std::fs::read(place.journal().segment(1)).unwrap();
    store.append_all([keyed(3, "c"), keyed(4, "d")]).await;
    store.settle_down().await;
    let claims = store.claim("crm", at(10)).await;
    store.settle("crm", &claims[0], Verdict::Done).await;
    store.close().await;
    std::fs::write(place.journal().segment(1), journal).unwrap();
    place
}

fn events_known(place: &Place) -> i64 {
    let db = rusqlite::Connection::open(place.settings.ledger()).unwrap();
    db.query_row("SELECT count(*) FROM events", [], |row| row.get(0))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_ahead_of_its_journal_is_cut_and_keeps_the_rest() {
    let place = ahead().await;
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store.append_all([keyed(4, "d"), keyed(5, "e")]).await;
    // What the journal has lost comes again as new; what is on record as done does not.
    assert_eq!(store.drain("crm").await.len(), 2);
    let parked = place.records().parked(&all_parked()).unwrap().deliveries;
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0].why, "the event is not in the journal any more");
    assert_eq!(events_known(&place), 2 + 1 + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_prevented_by_a_kill_is_made_at_the_next_start() {
    let place = ahead().await;
    let ledger = std::fs::read(place.settings.ledger()).unwrap();
    drop(place.open());
    // As if only the new segment had been made.
    std::fs::write(place.settings.ledger(), ledger).unwrap();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    assert_eq!(events_known(&place), 2 + 1);
    store.append(&keyed(5, "e")).await.unwrap();
    assert_eq!(store.drain("crm").await.len(), 1);
    // Each of the two cuts has the journal record what is left.
    assert_eq!(place.journal().segments().unwrap(), [1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_of_another_history_is_set_aside() {
    for serials in [[7, 8, 9], [1000, 2000, 3000]] {
        let other = Place::new();
        let store = other.open();
        store.subscribe(&["crm"]).await;
        store
            .append_all(serials.map(|n| keyed(n, &n.to_string())))
            .await;
        assert_eq!(store.drain("crm").await.len(), 3);
        store.close().await;
        let place = ahead().await;
        std::fs::copy(other.settings.ledger(), place.settings.ledger()).unwrap();
        let store = place.open();
        assert_eq!(place.kept("ledger.db.damaged-1").len(), 1);
        store.subscribe(&["crm"]).await;
        store.settle_down().await;
        assert_eq!(events_known(&place), 2);
        assert!(store.drain("crm").await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_is_kept_though_its_last_event_is_damaged() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    // The last record is a duplicate, for which the ledger has no event.
    store.append_all([1, 2, 3, 1].map(event)).await;
    assert_eq!(store.drain("crm").await.len(), 3);
    store.close().await;
    let started = offsets(&place, 1);
    place.damage(1, |bytes| {
        bytes[started[1] + 40] ^= 1;
        bytes[started[2] + 40] ^= 1;
    });
    let store = place.open();
    store.subscribe(&["crm"]).await;
    assert!(place.kept("damaged").is_empty());
    assert!(store.drain("crm").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_of_pieces_is_set_aside() {
    let place = Place::new();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store.append_all((1..4).map(event)).await;
    store.settle_down().await;
    store.close().await;
    let db = rusqlite::Connection::open(place.settings.ledger()).unwrap();
    let first = Position::new(1, HEADER_BYTES as u64).to_sql();
    db.execute("UPDATE progress SET through = ?1, records = 0", [first])
        .unwrap();
    drop(db);
    let store = place.open();
    store.subscribe(&["crm"]).await;
    assert_eq!(place.kept("ledger.db.damaged-1").len(), 1);
    assert_eq!(store.drain("crm").await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_whose_pages_are_of_two_moments_is_rebuilt() {
    let origin = Place::new();
    let store = origin.open();
    store.subscribe(&["crm"]).await;
    store.append_all((1..4).map(event)).await;
    store.settle_down().await;
    let place = origin.crash();
    let db = rusqlite::Connection::open(place.settings.ledger()).unwrap();
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .unwrap();
    // As if the page with this delivery were older than all others.
    let first = Position::new(1, 0).to_sql();
    let lost = "DELETE FROM deliveries WHERE position = (SELECT min(position) FROM events WHERE position > ?1)";
    assert_eq!(db.execute(lost, [first]).unwrap(), 1);
    drop(db);
    let store = place.open();
    store.subscribe(&["crm"]).await;
    eventually("it is set aside", async || {
        (!place.kept("ledger.db.damaged-1").is_empty()).then_some(())
    })
    .await;
    let claims = eventually("all are handed out", async || {
        let claims = store.claim_once("crm", 10, at(10)).await;
        (!claims.is_empty()).then_some(claims)
    })
    .await;
    assert_eq!(claims.len(), 3);
}
