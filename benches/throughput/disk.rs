//! The disk's own speed: an 800-byte append and an `fdatasync`, one after the other.

use std::{
    fmt,
    fs::File,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The duration, in seconds
    #[arg(long, default_value_t = 5)]
    pub(crate) seconds: u64,
}

/// The latencies of the appends, sorted.
pub(crate) struct Figures {
    latencies: Vec<Duration>,
    seconds: u64,
}

/// Appends to a file in `dir`.
pub(crate) fn measure(dir: &Path, args: &Args) -> anyhow::Result<Figures> {
    let mut file = tempfile::tempfile_in(dir)?;
    let mut latencies = Vec::new();
    let end = Instant::now() + Duration::from_secs(args.seconds);
    while Instant::now() < end {
        latencies.push(append(&mut file)?);
    }
    latencies.sort_unstable();
    Ok(Figures {
        latencies,
        seconds: args.seconds,
    })
}

fn append(file: &mut File) -> std::io::Result<Duration> {
    let started = Instant::now();
    file.write_all(&[b'x'; 800])?;
    file.sync_data()?;
    Ok(started.elapsed())
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.latencies.len();
        let at = |share: usize| {
            let latency = self.latencies.get(count * share / 100);
            latency.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
        };
        let per_s = count as u64 / self.seconds.max(1);
        let (p50, p99) = (at(50), at(99));
        write!(f, "{per_s} per_s  p50 {p50:.3} ms  p99 {p99:.3} ms")
    }
}
