//! The receivers that hookswitch is compared with. Step 0 is the least durable receiver: it verifies Zoom's
//! signature over the raw body, writes whatever waits to a file in one write, syncs the file, and answers 200.
//! It parses nothing, recognizes no duplicates and delivers nothing. Each further step adds the least code for one
//! more thing that a 200 of hookswitch stands for.
//!
//! | step | adds |
//! |---|---|
//! | 1 | the body is read as JSON: event name, account, members of the object |
//! | 2 | two hashes by which duplicates are recognized, an id, a record with a checksum |
//! | 3 | a head must come within 10 s, and the answer within 2 s |
//! | 4 | a thread at the lowest priority reads what was stored, and recognizes duplicates in memory |
//! | 5 | a counter and two histograms |
//! | 6 | duplicates are recognized by a table in a file |
//! | 7 | a row for each event and a row for each topic in SQLite, 2,048 events a transaction |

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet, VecDeque},
    fs::File,
    io::Write,
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, mpsc as threads},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::{Router, body::Bytes, extract::State, routing::post};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prometheus_client::metrics::{
    counter::Counter,
    histogram::{Histogram, exponential_buckets},
};
use rusqlite::Connection;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::{SECRET, process::Process};

/// The steps, in order, with the words of the report.
pub(crate) const STEPS: [&str; 8] = [
    "the least durable receiver",
    "and the body is read as JSON",
    "and two hashes to recognize duplicates, an id, a record with a checksum",
    "and deadlines for the head and the answer",
    "and a background thread that recognizes duplicates in memory",
    "and a counter and two histograms",
    "and duplicates recognized by a table in a file",
    "and rows in SQLite, by which an operator's questions are answered",
];

/// The size of the file, which is written from its beginning again once it is full.
const FILE_BYTES: u64 = 256 << 20;

/// The most records that are written at once.
const BATCH: usize = 1024;

/// The number of slots in the deduplication table; each has 16 bytes.
const SLOTS: u64 = 4 << 20;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    event_ts: u64,
    #[serde(borrow)]
    payload: Payload<'a>,
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    account_id: Cow<'a, str>,
    #[serde(borrow)]
    object: HashMap<Cow<'a, str>, &'a RawValue>,
}

/// What the background thread gets of an event.
struct Fact {
    id: Uuid,
    name: String,
    account: String,
    at: u64,
    dedupe_keys: [[u8; 16]; 2],
}

struct Append {
    record: Bytes,
    fact: Option<Fact>,
    synced: oneshot::Sender<()>,
}

struct Receiver {
    step: u32,
    key: Hmac<Sha256>,
    writer: mpsc::Sender<Append>,
    events: Counter,
    answers: Histogram,
    appends: Histogram,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How much it does, from 0 to 7
    #[arg(long)]
    step: u32,
    /// The address to listen on
    #[arg(long)]
    listen: SocketAddr,
    /// The file for the bodies
    #[arg(long)]
    file: PathBuf,
}

/// Starts the receiver of `step` in a process of its own, with its files in `dir`.
pub(crate) fn start(step: usize, port: u16, dir: &Path) -> anyhow::Result<Process> {
    let listen = SocketAddr::from(([127, 0, 0, 1], port));
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("receiver").args(["--step", &step.to_string()]);
    command.args(["--listen", &listen.to_string(), "--file"]);
    command.arg(dir.join("receiver"));
    let mut process = Process::start(&mut command, dir.join("receiver.log"))?;
    process.wait_until(|| std::net::TcpStream::connect(listen).is_ok())?;
    Ok(process)
}

