//! Crashes and damage: kills under load, torn, flipped and missing bytes, a missing ledger, an
//! overwritten deduplication index.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use crate::harness::{
    ARCHIVE, ENDPOINTS, Engine, Home, Service, ZOOM_SECRET, as_pairs, cnam, eventually,
    on_every_engine, request, unix_now, zoom_headers,
};

/// Threads that post distinct events, and record which ones were answered 200.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<u64>>>,
    /// The number of other answers than 200.
    pub(crate) others: Arc<Mutex<Vec<u16>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Load {
    /// Starts the threads. `serials` provides the events' serials, so that several loads can follow
    /// each other.
    pub(crate) fn start(service: &Service, serials: &Arc<AtomicU64>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
        let others = Arc::new(Mutex::new(Vec::new()));
        let address = service.address;
        let threads = (0..8)
            .map(|_| {
                let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
                let (others, serials) = (others.clone(), serials.clone());
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let serial = serials.fetch_add(1, Ordering::Relaxed);
                        let body = cnam(u32::try_from(serial % 7).unwrap(), serial);
                        let headers = zoom_headers(body.as_bytes(), ZOOM_SECRET, unix_now());
                        let answer = request(
                            address,
                            "POST",
                            "/zoom/number-management",
                            &as_pairs(&headers),
                            body.as_bytes(),
                        );
                        match answer {
                            Ok(answer) if answer.status == 200 => {
                                acknowledged.lock().unwrap().insert(serial);
                            }
                            Ok(answer) => others.lock().unwrap().push(answer.status),
                            Err(_) => {} // The service is gone, or going.
                        }
                    }
                })
            })
            .collect();
        Self {
            stop,
            acknowledged,
            others,
            threads,
        }
    }

    pub(crate) fn acknowledged(&self) -> BTreeSet<u64> {
        self.acknowledged.lock().unwrap().clone()
    }

    pub(crate) fn stop(mut self) -> BTreeSet<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.acknowledged()
    }
}

/// The serials of the events in the archive.
pub(crate) fn archived_serials(home: &Home) -> BTreeSet<u64> {
    let serial = |event: serde_json::Value| {
        let cnam = event["data"]["payload"]["object"]["cnam"]
            .as_str()?
            .to_owned();
        cnam.strip_prefix("serial ")?.parse().ok()
    };
    home.archived().into_iter().filter_map(serial).collect()
}

fn archive_holds(home: &Home, wanted: &BTreeSet<u64>) {
    eventually("everything acknowledged is archived", || {
        archived_serials(home).is_superset(wanted)
    });
}

fn files(folder: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, part));
        } else if path.file_name().unwrap().to_string_lossy().contains(part) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn last_segment(home: &Home) -> PathBuf {
    files(&home.path().join("data"), ".segment").pop().unwrap()
}

fn delete_ledger(home: &Home) {
    for file in files(&home.path().join("data"), "ledger") {
        fs::remove_file(file).unwrap();
    }
}

/// Posts `count` events, one after the other, and stops the service.
fn store(home: &Home, count: u64) {
    let mut service = home.start();
    for serial in 0..count {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    archive_holds(home, &(0..count).collect());
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
}

/// Posts the event with `serial`. Checks that it is delivered, and that no finished delivery is
/// repeated.
fn only_the_new_event_is_delivered(home: &Home, service: &Service, serial: u64) {
    assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    archive_holds(home, &[serial].into());
    assert_eq!(archived_serials(home), [serial].into());
}

fn lists(home: &Home, count: usize) {
    let listed = home.json(&["events", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), count);
}

/// The range of the record of the event with `serial` in the segment.
fn place_of(segment: &[u8], serial: u64) -> usize {
    let needle = format!("\"serial {serial}\"");
    segment
        .windows(needle.len())
        .position(|bytes| bytes == needle.as_bytes())
        .unwrap()
}

on_every_engine![nothing_acknowledged_is_lost_by_kills_in_the_middle_of_a_load,];

fn nothing_acknowledged_is_lost_by_kills_in_the_middle_of_a_load(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let serials = Arc::new(AtomicU64::new(0));
    let mut acknowledged = BTreeSet::new();
    for _ in 0..5 {
        let mut service = home.start();
        let load = Load::start(&service, &serials);
        eventually("the load is under way", || load.acknowledged().len() > 200);
        service.kill();
        acknowledged.extend(load.stop());
    }
    let _service = home.start();
    archive_holds(&home, &acknowledged);
}

#[test]
fn a_torn_tail_is_cut_and_kept_aside() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    store(&home, 3);
    let segment = last_segment(&home);
    let whole = fs::read(&segment).unwrap();
    let record = place_of(&whole, 2);
    // Half a record, as a loss of power during a write leaves it.
    fs::OpenOptions::new()
        .append(true)
        .open(&segment)
        .unwrap()
        .write_all(&whole[record - 100..record + 5])
        .unwrap();

    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 3)).status, 200);
    archive_holds(&home, &(0..4).collect());
    assert_eq!(files(&home.path().join("data"), ".torn").len(), 1);
    assert!(service.log().contains("torn"), "{}", service.log());
}

#[test]
fn a_flipped_byte_costs_its_own_record_and_no_other() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    store(&home, 5);
    let segment = last_segment(&home);
    let mut bytes = fs::read(&segment).unwrap();
    let at = place_of(&bytes, 2);
    bytes[at] ^= 0x40;
    fs::write(&segment, bytes).unwrap();
    delete_ledger(&home);
    fs::remove_file(home.path().join("events.ndjson")).unwrap();

    let service = home.start();
    only_the_new_event_is_delivered(&home, &service, 5);
    home.json(&["replay", "--handler", "archive"]);
    archive_holds(&home, &[0, 1, 3, 4, 5].into());
    eventually("the damaged one is parked", || {
        home.json(&["parked", "list"]).as_array().unwrap().len() == 1
    });
    assert!(!archived_serials(&home).contains(&2));
    eventually("the damage is counted", || {
        service.metric("hookswitch_journal_damaged_bytes") > 0.0
    });
    assert!(service.log().contains("damaged"), "{}", service.log());
}

