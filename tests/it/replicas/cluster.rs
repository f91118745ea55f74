//! Three replicas, a PostgreSQL primary with a synchronous standby, and the sink that the replicas
//! deliver to.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use super::{
    load::{Balancer, Load},
    namespace::{Disk, Island},
    proof::Figures,
    sink::Sink,
};
use crate::{
    harness::{Home, RINGCENTRAL_TOKEN, Service, ZOOM_SECRET, eventually},
    support::postgres::{PASSWORD, Postgres, USER},
};

/// The number of replicas.
pub(super) const REPLICAS: usize = 3;

/// The most deliveries that a replica has claimed, including those that it has not begun. A failure
/// may cause as many repeated deliveries for each affected replica, and no more.
pub(super) const IN_HAND: usize = 12;

/// The configuration, without addresses.
const CONFIG: &str = r#"
[server]
listen = "{ip}:0"

[admin]
listen = "127.0.0.1:0"

[store]
kind = "postgres"
url = { env = "DATABASE_URL" }
lease = "5s"

[endpoints.phone-number]
family = "ringcentral.phone-number"
path = "/ringcentral/phone-number"
verification_tokens = [{ env = "RINGCENTRAL_TOKEN" }]

[endpoints.number-management]
family = "zoom.number-management"
path = "/zoom/number-management"
secret_tokens = [{ env = "ZOOM_SECRET" }]

[handlers.sink]
kind = "http"
events = ["*"]
url = "http://{sink}/"
concurrency = 8
retry = { attempts = 100000, first = "100ms", ceiling = "1s" }
"#;

/// The setting that makes a commit wait until it is on two disks.
const SYNCHRONOUS: [&str; 2] = ["fsync=on", "synchronous_standby_names=standby"];

/// The settings of the standby. A standby that has lost its primary reconnects soon; until then
/// nothing is committed.
const STANDBY: [&str; 2] = ["fsync=on", "wal_retrieve_retry_interval=100ms"];

/// The running cluster.
pub(super) struct Cluster {
    replicas: Vec<Replica>,
    pub(super) primary: Postgres,
    pub(super) standby: Postgres,
    pub(super) sink: Sink,
    balancer: Arc<Balancer>,
    serials: Arc<AtomicU64>,
}

/// The version of the program that a replica runs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Version {
    /// The version that `HOOKSWITCH_PREVIOUS` names, which `tests/run` builds; without it this
    /// version.
    Previous,
    /// This version.
    Current,
}

impl Version {
    fn program(self) -> OsString {
        let current = env!("CARGO_BIN_EXE_hookswitch").into();
        match self {
            Self::Previous => env::var_os("HOOKSWITCH_PREVIOUS").unwrap_or(current),
            Self::Current => current,
        }
    }
}

/// A replica, and what its restart needs.
struct Replica {
    service: Service,
    version: Version,
    home: Home,
    url: String,
    island: Option<Arc<Island>>,
}

impl Cluster {
    pub(super) fn start() -> Self {
        Self::start_as(Version::Current)
    }

    /// A cluster with all replicas of one version.
    pub(super) fn start_as(version: Version) -> Self {
        Self::of(Postgres::start(&SYNCHRONOUS), None, version)
    }

    /// A cluster with the first replica on `island`.
    pub(super) fn start_with_an_island(island: &Arc<Island>) -> Self {
        let near = island.near();
        let listen = format!("listen_addresses=127.0.0.1,{near}");
        let settings = [&SYNCHRONOUS[..], &[&listen]].concat();
        let primary = Postgres::start_in(&settings, |data| {
            let rules = data.join("pg_hba.conf");
            let rule = format!("host all all {}/32 scram-sha-256\n", island.far());
            std::fs::write(&rules, std::fs::read_to_string(&rules).unwrap() + &rule).unwrap();
        });
        Self::of(primary, Some(island), Version::Current)
    }

    /// A cluster with the primary's data on a disk of `mebibytes`.
    pub(super) fn start_on_a_disk(mebibytes: u32) -> (Self, Disk) {
        let mut disk = None;
        // The server's own files must leave room for the data.
        let settings = [
            &SYNCHRONOUS[..],
            &["max_wal_size=48MB", "min_wal_size=32MB"],
        ]
        .concat();
        let primary = Postgres::start_under(&settings, |data| {
            disk.insert(Disk::new(data, mebibytes)).enter()
        });
        (Self::of(primary, None, Version::Current), disk.unwrap())
    }

