//! A store whose files are of different times, as after copying them one by one while a service
//! ran. A service starts on it, accepts events, and delivers everything in its journal.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use crate::{
    crash::{Load, archived_serials},
    harness::{ARCHIVE, ENDPOINTS, Home, Service, cnam, eventually},
};

/// The parts of a store, each copied in one step.
const JOURNAL: &[&str] = &["journal"];
const DATABASE: &[&str] = &["ledger.db", "ledger.db-shm"];
const LOG: &[&str] = &["ledger.db-wal"];
const TABLE: &[&str] = &["seen.table"];

/// The serials of events that are posted to the copy only.
pub(crate) const NEW: u64 = 10_000_000;

/// The number of events that are acknowledged between two copied files.
const BETWEEN: usize = 40;

pub(crate) fn home() -> Home {
    Home::new(&[&endpoints(), ARCHIVE])
}

/// [`ENDPOINTS`] with a journal of small segments.
fn endpoints() -> String {
    ENDPOINTS.replace("reserve = 0", "reserve = 0\nsegment = \"1MiB\"")
}

/// Copies the existing files of `parts` from one home's store to another's.
fn copy(from: &Home, to: &Home, parts: &[&str]) {
    for part in parts {
        let part = Path::new("data").join(part);
        copy_any(&from.path().join(&part), &to.path().join(&part));
    }
}

/// A file that has been deleted meanwhile is skipped.
pub(crate) fn copy_any(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    if !from.is_dir() {
        let copied = fs::copy(from, to);
        assert!(copied.is_ok() || !from.exists(), "{copied:?}");
        return;
    }
    let mut names: Vec<_> = fs::read_dir(from)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    for name in names {
        copy_any(&from.join(&name), &to.join(&name));
    }
}

/// All orders of `parts`.
fn orders<'a>(parts: &[&'a [&'a str]]) -> Vec<Vec<&'a [&'a str]>> {
    let mut all = Vec::new();
    for (at, first) in parts.iter().enumerate() {
        let rest = [&parts[..at], &parts[at + 1..]].concat();
        let orders = orders(&rest).into_iter();
        all.extend(orders.map(|order| [&[*first][..], &order].concat()));
    }
    if parts.is_empty() {
        all.push(Vec::new());
    }
    all
}

/// The damaged ranges in a log, by segment. A copy has damage where the service was writing while
/// the file was read: the end of a batch, and zeros in place of its beginning.
fn damage(log: &str) -> Vec<(u32, Range<usize>)> {
    let field = |line: &str, name: &str| -> Option<usize> {
        let words = line.split_whitespace();
        words
            .rev()
            .find_map(|word| word.strip_prefix(name)?.parse().ok())
    };
    let lines = log
        .lines()
        .filter(|line| line.contains("the journal is damaged"));
    let stretches = lines.map(|line| {
        let segment = field(line, "segment=")?;
        let (offset, bytes) = (field(line, "offset=")?, field(line, "bytes=")?);
        Some((u32::try_from(segment).ok()?, offset..offset + bytes))
    });
    stretches.collect::<Option<_>>().unwrap()
}

/// The serials in the journal of a recovered store, outside of its `damaged` ranges.
pub(crate) fn in_journal(home: &Home, damaged: &[(u32, Range<usize>)]) -> BTreeSet<u64> {
    let mut serials = BTreeSet::new();
    for entry in fs::read_dir(home.path().join("data/journal")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|word| word == "segment") {
            let mut bytes = fs::read(&path).unwrap();
            let number: u32 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            for (_, stretch) in damaged.iter().filter(|(segment, _)| *segment == number) {
                bytes[stretch.clone()].fill(0);
            }
            let text = String::from_utf8_lossy(&bytes);
            let mut parts = text.split("\"serial ").skip(1);
            serials.extend(parts.by_ref().map(|part| {
                let (serial, _) = part.split_once('"').unwrap();
                serial.parse::<u64>().unwrap()
            }));
        }
    }
    serials
}

