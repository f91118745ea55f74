//! PostgreSQL for tests: a shared server with a database for each test, or a server for one test.

#![allow(dead_code, reason = "each binary of tests uses some of it")]

use std::{
    env,
    ffi::OsString,
    fs::{self, Permissions},
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use super::server::Server;

/// The name of the only role, a superuser.
pub(crate) const USER: &str = "hookswitch";

/// The role's password.
pub(crate) const PASSWORD: &str = "a-password-for-tests";

/// The user that runs the server when root runs the tests; PostgreSQL refuses to run as root.
const NOBODY: (&str, &str) = ("nobody", "nogroup");

/// A running server.
pub(crate) struct Postgres {
    server: Server,
    databases: AtomicU32,
    /// The beginning of a command that runs the server.
    runner: Vec<OsString>,
}

impl Postgres {
    /// Starts a server with `settings`, such as `fsync=on`. `fsync` is off by default, since most
    /// tests do not crash the machine.
    ///
    /// # Panics
    ///
    /// When the server is not installed or does not start.
    pub(crate) fn start(settings: &[&str]) -> Self {
        Self::start_in(settings, |_| {})
    }

    /// Like [`start`](Self::start). `prepare` changes the data folder before the start.
    pub(crate) fn start_in(settings: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let server = Server::start(|dir, port| {
            init(dir);
            prepare(&data(dir));
            serve(dir, port, settings)
        });
        Self::of(server, Vec::new())
    }

    /// Starts a server with mutual TLS. The server has `certificate` and `key`, and verifies
    /// clients with the CA certificate `client_ca`. All are PEM.
    pub(crate) fn start_with_tls(
        (certificate, key): (&str, &str),
        client_ca: &str,
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let settings = [
            "ssl=on",
            "ssl_cert_file=cert.pem",
            "ssl_key_file=key.pem",
            "ssl_ca_file=client-ca.pem",
        ];
        Self::start_in(&settings, |data| {
            for (name, pem) in [
                ("cert.pem", certificate),
                ("key.pem", key),
                ("client-ca.pem", client_ca),
            ] {
                let path = data.join(name);
                fs::write(&path, pem).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
                let mut give = Command::new("chown");
                let given = give.arg("--reference").arg(data).arg(path).status();
                assert!(given.unwrap().success());
            }
            prepare(data);
        })
    }

    /// Starts a server with the command that `runner` makes for the data folder.
    pub(crate) fn start_under(settings: &[&str], runner: impl FnOnce(&Path) -> Command) -> Self {
        let mut words = Vec::new();
        let server = Server::start(|dir, port| {
            init(dir);
            let runner = runner(&data(dir));
            words.push(runner.get_program().to_owned());
            words.extend(runner.get_args().map(ToOwned::to_owned));
            run_by(&words, serve(dir, port, settings))
        });
        Self::of(server, words)
    }

    /// A standby of this server, with the name `name`. The settings of the primary's command line do
    /// not apply to it.
    pub(crate) fn standby(&self, name: &str, settings: &[&str]) -> Self {
        let cluster_name = format!("cluster_name={name}");
        let settings = [settings, &[cluster_name.as_str()]].concat();
        let server = Server::start(|dir, port| {
            fs::create_dir(data(dir)).unwrap();
            give(dir, &[data(dir)]);
            let output = unprivileged("pg_basebackup")
                .args(["--dbname", &self.url("postgres"), "--pgdata"])
                .arg(data(dir))
                .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            serve(dir, port, &settings)
        });
        Self::of(server, Vec::new())
    }

    /// Promotes a standby, and waits until it is a primary.
    pub(crate) fn promote(&self) {
        assert_eq!(self.sql("postgres", "SELECT pg_promote()"), "t");
    }

    fn of(server: Server, runner: Vec<OsString>) -> Self {
        let postgres = Self {
            server,
            databases: AtomicU32::new(0),
            runner,
        };
        postgres.until_ready();
        postgres
    }

    /// Restarts the server after it was killed or stopped.
    pub(crate) fn restart(&mut self, settings: &[&str]) {
        let runner = &self.runner;
        self.server
            .restart(|dir, port| run_by(runner, serve(dir, port, settings)));
        self.until_ready();
    }

    /// The server's process.
    pub(crate) fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    /// The server's address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Creates a database, and returns its name.
    pub(crate) fn create_database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{number}");
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// The URL of `database`, with role and password.
    pub(crate) fn url(&self, database: &str) -> String {
        let address = self.server.address();
        format!("postgres://{USER}:{PASSWORD}@{address}/{database}?sslmode=disable")
    }

    /// Runs `statements`, and returns the rows of the last one: one per line, columns separated by
    /// `|`.
    ///
    /// # Panics
    ///
    /// When one of them fails.
    pub(crate) fn sql(&self, database: &str, statements: &str) -> String {
        let output = self.psql(database, statements).output().unwrap();
        assert!(output.status.success(), "{statements}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn psql(&self, database: &str, statements: &str) -> Command {
        let mut command = Command::new(program("psql"));
        command
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .args(["-c", statements, &self.url(database)]);
        command
    }

    /// Waits until the server answers, which is later than it listens.
    fn until_ready(&self) {
        let answers = || self.psql("postgres", "SELECT 1").output().unwrap();
        while !answers().status.success() {
            assert!(Path::new(&format!("/proc/{}", self.server.id())).exists());
        }
    }
}

impl Drop for Postgres {
    /// Stops the server cleanly if that is quick: a killed server leaves shared memory behind.
    fn drop(&mut self) {
        self.server.stop("QUIT");
    }
}

/// An empty database of the shared server.
pub(crate) struct Database {
    shared: Arc<Shared>,
    name: String,
}

impl Database {
    /// A new database. The server runs while a database exists.
    pub(crate) fn new() -> Self {
        let shared = Shared::get();
        let name = shared.postgres.create_database();
        Self { shared, name }
    }

    /// See [`Postgres::url`].
    pub(crate) fn url(&self) -> String {
        self.shared.postgres.url(&self.name)
    }

    /// See [`Postgres::sql`].
    pub(crate) fn sql(&self, statements: &str) -> String {
        self.shared.postgres.sql(&self.name, statements)
    }
}

/// The shared server.
struct Shared {
    postgres: Postgres,
    /// Dropped last.
    _keeper: Keeper,
}

static SHARED: Mutex<Weak<Shared>> = Mutex::new(Weak::new());

impl Shared {
    fn get() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let started = Arc::new(Self::start());
            *shared = Arc::downgrade(&started);
            started
        })
    }

    fn start() -> Self {
        let (started, starting) = mpsc::channel();
        let (end, until_end) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            started
                .send(Postgres::start(&["max_connections=400"]))
                .unwrap();
            until_end.recv().unwrap_err();
        });
        Self {
            postgres: starting.recv().unwrap(),
            _keeper: Keeper(Some((end, thread))),
        }
    }
}