/// Serves until the process is killed.
#[tokio::main]
pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let step = args.step;
    let histogram = || Histogram::new(exponential_buckets(0.0001, 2.0, 16));
    let receiver = Receiver {
        step,
        key: Hmac::<Sha256>::new_from_slice(SECRET.as_bytes())?,
        writer: start_writer(&args.file, step)?,
        events: Counter::default(),
        answers: histogram(),
        appends: histogram(),
    };
    let router = Router::new()
        .route("/zoom/number-management", post(receive))
        .with_state(Arc::new(receiver));
    let listener = tokio::net::TcpListener::bind(args.listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            if step >= 3 {
                let mut http1 = server.http1();
                http1.timer(TokioTimer::new());
                http1.header_read_timeout(Duration::from_secs(10));
            }
            // A client that goes away in the middle is no concern of a benchmark.
            drop(server.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn receive(
    State(receiver): State<Arc<Receiver>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let began = Instant::now();
    if is_signed(&receiver.key, &headers, &body).is_none() {
        return StatusCode::UNAUTHORIZED;
    }
    let Some((record, fact)) = record(receiver.step, &headers, body) else {
        return StatusCode::BAD_REQUEST;
    };
    let (synced, is_synced) = oneshot::channel();
    let append = Append {
        record,
        fact,
        synced,
    };
    if receiver.writer.try_send(append).is_err() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let is_synced = match receiver.step {
        0..3 => is_synced.await.is_ok(),
        _ => {
            let answer = tokio::time::timeout(Duration::from_secs(2), is_synced).await;
            answer.is_ok_and(|answer| answer.is_ok())
        }
    };
    if receiver.step >= 5 {
        receiver.events.inc();
        receiver.answers.observe(began.elapsed().as_secs_f64());
        receiver.appends.observe(began.elapsed().as_secs_f64());
    }
    match is_synced {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Whether `body` is signed with `key`: `None` where it is not.
fn is_signed(key: &Hmac<Sha256>, headers: &HeaderMap, body: &[u8]) -> Option<()> {
    let timestamp = headers.get("x-zm-request-timestamp")?;
    let signature = headers.get("x-zm-signature")?.as_bytes();
    let signature = signature.strip_prefix(b"v0=")?;
    let mut mac = key.clone();
    mac.update(b"v0:");
    mac.update(timestamp.as_bytes());
    mac.update(b":");
    mac.update(body);
    let mac = mac.finalize().into_bytes();
    let wanted: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    (wanted.as_bytes() == signature).then_some(())
}

/// What is written of a body, and what is known of it.
fn record(step: u32, headers: &HeaderMap, body: Bytes) -> Option<(Bytes, Option<Fact>)> {
    if step == 0 {
        return Some((body, None));
    }
    let envelope: Envelope<'_> = serde_json::from_slice(&body).ok()?;
    let mut fact = Fact {
        id: Uuid::nil(),
        name: envelope.event.into_owned(),
        account: envelope.payload.account_id.into_owned(),
        at: envelope.event_ts,
        dedupe_keys: [[0; 16]; 2],
    };
    std::hint::black_box(envelope.payload.object.len());
    if step == 1 {
        return Some((body, Some(fact)));
    }
    let request = headers.get("x-zm-request-id")?.as_bytes();
    fact.id = Uuid::now_v7();
    fact.dedupe_keys = [hash(b"body", &body), hash(b"request", request)];
    let mut record = Vec::with_capacity(body.len() + 160);
    for part in [
        fact.id.as_bytes(),
        fact.name.as_bytes(),
        fact.account.as_bytes(),
        &fact.dedupe_keys[0],
        &fact.dedupe_keys[1],
        &body,
    ] {
        record.extend_from_slice(part);
    }
    let checksum = crc32c::crc32c(&record);
    record.extend_from_slice(&checksum.to_le_bytes());
    Some((record.into(), Some(fact)))
}

fn hash(kind: &[u8], content: &[u8]) -> [u8; 16] {
    let digest = Sha256::new().chain_update(kind).chain_update(content);
    let digest = digest.finalize();
    digest.first_chunk().copied().unwrap_or_default()
}

/// Starts the thread that writes to a file at `path`, made ahead of zeros, and the one that follows.
fn start_writer(path: &Path, step: u32) -> anyhow::Result<mpsc::Sender<Append>> {
    let mut file = File::create(path)?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..FILE_BYTES / zeros.len() as u64 {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    let (sender, inbox) = mpsc::channel(4 * BATCH);
    let (hand_over, handed) = threads::sync_channel(64);
    if step >= 4 {
        let path = path.to_owned();
        thread::spawn(move || follow(handed, step, &path));
    }
    thread::spawn(move || write(&file, inbox, step, &hand_over));
    Ok(sender)
}

fn write(
    file: &File,
    mut inbox: mpsc::Receiver<Append>,
    step: u32,
    follower: &threads::SyncSender<Vec<Fact>>,
) -> std::io::Result<()> {
    let (mut offset, mut bytes, mut waiting) = (0, Vec::new(), Vec::new());
    let mut facts = Vec::new();
    while let Some(append) = inbox.blocking_recv() {
        let mut next = Some(append);
        while let Some(append) = next {
            bytes.extend_from_slice(&append.record);
            facts.extend(append.fact);
            waiting.push(append.synced);
            let is_full = waiting.len() >= BATCH;
            next = if is_full { None } else { inbox.try_recv().ok() };
        }
        if offset + bytes.len() as u64 > FILE_BYTES {
            offset = 0;
        }
        file.write_all_at(&bytes, offset)?;
        file.sync_data()?;
        offset += bytes.len() as u64;
        bytes.clear();
        for synced in waiting.drain(..) {
            // Whoever waited may have gone.
            synced.send(()).ok();
        }
        let facts = std::mem::take(&mut facts);
        if step >= 4 {
            // A follower that is behind misses some: it would have to read them from the file.
            follower.try_send(facts).ok();
        }
    }
    Ok(())
}

fn follow(handed: threads::Receiver<Vec<Fact>>, step: u32, path: &Path) -> anyhow::Result<()> {
    rustix::process::nice(19)?;
    let (mut seen, mut queue, mut rows) = (HashSet::new(), VecDeque::new(), Vec::new());
    let table = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path.with_extension("table"))?;
    table.set_len(SLOTS * 16)?;
    let db = ledger(&path.with_extension("db"))?;
    let mut number = 0_i64;
    for fact in handed.into_iter().flatten() {
        for key in fact.dedupe_keys {
            if step < 6 {
                seen.insert(key);
                continue;
            }
            let slot = u64::from_le_bytes(*key.first_chunk().context("a hash")?) % (SLOTS - 16);
            let mut window = [0; 256];
            table.read_exact_at(&mut window, slot * 16)?;
            table.write_all_at(&key, slot * 16)?;
        }
        if seen.len() > 1 << 17 {
            seen.clear();
        }
        queue.push_back(fact.id);
        queue.truncate(16 << 10);
        if step >= 7 {
            rows.push(fact);
        }
        if rows.len() >= 2048 {
            add(&db, &mut number, &mut rows)?;
        }
    }
    Ok(())
}

fn ledger(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = NORMAL;
         CREATE TABLE events (position INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,
             name TEXT NOT NULL, account TEXT NOT NULL, at INTEGER NOT NULL) STRICT;
         CREATE TABLE topics (topic TEXT PRIMARY KEY, latest INTEGER NOT NULL) STRICT, WITHOUT ROWID;",
    )?;
    Ok(db)
}

fn add(db: &Connection, number: &mut i64, rows: &mut Vec<Fact>) -> rusqlite::Result<()> {
    db.execute_batch("BEGIN")?;
    for fact in rows.drain(..) {
        *number += 1;
        let at = fact.at.cast_signed();
        db.prepare_cached("INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute((*number, fact.id.as_bytes(), fact.name, &fact.account, at))?;
        db.prepare_cached(
            "INSERT INTO topics VALUES (?1, ?2) ON CONFLICT (topic) DO UPDATE
             SET latest = excluded.latest WHERE excluded.latest > latest",
        )?
        .execute((&fact.account, at))?;
    }
    db.execute_batch("COMMIT")
}
