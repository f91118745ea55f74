//! The disk's own speed: an 800-byte append and an `fdatasync`, one after the other.
//!
//! `cargo run --release --example sync_latency -- FOLDER SECONDS`

use std::{
    fs::File,
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().unwrap_or_else(|| ".".to_owned()));
    let seconds = arguments
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(5);
    let path = folder.join("sync_latency.tmp");
    let mut file = File::create(&path)?;
    let mut latencies = Vec::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let started = Instant::now();
        file.write_all(&[b'x'; 800])?;
        file.sync_data()?;
        latencies.push(started.elapsed());
    }
    std::fs::remove_file(path)?;
    latencies.sort_unstable();
    let at = |share: usize| {
        let latency = latencies.get(latencies.len() * share / 100);
        latency.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    };
    let rate = latencies.len() as u64 / seconds;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{rate} per_s  p50 {:.3} ms  p99 {:.3} ms",
        at(50),
        at(99)
    )
}
