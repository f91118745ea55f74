//! A store of version 1, whose journal does not have what became of deliveries.

use std::{fs, os::unix::fs::FileExt, path::Path};

use rusqlite::Connection;

use super::{
    Place,
    rebuild::{deliveries, lose_the_views, start},
};
use crate::{
    event::{EventId, Notification},
    store::{
        DeliveryState::{self, Done, Parked, Queued, Ready, Skipped},
        EventFilter,
        embedded::segment::VERSION,
        tests::{at, event, ids, keyed, operator::all_parked},
    },
};

/// The events of the frozen store.
fn events() -> Vec<Notification> {
    let loose = (1..=8).map(event);
    loose.chain([keyed(9, "a"), keyed(10, "a")]).collect()
}

/// How their deliveries stand: the third one was tried once, the fifth and the sixth were replayed, and
/// the fifth was done again.
const STATES: [DeliveryState; 10] = [
    Done, Parked, Ready, Skipped, Done, Ready, Ready, Ready, Ready, Queued,
];

/// A store as version 1 left it. It is never written anew.
fn of_version_1() -> Place {
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/store/v1");
    let place = Place::new();
    let journal = place.journal();
    fs::create_dir_all(journal.path()).unwrap();
    fs::copy(frozen.join("0000000001.segment"), journal.segment(1)).unwrap();
    let ledger = fs::read_to_string(frozen.join("ledger.sql")).unwrap();
    let db = Connection::open(place.settings.ledger()).unwrap();
    db.execute_batch(&ledger).unwrap();
    place
}

/// The ids of its events, oldest first.
fn stored(place: &Place) -> Vec<EventId> {
    let all = EventFilter {
        limit: 100,
        ..EventFilter::default()
    };
    let stored = place.records().events(&all).unwrap().events;
    stored.iter().rev().map(|event| event.id).collect()
}

fn states(place: &Place) -> Vec<DeliveryState> {
    let deliveries = stored(place).into_iter().map(|id| deliveries(place, id));
    deliveries.map(|deliveries| deliveries[0].state).collect()
}

fn all_deliveries(place: &Place) -> String {
    let all = stored(place).into_iter().map(|id| deliveries(place, id));
    format!("{:#?}", all.collect::<Vec<_>>())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deliveries_of_the_ledger_are_added_to_the_journal() {
    let place = of_version_1();
    let store = start(&place, &["crm"]).await;
    assert_eq!(states(&place), STATES);
    let before = all_deliveries(&place);
    store.close().await;
    lose_the_views(&place);

    let store = start(&place, &["crm"]).await;
    assert_eq!(all_deliveries(&place), before);
    let parked = place.records().parked(&all_parked()).unwrap().deliveries;
    assert_eq!(parked[0].why, "it will never do");
    store.append_all(events()).await;
    let mut open = ids(&store.claim("crm", at(499)).await);
    open.sort_unstable();
    assert_eq!(open, [6, 7, 8, 9].map(|n| stored(&place)[n - 1]));
    let claims = store.claim("crm", at(500)).await;
    assert_eq!(ids(&claims), [stored(&place)[2]]);
    assert_eq!(claims[0].attempt, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_appended_to_a_segment_of_version_1() {
    let place = of_version_1();
    let before = fs::read(place.journal().segment(1)).unwrap();
    let store = start(&place, &["crm"]).await;
    store.append(&event(11)).await.unwrap();
    store.close().await;
    assert_eq!(fs::read(place.journal().segment(1)).unwrap(), before);
    let next = place.journal().header(2).unwrap().unwrap();
    assert_eq!(next.version, VERSION);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_backfill_is_repeated() {
    // Before the new segment had its name.
    let place = of_version_1();
    let unfinished = place.journal().segment(2).with_extension("new");
    fs::write(unfinished, [7; 100]).unwrap();
    check_twice(&place).await;

    // Before the ledger noted that the segment is there.
    let place = of_version_1();
    start(&place, &["crm"]).await.close().await;
    let db = Connection::open(place.settings.ledger()).unwrap();
    let noted = db.execute("UPDATE progress SET journaled = 0", []);
    assert_eq!(noted.unwrap(), 1);
    drop(db);
    check_twice(&place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_ledger_is_set_aside() {
    let place = of_version_1();
    let path = place.settings.ledger();
    let db = Connection::open(&path).unwrap();
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'attempts'";
    let page: u32 = db.query_row(root, [], |row| row.get(0)).unwrap();
    let size: u32 = db
        .pragma_query_value(None, "page_size", |row| row.get(0))
        .unwrap();
    drop(db);
    let file = fs::File::options().write(true).open(&path).unwrap();
    let begin = u64::from(page - 1) * u64::from(size);
    file.write_all_at(&vec![0xa5; size as usize], begin)
        .unwrap();
    let store = start(&place, &["crm"]).await;
    assert_eq!(place.kept("ledger.db.damaged-1").len(), 1);
    assert_eq!(store.drain("crm").await.len(), events().len());
}

/// Starts on `place`, and once more without what is made from the journal.
async fn check_twice(place: &Place) {
    let store = start(place, &["crm"]).await;
    assert_eq!(states(place), STATES);
    store.close().await;
    lose_the_views(place);
    let _store = start(place, &["crm"]).await;
    assert_eq!(states(place), STATES);
}