#[test]
fn a_shortened_segment_keeps_the_rest_and_reports_the_loss() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    store(&home, 5);
    let segment = last_segment(&home);
    let bytes = fs::read(&segment).unwrap();
    fs::write(&segment, &bytes[..place_of(&bytes, 3)]).unwrap();
    fs::remove_file(home.path().join("events.ndjson")).unwrap();

    let mut service = home.start();
    // The positions of lost records are not used again, so the new event is not taken for a lost
    // one.
    assert_eq!(service.zoom(&cnam(1, 9)).status, 200);
    archive_holds(&home, &[9].into());
    assert!(service.log().contains("ends before"), "{}", service.log());
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    delete_ledger(&home);
    fs::remove_file(home.path().join("events.ndjson")).unwrap();
    let service = home.start();
    only_the_new_event_is_delivered(&home, &service, 10);
    lists(&home, 5);
}

#[test]
fn a_deleted_ledger_is_rebuilt_from_the_journal() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    store(&home, 20);
    delete_ledger(&home);
    fs::remove_file(home.path().join("events.ndjson")).unwrap();
    let service = home.start();
    only_the_new_event_is_delivered(&home, &service, 20);
    lists(&home, 21);
}

/// The state of a delivery is in the journal moments after its end. So a kill repeats the
/// deliveries in flight, and none that was done before, even if all views of the journal are lost
/// as well.
#[test]
fn a_kill_with_the_loss_of_all_views_repeats_the_last_moments_only() {
    const KILLS: usize = 4;
    /// The deliveries in flight, at most 1.5 times the concurrency, and as many with an unwritten
    /// state.
    const AGAIN: usize = 2 * 12;
    let archive = format!("{ARCHIVE}concurrency = 8\n");
    let home = Home::new(&[ENDPOINTS, &archive]);
    let serials = Arc::new(AtomicU64::new(0));
    let mut acknowledged = BTreeSet::new();
    for _ in 0..KILLS {
        let mut service = home.start();
        let before = archived_serials(&home).len();
        let load = Load::start(&service, &serials);
        eventually("many events are delivered", || {
            archived_serials(&home).len() > before + 500
        });
        service.kill();
        acknowledged.extend(load.stop());
        delete_ledger(&home);
        fs::remove_file(home.path().join("data/seen.table")).unwrap();
    }
    let _service = home.start();
    archive_holds(&home, &acknowledged);
    let again = home.archived().len() - archived_serials(&home).len();
    eprintln!("delivered again: {again} of {}", acknowledged.len());
    assert!(again <= KILLS * AGAIN, "{again}");
}

#[test]
fn a_damaged_ledger_is_put_aside_and_rebuilt() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    store(&home, 20);
    for file in files(&home.path().join("data"), "ledger") {
        fs::write(file, b"this is no database").unwrap();
    }
    fs::remove_file(home.path().join("events.ndjson")).unwrap();
    let service = home.start();
    only_the_new_event_is_delivered(&home, &service, 20);
    lists(&home, 21);
    assert!(service.log().contains("ledger"), "{}", service.log());
}

/// The bytes that overwrite the deduplication index.
type Fill = fn(&mut [u8]);

const FILLS: [(&str, Fill); 2] = [
    ("noise", |bytes| {
        let mut source = fs::File::open("/dev/urandom").unwrap();
        source.read_exact(bytes).unwrap();
    }),
    ("zeros", |bytes| bytes.fill(0)),
];

/// Overwrites the deduplication index from `offset` on, like a failing disk.
fn overwrite_index(home: &Home, offset: usize, fill: Fill) {
    let path = home.path().join("data/seen.table");
    let mut bytes = fs::read(&path).unwrap();
    fill(&mut bytes[offset..]);
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(&bytes).unwrap();
}

/// Posts `count` delivered events again, and as many new ones, in turn. All are of one number, so
/// that they are delivered in order, and the last delivery is the end.
fn only_new_events_are_delivered(home: &Home, service: &Service, count: u64) {
    let before = home.archived().len();
    for serial in 0..count {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
        assert_eq!(service.zoom(&cnam(1, count + serial)).status, 200);
    }
    archive_holds(home, &(count..2 * count).collect());
    assert_eq!(home.archived().len() - before, count as usize);
    let log = service.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("deduplication index"));
    let lines: Vec<_> = lines.collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("is rebuilt"), "{lines:?}");
}

#[test]
fn a_deduplication_index_overwritten_at_runtime_delivers_no_duplicate() {
    for (what, fill) in FILLS {
        eprintln!("{what}");
        let home = Home::new(&[ENDPOINTS, ARCHIVE]);
        let service = home.start();
        for serial in 0..20 {
            assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
        }
        archive_holds(&home, &(0..20).collect());
        overwrite_index(&home, 0, fill);
        only_new_events_are_delivered(&home, &service, 20);
    }
}

#[test]
fn a_deduplication_index_overwritten_before_the_start_delivers_no_duplicate() {
    const HEADER_BYTES: usize = 4096;
    for (what, fill) in FILLS {
        for offset in [0, HEADER_BYTES] {
            eprintln!("{what} from {offset} on");
            let home = Home::new(&[ENDPOINTS, ARCHIVE]);
            store(&home, 20);
            overwrite_index(&home, offset, fill);
            let service = home.start();
            only_new_events_are_delivered(&home, &service, 20);
        }
    }
}
