//! The least that a Zoom receiver can do, which hookswitch's speed is compared with: verify the signature
//! over the raw body and answer 200. With a file, the least that a durable one can do: what waits is
//! written there at once and synced before it is answered. Nothing is parsed, and no copy is told.
//!
//! `cargo run --release --example baseline -- 127.0.0.1:8081 SECRET [FILE]`

mod signature;

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    sync::Arc,
    thread,
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use hmac::{Hmac, KeyInit};
use http::{HeaderMap, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sha2::Sha256;
use tokio::sync::{mpsc, oneshot};

use signature::is_signed;

/// The size of the file, which is written from its beginning again once it is full.
const FILE_BYTES: u64 = 256 << 20;

/// The most bodies that are written at once.
const BATCH: usize = 1024;

struct Receiver {
    key: Hmac<Sha256>,
    /// The way to the writer, if bodies are stored.
    writer: Option<mpsc::Sender<Append>>,
}

struct Append {
    body: Bytes,
    synced: oneshot::Sender<()>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let address = argument("127.0.0.1:8081");
    let key = Hmac::<Sha256>::new_from_slice(argument("local-zoom-secret").as_bytes())?;
    let writer = arguments.next().map(start_writer).transpose()?;
    let router = Router::new()
        .route("/", post(receive))
        .with_state(Arc::new(Receiver { key, writer }));
    let listener = tokio::net::TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that goes away in the middle is no concern of a baseline.
            drop(server.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn receive(
    State(receiver): State<Arc<Receiver>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    if is_signed(&receiver.key, &headers, &body).is_none() {
        return StatusCode::UNAUTHORIZED;
    }
    let Some(writer) = &receiver.writer else {
        return StatusCode::OK;
    };
    let (synced, is_synced) = oneshot::channel();
    let sent = writer.try_send(Append { body, synced });
    match (sent, is_synced.await) {
        (Ok(()), Ok(())) => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Starts the thread that writes to a file at `path`, made ahead of zeros.
fn start_writer(path: String) -> io::Result<mpsc::Sender<Append>> {
    let mut file = File::create(path)?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..FILE_BYTES / zeros.len() as u64 {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    let (sender, inbox) = mpsc::channel(4 * BATCH);
    thread::spawn(move || write(&file, inbox));
    Ok(sender)
}

fn write(file: &File, mut inbox: mpsc::Receiver<Append>) -> io::Result<()> {
    let (mut offset, mut bytes, mut waiting) = (0, Vec::new(), Vec::new());
    while let Some(append) = inbox.blocking_recv() {
        let mut next = Some(append);
        while let Some(append) = next {
            bytes.extend_from_slice(&append.body);
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
    }
    Ok(())
}
