//! A kill at every point of the journal's writer. A point is a system call that changes the
//! journal's directory. A preloaded library kills the service there: before the call, after half of
//! its bytes, after it, or before it with a loss of power, which drops all unsynced data.
//!
//! A first run of the service records the points that the script passes. Then, for each point, more
//! runs of the same script are killed: at the first passage in each phase, and at a middle and the
//! last passage in the phases that leave least. After each kill, the next service on the store is
//! checked.
//!
//! The library affects the journal only. At a loss of power, the ledger and the deduplication index
//! stay as they are, or are lost completely.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt, fs,
    io::{BufRead, BufReader, Seek, SeekFrom},
    net::SocketAddr,
    os::unix::{fs::FileExt, process::ExitStatusExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
    time::Instant,
};

use tempfile::TempDir;

use crate::{
    copied::copy_any,
    disk::faulty_disk,
    harness::{
        ARCHIVE, ENDPOINTS, Home, PATIENCE, RINGCENTRAL_TOKEN, Receiver, Service, ZOOM_SECRET,
        as_pairs, cnam, eventually, hookswitch, phone_number, request, unix_now, zoom_headers,
    },
};

/// The number of phone numbers with concurrent events. The event with serial `s` is of number `s %
/// NUMBERS`.
const NUMBERS: u64 = 4;

/// The size of a segment, in bytes.
const SEGMENT: u64 = 1 << 20;

/// The age of the old store, in seconds: old enough for a segment to be sealed, and for retention
/// to delete it.
const AGE: i64 = 25 * 3600;

/// The factor by which time passes faster for retention, which makes a pass each minute.
const SPEEDUP: &str = "300";

/// The number of concurrent runs, which mostly wait for the disk.
const CONCURRENT_RUNS: usize = 4;

/// Points that the script must pass. Without them the script no longer provokes what it is for.
const EXPECTED_POINTS: &[&str] = &[
    "mkdir directory",
    "rename unnamed",
    "copy torn",
    "journal pwrite segment",
    "journal overwrite segment",
    "journal overwrite-first segment",
    "journal fdatasync segment",
    "journal ftruncate segment",
    "journal pwrite-header spare",
    "journal rename spare",
    "journal rename unnamed",
    "journal fsync directory",
    "preallocator create spare",
    "preallocator fsync spare",
    "journal unlink spare",
    "tokio-rt-worker unlink spare",
    "retention unlink segment",
    "retention fsync directory",
];

/// The store at the start of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Initial {
    New,
    /// The store of a service that was stopped a day ago, with no open delivery, and one parked
    /// event in its first segment.
    Old,
    /// The old store after a crash.
    Torn,
}

/// What all runs share.
struct Fixture {
    folder: TempDir,
    library: PathBuf,
    receiver: Receiver,
    /// The store of [`Initial::Old`].
    old: Home,
    /// The serials of the old store's events, each of which is on record as done.
    done: BTreeSet<u64>,
    /// The names of the old store's segments that retention deletes.
    deletable: Vec<PathBuf>,
}

/// Where and how a run is killed.
struct Kill {
    initial: Initial,
    point: String,
    /// The number of the passage of the point, from 1.
    nth: usize,
    phase: &'static str,
    /// Whether the point is passed after the signal to stop.
    is_at_shutdown: bool,
    /// Whether all views of the journal are lost as well.
    loses_views: bool,
}

impl Kill {
    /// All kills at `point`, which the script passes `passages` times.
    fn all(initial: Initial, point: &str, passages: usize, is_at_shutdown: bool) -> Vec<Self> {
        let mut kills = Vec::new();
        let passages = BTreeSet::from([1, passages.div_ceil(2), passages]);
        for (row, nth) in passages.into_iter().enumerate() {
            let mut phases = phases(point).to_vec();
            if nth > 1 {
                // The phases that leave least.
                phases.retain(|phase| ["half", "power"].contains(phase));
            }
            for (column, phase) in phases.into_iter().enumerate() {
                kills.push(Self {
                    initial,
                    point: point.to_owned(),
                    nth,
                    phase,
                    is_at_shutdown,
                    loses_views: (row + column) % 2 == 1,
                });
            }
        }
        kills
    }
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            initial,
            point,
            nth,
            phase,
            ..
        } = self;
        write!(f, "{initial:?} store, passage {nth} of `{point}`, {phase}")?;
        f.write_str(if self.loses_views { ", views lost" } else { "" })
    }
}