    fn of(primary: Postgres, island: Option<&Arc<Island>>, version: Version) -> Self {
        let standby = primary.standby("standby", &STANDBY);
        let database = primary.create_database();
        let sink = Sink::default();
        let balancer = Arc::new(Balancer::default());
        let replicas = (0..REPLICAS)
            .map(|number| {
                let island = island.filter(|_| number == 0).cloned();
                let localhost = Ipv4Addr::LOCALHOST;
                let ip = island.as_ref().map_or(localhost, |island| island.far());
                let near = island.as_ref().map_or(localhost, |island| island.near());
                let counter = sink.open(number, IpAddr::V4(near));
                let home = Home::new(&[&CONFIG
                    .replace("{ip}", &ip.to_string())
                    .replace("{sink}", &counter.to_string())]);
                let (first, second) = (primary.address().port(), standby.address().port());
                let url = format!(
                    "postgres://{USER}:{PASSWORD}@{near}:{first},{near}:{second}/{database}\
                     ?sslmode=disable&target_session_attrs=read-write"
                );
                let service = Service::spawn(&home, command(version, &url, island.as_deref()));
                balancer.put_in(number, service.address);
                Replica {
                    service,
                    version,
                    home,
                    url,
                    island,
                }
            })
            .collect();
        Self {
            replicas,
            primary,
            standby,
            sink,
            balancer,
            serials: Arc::default(),
        }
    }

    /// Starts a load of the providers. Events have `padding` additional bytes.
    pub(super) fn load(&self, padding: usize) -> Load {
        Load::start(&self.balancer, &self.serials, padding)
    }

    pub(super) fn replica(&mut self, number: usize) -> &mut Service {
        &mut self.replicas[number].service
    }

    /// Starts a replica that has ended.
    pub(super) fn start_again(&mut self, number: usize) {
        let replica = &mut self.replicas[number];
        let command = command(replica.version, &replica.url, replica.island.as_deref());
        replica.service = Service::spawn(&replica.home, command);
        self.balancer.put_in(number, replica.service.address);
    }

    /// Restarts a replica as `next`, as in a rolling restart: the balancer stops sending to it
    /// first.
    pub(super) fn stop(&mut self, number: usize, next: Version) {
        self.balancer.take_out(number);
        self.replicas[number].version = next;
        let service = self.replica(number);
        service.signal("TERM");
        assert_eq!(service.wait(), Some(0), "{}", service.log());
    }

    /// Restarts the primary after it has ended.
    pub(super) fn restart_primary(&mut self) {
        self.primary.restart(&SYNCHRONOUS);
    }

    /// Waits until all events that were acknowledged by `failed_at` are delivered.
    pub(super) fn until_taken_over(&self, load: &Load, failed_at: Instant) {
        let log = load.log();
        let before = log
            .acknowledged()
            .filter(|(_, sent)| sent.acknowledged_at.is_some_and(|at| at < failed_at));
        let before: BTreeSet<_> = before.map(|(serial, _)| serial).collect();
        eventually("the other replicas have taken over", || {
            let arrivals = self.sink.arrivals();
            let answered = arrivals.iter().filter(|a| a.answered_at.is_some());
            let answered: BTreeSet<_> = answered.map(|arrival| arrival.serial).collect();
            answered.is_superset(&before)
        });
    }

    /// Ends `load`, and compares the acknowledged with the delivered events.
    pub(super) fn prove(&self, load: Load, failed_at: Instant) -> Figures {
        let figures = Figures::of(&load.stop(), &self.sink, failed_at);
        let parked = self.replicas[1]
            .service
            .metric("hookswitch_parked_deliveries");
        assert_eq!(parked, 0.0);
        figures
    }
}

/// The configuration of a replica on the database at `url`.
fn command(version: Version, url: &str, island: Option<&Island>) -> Command {
    let program = version.program();
    let mut command = match island {
        Some(island) => {
            let mut command = island.enter();
            command.arg(program);
            command
        }
        None => Command::new(program),
    };
    command
        .env_remove("RUST_LOG")
        .env_remove("HOOKSWITCH_CONFIG")
        .env("DATABASE_URL", url)
        .env("RINGCENTRAL_TOKEN", RINGCENTRAL_TOKEN)
        .env("ZOOM_SECRET", ZOOM_SECRET);
    command
}
