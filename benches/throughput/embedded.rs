//! The embedded store, in turn with the least durable receiver.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    archive, configuration, disk, load,
    process::{Process, Service},
    receiver,
};

/// The ports of the service, of its admin server, and of the receiver.
const PORTS: [u16; 3] = [18080, 19090, 18081];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Deliver each event to a file
    #[arg(long)]
    delivering: bool,
    /// Measure again with so many events stored
    #[arg(long, value_name = "EVENTS")]
    stored: Option<u64>,
    /// The turns of each
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// The duration of a turn, in seconds
    #[arg(long, default_value_t = 4)]
    seconds: u64,
}

/// A service and the receiver that it is compared with.
struct Pair<'a> {
    service: Service,
    receiver: Process,
    args: &'a Args,
}

pub(crate) fn measure(args: &Args) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let [listen, admin, least] = PORTS;
    let handlers = if args.delivering {
        archive(dir.path(), "")
    } else {
        String::new()
    };
    let store = format!("kind = \"embedded\"\npath = {:?}", dir.path().join("data"));
    let config = configuration(
        dir.path(),
        "hookswitch.toml",
        [listen, admin],
        &store,
        &handlers,
    )?;

    println!("== the disk's own sync");
    println!(
        "{}",
        disk::measure(
            dir.path(),
            &disk::Args {
                seconds: args.seconds
            }
        )?
    );
    println!("== ready with an empty store");
    let pair = Pair {
        service: start(&config)?,
        receiver: receiver::start(0, least, dir.path())?,
        args,
    };
    load::run(load::Args::on(listen, 64, 2))?;

    println!("== durable 200s, in turn with the least durable receiver");
    let mut last = 0.0;
    for connections in [1, 16, 256, 64] {
        for _ in 0..args.turns {
            last = pair.turn(connections)?;
        }
    }
    println!("{}", pair.service.process.memory()?);
    latency(&pair, last / 2.0, dir.path())?;
    match args.stored {
        Some(goal) => large(pair, goal, &config),
        None => Ok(()),
    }
}

impl Pair<'_> {
    /// One turn of each. Prints the ratios of speed and of cost, and returns the service's 200s a second.
    fn turn(&self, connections: u64) -> anyhow::Result<f64> {
        let [listen, _, least] = PORTS;
        let least = load::Turn::of(
            &self.receiver,
            load::Args::on(least, connections, self.args.seconds),
        )?;
        let ours = load::Turn::of(
            &self.service.process,
            load::Args::on(listen, connections, self.args.seconds),
        )?;
        let per_s = [ours.figures.per_s(), least.figures.per_s()];
        let cost = [ours.us_per_event(), least.us_per_event()];
        println!(
            "{connections:3} connections: ours {:.0} a second, the least {:.0}: {:.2}; \
             processor time an event {:.0} and {:.0} us: {:.2}",
            per_s[0],
            per_s[1],
            per_s[0] / per_s[1],
            cost[0],
            cost[1],
            cost[0] / cost[1],
        );
        Ok(per_s[0])
    }
}

/// Prints latencies at `rate` requests a second, in turn with the receiver, each pair before the disk's own.
fn latency(pair: &Pair<'_>, rate: f64, dir: &Path) -> anyhow::Result<()> {
    println!("== latency at half of that load, in turn with the receiver, and the disk's own sync");
    let [listen, _, least] = PORTS;
    let mut ratios = Vec::new();
    for _ in 0..pair.args.turns {
        let load = |port| load::Args::on(port, 64, pair.args.seconds).at(rate as u64);
        let least = load::run(load(least))?;
        let ours = load::run(load(listen))?;
        let ratio = ours.p99_ms() / least.p99_ms();
        println!("ours {ours}\nleast {least}\np99: {ratio:.2}");
        println!("{}", disk::measure(dir, &disk::Args { seconds: 3 })?);
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    if let Some(median) = ratios.get(ratios.len() / 2) {
        println!("median of p99: {median:.2}");
    }
    println!(
        "ledger lag {}",
        pair.service.metric("hookswitch_ledger_lag ")?
    );
    Ok(())
}

/// Fills the store up to `goal` events, measures again, and starts anew after a kill.
fn large(pair: Pair<'_>, goal: u64, config: &Path) -> anyhow::Result<()> {
    println!("== filling up to {goal} events");
    let stored = || pair.service.metric("hookswitch_events_total");
    while stored()? < goal as f64 {
        load::run(load::Args::on(PORTS[0], 64, 20))?;
    }
    while pair.service.metric("hookswitch_ledger_lag ")? > 0.0 {
        thread::sleep(Duration::from_secs(1)); // Between two looks.
    }
    println!("== with {} events stored", stored()?);
    for _ in 0..pair.args.turns {
        pair.turn(64)?;
    }
    println!("{}", pair.service.process.memory()?);
    println!("== ready with so many events stored, after a kill");
    drop(pair);
    start(config)?;
    Ok(())
}

/// Starts the service, and prints how long it took until it was ready.
fn start(config: &Path) -> anyhow::Result<Service> {
    let started = Instant::now();
    let service = Service::start(config, PORTS[1])?;
    println!("ready after {} ms", started.elapsed().as_millis());
    Ok(service)
}