#[test]
fn a_kill_at_any_point_of_the_journals_writer_loses_nothing_and_repeats_nothing_done() {
    let fixture = Fixture::new();
    let mut known = HashSet::new();
    let mut kills = Vec::new();
    for initial in [Initial::Old, Initial::Torn, Initial::New] {
        kills.extend(fixture.kills(initial, &mut known));
    }
    for point in EXPECTED_POINTS {
        let is_passed = known.iter().any(|known| known.ends_with(point));
        assert!(is_passed, "{point} is not among {known:#?}");
    }
    eprintln!("{} kills at {} points", kills.len(), known.len());
    let (queue, failures) = (Mutex::new(kills), Mutex::new(Vec::<String>::new()));
    // A loss is noticed by a timeout only, so the test ends after a few failures.
    let is_over = || !failures.lock().unwrap().is_empty();
    let next = || queue.lock().unwrap().pop().filter(|_| !is_over());
    thread::scope(|scope| {
        for _ in 0..CONCURRENT_RUNS {
            scope.spawn(|| {
                while let Some(kill) = next() {
                    let ended = catch_unwind(AssertUnwindSafe(|| fixture.check(&kill)));
                    if let Err(why) = ended {
                        let failure = format!("{kill}: {}", panic_message(&*why));
                        failures.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The message of a panic.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or_default()
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let library = faulty_disk(folder.path());
        let receiver = Receiver::start();
        receiver.answer("refused", 422);
        let old = configured(&receiver);
        let mut fixture = Self {
            folder,
            library,
            receiver,
            old,
            done: BTreeSet::new(),
            deletable: Vec::new(),
        };
        let mut command = fixture.command(Initial::New);
        command.env("FAULTY_DISK_LATER", (-AGE).to_string());
        let mut run = Run::begin(&fixture.old, command).unwrap();
        (run.behind, run.next) = (AGE, 0);
        run.exercise().unwrap();
        fixture.done = run.end();
        let segments = segments(&fixture.old);
        let inner = segments[1..segments.len() - 1].iter();
        fixture.deletable = inner.map(|path| path.file_name().unwrap().into()).collect();
        assert!(!fixture.deletable.is_empty());
        fixture
    }

    fn command(&self, initial: Initial) -> Command {
        let mut command = hookswitch();
        command.env("LD_PRELOAD", &self.library);
        if initial == Initial::Old {
            command.env("FAULTY_DISK_HASTE", SPEEDUP);
        }
        command
    }

    fn home(&self, initial: Initial) -> Home {
        let home = configured(&self.receiver);
        if initial != Initial::New {
            for part in ["data", "events.ndjson"] {
                copy_any(&self.old.path().join(part), &home.path().join(part));
            }
        }
        if initial == Initial::Torn {
            tear(&home);
        }
        home
    }

    /// The kills of runs that start with `initial`: all kills at new points, and few at points that
    /// are `known` from another initial store.
    fn kills(&self, initial: Initial, known: &mut HashSet<String>) -> Vec<Kill> {
        let home = self.home(initial);
        let points = self.folder.path().join(format!("{initial:?}.points"));
        let mut command = self.command(initial);
        command.env("FAULTY_DISK_POINTS", &points);
        let mut run = Run::begin(&home, command).unwrap();
        self.script(&mut run, initial).unwrap();
        let passed = || fs::read_to_string(&points).unwrap();
        let before_shutdown = passed().lines().count();
        run.end();
        let mut passages: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (at, point) in passed().lines().enumerate() {
            passages.entry(point.to_owned()).or_default().push(at);
        }
        let kills = passages.into_iter().flat_map(|(point, mut at)| {
            let is_at_shutdown = at[0] >= before_shutdown;
            at.retain(|at| is_at_shutdown || *at < before_shutdown);
            let mut kills = Kill::all(initial, &point, at.len(), is_at_shutdown);
            if !known.insert(point) {
                kills.retain(|kill| kill.nth == 1 && kill.phase == "power");
            }
            kills
        });
        kills.collect()
    }

    /// Provokes everything that the writer and its helper threads do.
    fn script(&self, run: &mut Run<'_>, initial: Initial) -> Option<()> {
        run.exercise()?;
        if initial == Initial::Old {
            let journal = run.home.path().join("data/journal");
            run.until("retention has deleted what it can", |_| {
                let mut deletable = self.deletable.iter();
                deletable.all(|name| !journal.join(name).exists())
            })?;
            let replayed = run.home.run(&["replay", "--parked"]);
            let is_gone = run.service.ended().is_some();
            assert!(replayed.status.success() || is_gone, "{replayed:?}");
        }
        Some(())
    }

    /// Kills a run as `kill` says, and checks the next service on the store.
    fn check(&self, kill: &Kill) {
        let home = self.home(kill.initial);
        let mut command = self.command(kill.initial);
        let Kill {
            nth, phase, point, ..
        } = kill;
        command.env("FAULTY_DISK_KILL", format!("{nth} {phase} {point}"));
        let (mut acknowledged, mut next) = (BTreeSet::new(), FIRST);
        match Run::begin(&home, command) {
            Ok(mut run) => {
                self.run_until_killed(&mut run, kill);
                (acknowledged, next) = (run.acknowledged, run.next);
            }
            Err(ended) => assert!(ended.contains("SIGKILL"), "{ended}"),
        }
        if kill.loses_views {
            lose_views(&home);
        }
        let done = match kill.initial {
            Initial::New => BTreeSet::new(),
            Initial::Old | Initial::Torn => self.done.clone(),
        };
        recovers(&home, acknowledged, next, &done);
    }

    fn run_until_killed(&self, run: &mut Run<'_>, kill: &Kill) {
        let deadline = Instant::now() + PATIENCE;
        let mut going = self.script(run, kill.initial);
        // Batches differ between runs, and so does the number of passages.
        while going.is_some() && !kill.is_at_shutdown {
            assert!(Instant::now() < deadline, "the point is not passed");
            going = run.exercise();
        }
        if going.is_some() {
            run.service.signal("TERM");
        }
        let status = run.service.wait_for_end();
        assert_eq!(status.signal(), Some(9), "{status}: {}", run.service.log());
    }
}

/// Starts a service on the store of a killed one. Checks that it delivers all acknowledged events
/// in order, and none that was on record as done.
fn recovers(home: &Home, acknowledged: BTreeSet<u64>, next: u64, done: &BTreeSet<u64>) {
    let service = home.start();
    eventually("the service is ready", || {
        service.ready() == (200, "ready".to_owned())
    });
    for torn in files(home, ".torn") {
        let torn = fs::read(torn).unwrap();
        let serials: BTreeSet<_> = serials(&torn).collect();
        assert!(serials.is_disjoint(&acknowledged), "torn: {serials:?}");
    }
    let mut run = Run::of(home, service);
    (run.acknowledged, run.next) = (acknowledged, next);
    // One event of each number: earlier events of the number are delivered before it.
    run.burst().unwrap();
    run.wait_until_delivered().unwrap();
    let delivered = run.archive.look(home);
    for serial in done {
        let times = delivered.iter().filter(|one| *one == serial).count();
        assert_eq!(times, 1, "{serial} was done");
    }
    for number in 0..NUMBERS {
        let mut known = HashSet::new();
        let of_number = delivered
            .iter()
            .filter(|serial| *serial % NUMBERS == number);
        let first: Vec<_> = of_number.filter(|serial| known.insert(**serial)).collect();
        assert!(first.is_sorted(), "{first:?}");
    }
    let damaged = run.service.metric("hookswitch_journal_damaged_bytes");
    assert!(damaged == 0.0, "{damaged} bytes: {}", run.service.log());
}

/// The first serial of a run, except for the run that makes the old store.
const FIRST: u64 = 1 << 20;

/// A running service and its client.
struct Run<'a> {
    home: &'a Home,
    service: Service,
    /// The number of seconds by which the service's clock is behind.
    behind: i64,
    next: u64,
    acknowledged: BTreeSet<u64>,
    archive: Archive,
}

/// The methods return `None` when the service has ended.
impl<'a> Run<'a> {
    /// Starts the service. The error says how the service ended, if it ended before it listened.
    fn begin(home: &'a Home, command: Command) -> Result<Self, String> {
        Service::try_spawn(home, command).map(|service| Self::of(home, service))
    }

    fn of(home: &'a Home, service: Service) -> Self {
        Self {
            home,
            service,
            behind: 0,
            next: FIRST,
            acknowledged: BTreeSet::new(),
            archive: Archive::default(),
        }
    }

    /// Stops the service, and returns the acknowledged serials.
    fn end(mut self) -> BTreeSet<u64> {
        self.service.signal("TERM");
        assert_eq!(self.service.wait(), Some(0), "{}", self.service.log());
        self.acknowledged
    }

    fn exercise(&mut self) -> Option<()> {
        self.burst()?;
        self.call("taken")?;
        self.call("refused")?;
        self.roll()?;
        // Each event is larger than a segment, and arrives before the next segment is preallocated.
        for _ in 0..2 {
            self.post(SEGMENT as usize)?;
        }
        self.burst()?;
        self.roll()?;
        self.preallocate()?;
        self.wait_until_delivered()
    }

    /// Posts until a preallocated segment is written to.
    fn roll(&mut self) -> Option<()> {
        self.preallocate()?;
        let home = self.home;
        let last = || segments(home).pop();
        let is_ahead = |last: &Option<PathBuf>| size(last.as_ref().unwrap()) == SEGMENT;
        let before = last();
        if is_ahead(&before) {
            // The preallocated segment is filled first.
            self.post(SEGMENT as usize)?;
        }
        self.until("a preallocated segment is written to", |run| {
            run.post(0);
            let last = last();
            last > before && is_ahead(&last)
        })
    }

    /// Posts until the next segment is preallocated.
    fn preallocate(&mut self) -> Option<()> {
        let (home, before) = (self.home, segments(self.home).pop());
        let spare = home.path().join("data/journal/spare.new");
        self.post(SEGMENT as usize / 16)?;
        self.until("a segment is preallocated", |_| {
            size(&spare) == SEGMENT || segments(home).pop() > before
        })
    }

    /// Posts events of all numbers concurrently.
    fn burst(&mut self) -> Option<()> {
        const EACH: u64 = 3;
        let (address, at, first) = (self.service.address, unix_now() - self.behind, self.next);
        self.next += NUMBERS * EACH;
        let of_number = |number: u64| {
            let serials = (0..EACH).map(move |n| first + n * NUMBERS + number);
            serials.map(|serial| (serial, send(address, at, serial, 0)))
        };
        let posted: Vec<_> = thread::scope(|scope| {
            let threads = (0..NUMBERS)
                .map(|number| scope.spawn(move || of_number(number).collect::<Vec<_>>()));
            let threads: Vec<_> = threads.collect();
            let posted = threads.into_iter().map(|thread| thread.join().unwrap());
            posted.flatten().collect()
        });
        self.acknowledge(&posted)
    }

    /// Posts one event with `bytes` bytes of padding.
    fn post(&mut self, bytes: usize) -> Option<()> {
        let serial = self.next;
        self.next += 1;
        let at = unix_now() - self.behind;
        let answer = send(self.service.address, at, serial, bytes);
        self.acknowledge(&[(serial, answer)])
    }

    fn acknowledge(&mut self, posted: &[(u64, Option<u16>)]) -> Option<()> {
        for (serial, answer) in posted {
            match answer {
                Some(200) => assert!(self.acknowledged.insert(*serial)),
                // On a busy machine an append can time out.
                Some(503) => {}
                Some(status) => panic!("{serial} was answered {status}"),
                None => {}
            }
        }
        let mut answers = posted.iter();
        answers.all(|(_, answer)| answer.is_some()).then_some(())
    }

    /// Posts an event for the `http` handler, whose receiver refuses some events.
    fn call(&self, what: &str) -> Option<()> {
        let body = phone_number(&format!("{what} {}", self.next), what);
        let token = [("verification-token", RINGCENTRAL_TOKEN)];
        let path = "/ringcentral/phone-number";
        let address = self.service.address;
        let answer = request(address, "POST", path, &token, body.as_bytes()).ok()?;
        assert!([200, 503].contains(&answer.status), "{answer:?}");
        Some(())
    }

    fn wait_until_delivered(&mut self) -> Option<()> {
        self.until("all is delivered", |run| {
            let delivered = run.archive.look(run.home).iter().copied().collect();
            run.acknowledged.is_subset(&delivered)
        })
    }

    fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) -> Option<()> {
        let mut is_gone = false;
        eventually(what, || {
            is_gone = self.service.ended().is_some();
            is_gone || condition(self)
        });
        (!is_gone).then_some(())
    }
}

/// Posts the event with `serial`. Returns the status of the answer, if there is one.
fn send(address: SocketAddr, at: i64, serial: u64, bytes: usize) -> Option<u16> {
    let number = u32::try_from(serial % NUMBERS).unwrap();
    let body = cnam(number, serial);
    let padding = "x".repeat(bytes);
    let body = format!(r#"{},"padding":"{padding}"}}"#, body.strip_suffix('}')?);
    let headers = zoom_headers(body.as_bytes(), ZOOM_SECRET, at);
    let path = "/zoom/number-management";
    let answer = request(address, "POST", path, &as_pairs(&headers), body.as_bytes());
    answer.ok().map(|answer| answer.status)
}

fn configured(receiver: &Receiver) -> Home {
    let server = "[server]\nmax_body = \"4MiB\"";
    let store = "reserve = 0\nsegment = \"1MiB\"\nretain = \"1h\"";
    let endpoints = ENDPOINTS
        .replace("[server]", server)
        .replace("reserve = 0", store);
    let archive = format!("{ARCHIVE}sync = false\n");
    let crm = format!(
        r#"
[handlers.crm]
kind = "http"
events = ["ringcentral.*"]
url = "http://{}/hooks"
"#,
        receiver.address
    );
    Home::new(&[&endpoints, &archive, &crm])
}

/// The files of the journal whose names contain `part`, in order.
fn files(home: &Home, part: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.path().join("data/journal")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut found: Vec<_> = paths.filter(|path| name(path).contains(part)).collect();
    found.sort();
    found
}

fn segments(home: &Home) -> Vec<PathBuf> {
    let mut segments = files(home, ".segment");
    segments.retain(|path| path.extension().is_some_and(|word| word == "segment"));
    segments
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

/// Adds bytes that are no record behind the last record, and half of a preallocated segment.
fn tear(home: &Home) {
    let segment = segments(home).pop().unwrap();
    let bytes = fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 16;
    let file = fs::File::options().write(true).open(segment).unwrap();
    file.write_all_at(&[0x5a; 1000], end as u64).unwrap();
    let spare = home.path().join("data/journal/spare.new");
    fs::write(spare, vec![0; SEGMENT as usize / 2]).unwrap();
}

fn lose_views(home: &Home) {
    for entry in fs::read_dir(home.path().join("data")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("ledger") || name.starts_with("seen") {
            fs::remove_file(path).unwrap();
        }
    }
}

/// The serials of the delivered events, in order.
#[derive(Default)]
struct Archive {
    /// The number of bytes that have been read of the archive.
    read: u64,
    serials: Vec<u64>,
}

impl Archive {
    /// Reads the new lines. An event's serial is near the beginning of its line.
    fn look(&mut self, home: &Home) -> &[u64] {
        const NEAR: usize = 2000;
        let Ok(mut file) = fs::File::open(home.path().join("events.ndjson")) else {
            return &self.serials;
        };
        file.seek(SeekFrom::Start(self.read)).unwrap();
        let (mut reader, mut line) = (BufReader::new(file), Vec::new());
        while reader.read_until(b'\n', &mut line).unwrap() > 0 && line.ends_with(b"\n") {
            let near = &line[..line.len().min(NEAR)];
            self.serials.extend(serials(near).next());
            self.read += line.len() as u64;
            line.clear();
        }
        &self.serials
    }
}

/// The serials of the events with their bodies in `bytes`.
fn serials(bytes: &[u8]) -> impl Iterator<Item = u64> + use<> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let parts: Vec<_> = text
        .split("\"serial ")
        .skip(1)
        .filter_map(|part| part.split_once('"')?.0.parse().ok())
        .collect();
    parts.into_iter()
}

/// The phases of `point`.
fn phases(point: &str) -> &'static [&'static str] {
    let writes = point.contains("write") || point.contains(" copy ");
    let all = &["half", "before", "after", "power"];
    if writes { all } else { &all[1..] }
}
