//! The PostgreSQL store, in turn with `pgbench`, which inserts the same rows. The server syncs every commit.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use tempfile::TempDir;

use crate::{
    archive, configuration, load, print_average,
    process::{Service, hookswitch},
    support::postgres::{Postgres, program},
};

/// The ports of a service and of its admin server: of the first replica and of the second.
const PORTS: [u16; 2] = [18080, 19090];
const OTHER: [u16; 2] = [18081, 19091];

const SETTINGS: &[&str] = &[
    "fsync=on",
    "dynamic_shared_memory_type=posix",
    "shared_buffers=1GB",
    "max_wal_size=8GB",
];

/// One transaction of the store under the load: events, two dedupe keys each, and a topic each that is mostly
/// known. `:batch` is the number of events.
const ROWS: &str = "
BEGIN;
INSERT INTO hookswitch.seen SELECT gen_random_uuid(), n FROM generate_series(1, 2 * :batch) n;
INSERT INTO hookswitch.topics SELECT md5((random() * 400)::integer::text)::uuid, now()
  FROM generate_series(1, :batch) ON CONFLICT DO NOTHING;
INSERT INTO hookswitch.events (day, position, id, name, endpoint, key, subject, occurred_at,
    received_at, topics, topic_keys, dedupe, body)
  SELECT current_date, nextval('hookswitch.positions'), gen_random_uuid(),
    'zoom.number-management.peering-number-cnam-updated', 'zoom', 'zoom.number-management/' || n,
    '+12025550100', now(), now(), '[\"topic\"]', ARRAY[gen_random_uuid()],
    ARRAY[gen_random_uuid(), gen_random_uuid()], convert_to(repeat('x', 800), 'UTF8')
  FROM generate_series(1, :batch) n;
COMMIT;
";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The number of deliveries in a backlog
    #[arg(long, default_value_t = 100_000)]
    backlog: u64,
    /// Measure again with so many events stored
    #[arg(long, value_name = "EVENTS")]
    stored: Option<u64>,
    /// The turns with pgbench; half as many with two replicas
    #[arg(long, default_value_t = 6)]
    turns: usize,
    /// The duration of a turn, in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// A server with one database, and the configurations of services on it.
struct Bench<'a> {
    args: &'a Args,
    server: Postgres,
    database: String,
    /// Takes events and delivers nothing.
    taking: PathBuf,
    /// Another replica of that.
    other: PathBuf,
    delivering: PathBuf,
    rows: PathBuf,
    /// The position before the first event of the load.
    start: u64,
    _dir: TempDir,
}