/// The thread that started the server. The server ends with it; the thread of a test would end too
/// early.
struct Keeper(Option<(mpsc::Sender<()>, JoinHandle<()>)>);

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.0.take() {
            drop(end);
            drop(thread.join());
        }
    }
}

/// The data folder in the folder of a server.
fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

/// Initializes a server in `dir`.
fn init(dir: &Path) {
    let password = dir.join("password");
    fs::write(&password, PASSWORD).unwrap();
    fs::create_dir(data(dir)).unwrap();
    give(dir, &[data(dir), password.clone()]);
    let output = unprivileged("initdb")
        .arg("--no-sync")
        .args(["--encoding", "UTF8", "--no-locale"])
        .args(["--username", USER, "--auth", "scram-sha-256", "--pwfile"])
        .arg(&password)
        .arg("--pgdata")
        .arg(data(dir))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Gives the server the ownership of its files in `dir`.
fn give(dir: &Path, own: &[PathBuf]) {
    fs::set_permissions(data(dir), Permissions::from_mode(0o700)).unwrap();
    if is_root() {
        let (user, group) = NOBODY;
        fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
        let given = Command::new("chown")
            .arg(format!("{user}:{group}"))
            .args(own)
            .status();
        assert!(given.unwrap().success());
    }
}

/// `command`, prefixed by `runner`.
fn run_by(runner: &[OsString], command: Command) -> Command {
    let Some((program, arguments)) = runner.split_first() else {
        return command;
    };
    let mut whole = Command::new(program);
    whole.args(arguments);
    whole.arg(command.get_program()).args(command.get_args());
    whole
}

/// The command that runs a server.
fn serve(dir: &Path, port: u16, settings: &[&str]) -> Command {
    let mut command = unprivileged("postgres");
    let defaults = [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "fsync=off",
        // Files of its own instead of shared memory, which would have to be cleaned up.
        "dynamic_shared_memory_type=mmap",
        "max_wal_size=4GB",
    ];
    command.arg("-D").arg(data(dir));
    command.args(["-p", &port.to_string()]);
    for setting in defaults.iter().chain(settings) {
        command.args(["-c", setting]);
    }
    command
}

/// One of the server's programs, run by another user than root, and stopped when the test's process
/// ends. Changing the user resets the signal that was set before. The server ends its own processes at
/// that signal; after a kill, a process that waits for a lock may stay for ever.
fn unprivileged(name: &str) -> Command {
    let mut command = Command::new("setpriv");
    if is_root() {
        let (user, group) = NOBODY;
        command.args(["--reuid", user, "--regid", group, "--clear-groups"]);
    }
    command.args(["--pdeathsig", "QUIT", "--"]);
    command.arg(program(name));
    command
}

/// The path of a server program. Debian installs them outside PATH, in a folder for each version.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut versions: Vec<_> = versions.map(|entry| entry.unwrap().path()).collect();
    versions.sort();
    let mut candidates = versions.iter().rev().map(|version| version.join("bin"));
    let found = candidates
        .by_ref()
        .chain(env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|program| program.exists());
    found.unwrap_or_else(|| panic!("there is no {name}: install PostgreSQL (Debian: postgresql)"))
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}