/// The ids of the events that are delivered by the ledger; none if the ledger's files do not match.
fn done(home: &Home) -> BTreeSet<String> {
    let look = tempfile::tempdir().unwrap();
    for name in ["ledger.db", "ledger.db-wal"] {
        copy_any(
            &home.path().join("data").join(name),
            &look.path().join(name),
        );
    }
    let read = || -> rusqlite::Result<BTreeSet<String>> {
        let db = rusqlite::Connection::open(look.path().join("ledger.db"))?;
        let sound: String = db.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
        if sound != "ok" {
            return Ok(BTreeSet::new());
        }
        let mut done = db.prepare(
            "SELECT lower(hex(id)) FROM events JOIN deliveries USING (position) WHERE state = 3",
        )?;
        done.query_map([], |row| row.get(0))?.collect()
    };
    read().unwrap_or_default()
}

/// The serial of each event that a home has delivered, by its id.
pub(crate) fn by_id(home: &Home) -> BTreeMap<String, u64> {
    let archived = home.archived();
    let events = archived.iter().filter_map(|event| {
        let said = event["data"]["payload"]["object"]["cnam"].as_str()?;
        let serial = said.strip_prefix("serial ")?.parse().ok()?;
        Some((event["id"].as_str()?.replace('-', ""), serial))
    });
    events.collect()
}

pub(crate) fn deliveries_of(home: &Home, serial: u64) -> usize {
    let said = format!("serial {serial}");
    let archived = home.archived();
    let events = archived.iter();
    let ours = events.filter(|event| event["data"]["payload"]["object"]["cnam"] == said);
    ours.count()
}

pub(crate) fn post(service: &Service, serial: u64) {
    let body = cnam(u32::try_from(serial % 7).unwrap(), serial);
    assert_eq!(service.zoom(&body).status, 200);
}

/// Starts a service on a copied store and checks everything. `known` has the events by their ids,
/// and `before` the events that had been delivered when the copy was complete. Returns the log.
pub(crate) fn starts_and_delivers(
    what: &str,
    home: &Home,
    known: &BTreeMap<String, u64>,
    before: &BTreeSet<u64>,
) -> String {
    let is_done = || -> BTreeSet<u64> {
        let done = done(home);
        done.iter()
            .filter_map(|id| known.get(id).copied())
            .collect()
    };
    let done = is_done();
    let began = Instant::now();
    let service = home.start();
    eventually("the service is ready", || {
        service.ready() == (200, "ready".to_owned())
    });
    let ready = began.elapsed();
    let mut damaged = Vec::new();
    let mut stored = in_journal(home, &damaged);
    post(&service, NEW);
    eventually("all events of the journal are delivered", || {
        let found = damage(&service.log());
        if found != damaged {
            stored = in_journal(home, &found);
            damaged = found;
        }
        let (delivered, done) = (archived_serials(home), is_done());
        let is_settled = |serial: &u64| {
            delivered.contains(serial) || done.contains(serial) && before.contains(serial)
        };
        delivered.contains(&NEW) && stored.iter().all(is_settled)
    });
    let all = began.elapsed();
    let log = service.log();
    let renewed = log.contains("set aside");
    eprintln!(
        "{what}: ready after {ready:?}, delivered after {all:?}, {} stored, {} done, renewed: {renewed}",
        stored.len(),
        done.len()
    );
    assert!(ready < Duration::from_secs(5), "{ready:?}");
    // Duplicates are recognized with any state of the index.
    let copied = [stored.first().unwrap(), stored.last().unwrap()];
    for (serial, marker) in copied.into_iter().zip(NEW + 1..) {
        let before = deliveries_of(home, *serial);
        post(&service, *serial);
        post(&service, marker * 7 + serial % 7);
        eventually("the events after the copy are delivered", || {
            archived_serials(home).contains(&(marker * 7 + serial % 7))
        });
        assert_eq!(deliveries_of(home, *serial), before, "{what}: {serial}");
    }
    if !renewed {
        let again: Vec<_> = archived_serials(home)
            .intersection(&done)
            .copied()
            .collect();
        let stored_again: Vec<_> = again
            .iter()
            .filter(|serial| stored.contains(serial))
            .collect();
        assert!(stored_again.is_empty(), "{what}: {stored_again:?}");
    }
    for line in [
        "ends before",
        "set aside",
        "does not match the journal, and is rebuilt",
    ] {
        assert!(log.matches(line).count() <= 1, "{what}: {log}");
    }
    assert!(!log.contains("cannot be"), "{what}: {log}");
    log
}