pub(crate) fn measure(args: &Args) -> anyhow::Result<()> {
    let mut bench = Bench::new(args)?;
    let service = bench.serve(&bench.taking)?;
    bench.load(PORTS)?;
    println!("== 200s a second at 64 connections, in turn with pgbench inserting the same rows");
    bench.beside_pgbench(&service)?;
    bench.two_replicas()?;
    service.stop()?;
    // The rows of pgbench are no events.
    bench.sql("TRUNCATE hookswitch.events, hookswitch.seen, hookswitch.topics");
    bench.start = bench.position()?;

    println!("== deliveries a second of a backlog of {}", args.backlog);
    bench.fill(args.backlog)?;
    bench.deliver(&[])?;
    let service = bench.serve(&bench.delivering)?;
    println!(
        "== 200s a second while they are delivered: {}",
        bench.load(PORTS)?
    );
    service.stop()?;
    args.stored.map_or(Ok(()), |goal| bench.large(goal))
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let server = Postgres::start(SETTINGS);
        let database = server.create_database();
        let store = format!("kind = \"postgres\"\nurl = \"{}\"", server.url(&database));
        let handler = archive(dir.path(), "concurrency = 256");
        let config =
            |name, ports, handlers: &str| configuration(dir.path(), name, ports, &store, handlers);
        let rows = dir.path().join("rows.sql");
        fs::write(&rows, ROWS)?;
        Ok(Self {
            args,
            taking: config("taking.toml", PORTS, "")?,
            other: config("other.toml", OTHER, "")?,
            delivering: config("delivering.toml", PORTS, &handler)?,
            server,
            database,
            rows,
            start: 0,
            _dir: dir,
        })
    }

    fn serve(&self, config: &Path) -> anyhow::Result<Service> {
        let [_, admin] = if config == self.other { OTHER } else { PORTS };
        Service::start(config, admin)
    }

    fn load(&self, [port, _]: [u16; 2]) -> anyhow::Result<load::Figures> {
        load::run(load::Args::on(port, 64, self.args.seconds))
    }

    fn sql(&self, statement: &str) -> String {
        self.server.sql(&self.database, statement)
    }

    /// The last position that was given out. It counts events faster than their table.
    fn position(&self) -> anyhow::Result<u64> {
        Ok(self
            .sql("SELECT last_value FROM hookswitch.positions")
            .parse()?)
    }

    /// A run of pgbench, in transactions of `batch` events.
    fn pgbench(&self, batch: u64, extent: [&str; 2]) -> anyhow::Result<String> {
        let mut command = Command::new(program("pgbench"));
        command.args(["--no-vacuum", "--client=2", "--protocol=prepared"]);
        command.args(["--define", &format!("batch={batch}"), "--file"]);
        command
            .arg(&self.rows)
            .args(extent)
            .arg(self.server.url(&self.database));
        let output = command.output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The rows a second that pgbench inserts.
    fn inserted_per_s(&self, batch: u64) -> anyhow::Result<f64> {
        let report = self.pgbench(batch, ["--time", &self.args.seconds.to_string()])?;
        let tps = report.lines().find_map(|line| line.strip_prefix("tps = "));
        let tps = tps
            .and_then(|rest| rest.split(' ').next())
            .context("pgbench counted nothing")?;
        Ok(tps.parse::<f64>()? * batch as f64)
    }

    fn beside_pgbench(&self, service: &Service) -> anyhow::Result<()> {
        let mut ratios = Vec::new();
        for _ in 0..self.args.turns {
            let batches = || -> anyhow::Result<[f64; 2]> {
                let of = |part| service.metric(&format!("hookswitch_journal_batch_{part} "));
                Ok([of("sum")?, of("count")?])
            };
            let [sum, count] = batches()?;
            let ours = self.load(PORTS)?;
            let [sum, count] = [batches()?[0] - sum, batches()?[1] - count];
            let batch = (sum / count).round() as u64;
            let theirs = self.inserted_per_s(batch)?;
            let ratio = ours.per_s() / theirs;
            println!("{ours}; pgbench {theirs:.0}/s in batches of {batch}; ratio {ratio:.2}");
            ratios.push(ratio);
        }
        print_average(&ratios);
        Ok(())
    }

    fn two_replicas(&self) -> anyhow::Result<()> {
        println!("== 200s a second of two replicas at 32 connections each, in turn with one at 64");
        let _other = self.serve(&self.other)?;
        let mut ratios = Vec::new();
        for _ in 0..self.args.turns.div_ceil(2) {
            let one = self.load(PORTS)?.per_s();
            let half = |[port, _]: [u16; 2]| load::run(load::Args::on(port, 32, self.args.seconds));
            let (first, second) = thread::scope(|scope| {
                let second = scope.spawn(|| half(OTHER));
                (half(PORTS), second.join())
            });
            let second = second.ok().context("the second load failed")??;
            let two = first?.per_s() + second.per_s();
            println!("one {one:.0}/s; two {two:.0}/s; ratio {:.2}", two / one);
            ratios.push(two / one);
        }
        print_average(&ratios);
        Ok(())
    }

    /// Posts until `goal` events are stored.
    fn fill(&self, goal: u64) -> anyhow::Result<()> {
        let service = self.serve(&self.taking)?;
        while self.position()? - self.start < goal {
            self.load(PORTS)?;
        }
        service.stop()
    }

    /// Replays events to the handler, and prints how long their deliveries take, beside how fast events are
    /// taken at that time.
    fn deliver(&self, replayed: &[&str]) -> anyhow::Result<()> {
        self.serve(&self.delivering)?.stop()?; // Registers the handler.
        let mut replay = hookswitch(&self.delivering);
        let output = replay
            .args(["replay", "--handler", "archive"])
            .args(replayed)
            .output()?;
        ensure!(output.status.success(), "{output:?}");
        self.sql("VACUUM ANALYZE");
        let open: f64 = self
            .sql("SELECT count(*) FROM hookswitch.deliveries")
            .parse()?;
        let started = Instant::now();
        let service = self.serve(&self.delivering)?;
        while self.sql("SELECT EXISTS (SELECT FROM hookswitch.deliveries)") == "t" {
            thread::sleep(Duration::from_millis(200)); // Between two looks.
        }
        let seconds = started.elapsed().as_secs_f64();
        service.stop()?;
        let service = self.serve(&self.taking)?;
        let (rate, taken) = (open / seconds, self.load(PORTS)?.per_s());
        println!(
            "{open} deliveries in {seconds:.1} s: {rate:.0}/s; 200s {taken:.0}/s; ratio {:.2}",
            rate / taken
        );
        service.stop()
    }

    /// The same with `goal` events stored.
    fn large(&self, goal: u64) -> anyhow::Result<()> {
        println!("== with {goal} events stored");
        let batch = 1000;
        let stored = self.position()? - self.start;
        let transactions = goal.saturating_sub(stored) / (2 * batch); // Of each of two clients.
        self.pgbench(batch, ["--transactions", &transactions.max(1).to_string()])?;
        let since = now().to_string();
        self.fill(self.position()? - self.start + 100_000)?;
        // To an end, since the ids of the rows above are of any time.
        let until = (now() + Duration::from_secs(3600)).to_string();
        self.deliver(&["--since", &since, "--until", &until])?;
        let service = self.serve(&self.taking)?;
        self.beside_pgbench(&service)?;
        service.stop()
    }
}

#[expect(clippy::disallowed_methods, reason = "there is no floor below")]
fn now() -> Timestamp {
    Timestamp::now()
}
