//! A load of signed Zoom events over keep-alive connections. Each event is new; each connection waits
//! for an answer before the next request.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{SECRET, process::Process};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The address to connect to
    #[arg(long, default_value_t = Self::default().to)]
    to: SocketAddr,
    /// The path to post to
    #[arg(long, default_value_t = Self::default().path)]
    path: String,
    /// The secret to sign with
    #[arg(long, default_value_t = Self::default().secret)]
    secret: String,
    /// The number of connections
    #[arg(long, default_value_t = Self::default().connections)]
    connections: u64,
    /// The duration, in seconds
    #[arg(long, default_value_t = Self::default().seconds)]
    seconds: u64,
    /// Requests per second over all connections; 0 sends the next request after each answer
    #[arg(long, default_value_t = Self::default().rate)]
    rate: u64,
    /// The approximate size of a body, in bytes
    #[arg(long, default_value_t = Self::default().body)]
    body: usize,
    /// The number of ordering keys; each is a number of an account of its own
    #[arg(long, default_value_t = Self::default().keys)]
    keys: u64,
    /// Use one account and carrier for all numbers
    #[arg(long)]
    one_account: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            to: SocketAddr::from(([127, 0, 0, 1], 8080)),
            path: "/zoom/number-management".to_owned(),
            secret: SECRET.to_owned(),
            connections: 64,
            seconds: 8,
            rate: 0,
            body: 800,
            keys: 1000,
            one_account: false,
        }
    }
}

impl Args {
    /// A load of `connections` on a port of this machine.
    pub(crate) fn on(port: u16, connections: u64, seconds: u64) -> Self {
        Self {
            to: SocketAddr::from(([127, 0, 0, 1], port)),
            connections,
            seconds,
            ..Self::default()
        }
    }

    /// The same with `rate` requests a second.
    pub(crate) fn at(self, rate: u64) -> Self {
        Self { rate, ..self }
    }
}

/// The latencies of the answers 200, sorted, and the count of the others.
#[derive(Default)]
pub(crate) struct Figures {
    latencies: Vec<Duration>,
    refused: u64,
    seconds: f64,
}

impl Figures {
    /// The answers 200.
    pub(crate) fn ok(&self) -> f64 {
        self.latencies.len() as f64
    }

    /// The latency of `share` of the answers 200, in milliseconds.
    fn latency_ms(&self, share: f64) -> f64 {
        let index = (self.ok() * share) as usize;
        let latency = self.latencies.get(index).or(self.latencies.last());
        latency.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    }

    /// 99 of 100 answers 200 came within so many milliseconds.
    pub(crate) fn p99_ms(&self) -> f64 {
        self.latency_ms(0.99)
    }

    /// The answers 200 a second.
    pub(crate) fn per_s(&self) -> f64 {
        self.ok() / self.seconds
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} per_s  p50 {:.2} ms  p99 {:.2} ms  max {:.2} ms  ok {}  not_200 {}",
            self.per_s(),
            self.latency_ms(0.50),
            self.p99_ms(),
            self.latency_ms(1.0),
            self.latencies.len(),
            self.refused
        )
    }
}

/// One load on a process: its figures, and the processor time that the process took.
pub(crate) struct Turn {
    pub(crate) figures: Figures,
    processor_time: Duration,
}

impl Turn {
    /// Puts `load` on `process`.
    pub(crate) fn of(process: &Process, load: Args) -> anyhow::Result<Self> {
        let before = process.processor_time()?;
        let figures = run(load)?;
        Ok(Self {
            figures,
            processor_time: process.processor_time()? - before,
        })
    }

    /// The processor time of one event, in microseconds.
    pub(crate) fn us_per_event(&self) -> f64 {
        self.processor_time.as_secs_f64() * 1e6 / self.figures.ok()
    }
}