#[test]
fn a_copy_made_file_by_file_under_load_in_any_order() {
    let origin = home();
    let service = origin.start();
    let load = Load::start(&service, &Arc::new(AtomicU64::new(0)));
    let mut copies = Vec::new();
    for order in orders(&[JOURNAL, DATABASE, LOG, TABLE]) {
        let target = home();
        for part in &order {
            let before = load.acknowledged().len();
            eventually("the load goes on", || {
                load.acknowledged().len() >= before + BETWEEN
            });
            copy(&origin, &target, part);
        }
        copies.push((format!("{order:?}"), target, archived_serials(&origin)));
    }
    let acknowledged = load.stop();
    eventually("the origin has delivered everything", || {
        archived_serials(&origin).is_superset(&acknowledged)
    });
    drop(service);
    let known = by_id(&origin);
    for (order, target, before) in &copies {
        starts_and_delivers(order, target, &known, before);
    }
}

#[test]
fn files_of_two_moments_in_any_mixture() {
    let origin = home();
    let serials = Arc::new(AtomicU64::new(0));
    let mut moments = Vec::new();
    for _ in 0..2 {
        let mut service = origin.start();
        let load = Load::start(&service, &serials);
        eventually("there is some load", || load.acknowledged().len() > 300);
        let acknowledged = load.stop();
        eventually("all events are delivered", || {
            archived_serials(&origin).is_superset(&acknowledged)
        });
        service.signal("TERM");
        assert_eq!(service.wait(), Some(0));
        let moment = home();
        copy(&origin, &moment, &["journal", "ledger.db", "seen.table"]);
        moments.push(moment);
    }
    let (known, before) = (by_id(&origin), archived_serials(&origin));
    for mixture in 0..8_usize {
        let target = home();
        for (bit, part) in [JOURNAL, DATABASE, TABLE].iter().enumerate() {
            copy(&moments[mixture >> bit & 1], &target, part);
        }
        starts_and_delivers(&format!("mixture {mixture:03b}"), &target, &known, &before);
    }
}

#[test]
fn a_replay_on_a_lagging_ledger_is_not_parked_by_an_older_record_of_the_journal() {
    let home = home();
    let (ledger, old) = ("data/ledger.db", "ledger.old");
    let run = |serial: u64, deliveries: usize| {
        let mut service = home.start();
        post(&service, serial);
        eventually("the event is delivered", || {
            deliveries_of(&home, serial) == deliveries
        });
        eventually("the ledger has everything", || {
            service.metric("hookswitch_ledger_lag ") == 0.0
        });
        service.signal("TERM");
        assert_eq!(service.wait(), Some(0));
    };
    run(1, 1);
    fs::copy(home.path().join(ledger), home.path().join(old)).unwrap();
    // The service runs without a handler for a while.
    home.configure(&[&endpoints()]);
    run(2, 0);
    home.configure(&[&endpoints(), ARCHIVE]);
    run(3, 1);
    fs::copy(home.path().join(old), home.path().join(ledger)).unwrap();
    let output = home.run(&["replay", "--handler", "archive", "--until", "0s"]);
    assert!(output.status.success(), "{output:?}");
    let _service = home.start();
    eventually("the first event is delivered again", || {
        deliveries_of(&home, 1) == 2
    });
    assert_eq!(home.parked(), []);
}