/// Posts for `args.seconds`.
#[tokio::main]
pub(crate) async fn run(args: Args) -> anyhow::Result<Figures> {
    let args = Arc::new(args);
    let key = Hmac::<Sha256>::new_from_slice(args.secret.as_bytes())?;
    let mut streams = Vec::new();
    for _ in 0..args.connections {
        let stream = TcpStream::connect(&args.to).await;
        streams.push(stream.context("nobody listens there")?);
    }
    // Connecting is not part of what is measured.
    let started = Instant::now();
    let end = started + Duration::from_secs(args.seconds);
    let connections: Vec<_> = streams
        .into_iter()
        .zip(0..)
        .map(|(stream, number)| {
            tokio::spawn(post(
                args.clone(),
                key.clone(),
                stream,
                number,
                started,
                end,
            ))
        })
        .collect();
    let mut all = Figures::default();
    for connection in connections {
        let figures = connection.await??;
        all.latencies.extend(figures.latencies);
        all.refused += figures.refused;
    }
    all.seconds = started.elapsed().as_secs_f64();
    all.latencies.sort_unstable();
    Ok(all)
}

async fn post(
    args: Arc<Args>,
    key: Hmac<Sha256>,
    mut stream: TcpStream,
    number: u64,
    started: Instant,
    end: Instant,
) -> anyhow::Result<Figures> {
    stream.set_nodelay(true)?;
    let mut figures = Figures::default();
    let mut answer = Vec::with_capacity(4096);
    let pace = (args.rate > 0)
        .then(|| Duration::from_secs_f64(args.connections as f64 / args.rate as f64));
    for turn in 0u64.. {
        let mut due = Instant::now();
        if let Some(pace) = pace {
            let offset = pace.mul_f64(number as f64 / args.connections as f64);
            let planned = started + offset + pace.mul_f64(turn as f64);
            if planned > due {
                tokio::time::sleep_until(planned.into()).await;
                due = Instant::now(); // Waking late is the timer's fault, and not the server's.
            } else {
                due = planned; // The answer before this one was late, which counts in full.
            }
        }
        if Instant::now() >= end {
            break;
        }
        let request = request(&args, &key, number, turn);
        stream.write_all(&request).await?;
        let status = read_status(&mut stream, &mut answer).await?;
        if status == 200 {
            figures.latencies.push(due.elapsed());
        } else {
            figures.refused += 1;
        }
    }
    Ok(figures)
}

fn request(args: &Args, secret: &Hmac<Sha256>, number: u64, turn: u64) -> Vec<u8> {
    let now = unix_seconds();
    let serial = number * 1_000_000_000 + turn;
    let key = serial % args.keys;
    let carrier = if args.one_account { 0 } else { key };
    let mut body = format!(
        "{{\"event\":\"number_management.peering_number_cnam_updated\",\"event_ts\":{now}000,\
         \"payload\":{{\"account_id\":\"load-{carrier}\",\"object\":{{\"carrier_code\":{carrier},\
         \"phone_numbers\":[\"+1202{key:07}\"],\"cnam\":\"{now} {serial} "
    );
    let padding = args.body.saturating_sub(body.len() + 4);
    body.push_str(&"x".repeat(padding));
    body.push_str("\"}}}");
    let mut mac = secret.clone();
    mac.update(format!("v0:{now}:").as_bytes());
    mac.update(body.as_bytes());
    let mac = hex(&mac.finalize().into_bytes());
    format!(
        "POST {} HTTP/1.1\r\nhost: load\r\ncontent-type: application/json\r\n\
         x-zm-request-timestamp: {now}\r\nx-zm-signature: v0={mac}\r\n\
         x-zm-request-id: load_{now}_{serial}\r\ncontent-length: {}\r\n\r\n{body}",
        args.path,
        body.len()
    )
    .into_bytes()
}

/// Digits by hand: what the load takes of the machine is missing to what it measures.
fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or_default();
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

fn unix_seconds() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed();
    since.map_or(0, |since| since.as_secs())
}

/// Reads one answer that has no body.
async fn read_status(stream: &mut TcpStream, answer: &mut Vec<u8>) -> anyhow::Result<u16> {
    answer.clear();
    while !answer.ends_with(b"\r\n\r\n") {
        if stream.read_buf(answer).await? == 0 {
            bail!("the connection was closed before an answer");
        }
    }
    let status = answer
        .get(9..12)
        .and_then(|digits| std::str::from_utf8(digits).ok());
    status
        .and_then(|digits| digits.parse().ok())
        .context("not an HTTP answer")
}
