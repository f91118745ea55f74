//! A third-party server for a test: on a port and in a folder of its own. It ends with the test.
//!
//! **Invariant:** a server that ends before the test ends it fails the test.

#![allow(dead_code, reason = "each binary of tests uses some of it")]

use std::{
    env,
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    ops::Range,
    path::Path,
    process::{self, Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// A timeout for the start of any server, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// The ports for servers of tests. The system gives out none of them by itself: on Linux it begins at 32768.
const PORTS: Range<u16> = 20_000..28_000;

/// A running server. It is killed when dropped, and when the test's process ends.
pub(crate) struct Server {
    child: Child,
    /// Whether the test has ended the process.
    is_over: bool,
    dir: TempDir,
    port: u16,
}

impl Server {
    /// Runs the command that `command` makes of a folder and a free port, and waits until the
    /// server accepts connections there. The server's output goes to `log` in the folder.
    ///
    /// # Panics
    ///
    /// When the server is not installed or does not start. A test must not pass without its server.
    pub(crate) fn start(command: impl FnOnce(&Path, u16) -> Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let command = command(dir.path(), port);
        let child = spawn(&command, dir.path());
        let mut server = Self {
            child,
            is_over: false,
            dir,
            port,
        };
        server.until_up(&command);
        server
    }

    /// Runs another command on the folder and the port of a server that has ended, and waits as
    /// [`start`](Self::start) does.
    pub(crate) fn restart(&mut self, command: impl FnOnce(&Path, u16) -> Command) {
        let command = command(self.dir(), self.port);
        self.child = spawn(&command, self.dir());
        self.is_over = false;
        self.until_up(&command);
    }

    fn until_up(&mut self, command: &Command) {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address()).is_err() {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{command:?} did not come up ({ended:?}):\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(20)); // Between two looks at the port.
        }
    }

    /// The server's address.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// The server's folder.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The server's output so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    /// The server's process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Kills the process, as a crash would, and waits for its end. The folder and port remain.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.is_over = true;
    }

    /// Sends the process the signal `name`, such as `QUIT`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.unwrap().success(), "no {name} for {id}");
    }

    /// Stops the process with the signal `name`, and waits for its end. The folder and port remain.
    pub(crate) fn stop(&mut self, name: &str) {
        if !self.is_over {
            self.check();
            self.is_over = true;
            self.signal(name);
            self.child.wait().unwrap();
        }
    }

    /// Fails the test if the process has ended by itself.
    fn check(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(
            ended.is_none() || self.is_over || thread::panicking(),
            "a server ended by itself ({ended:?}):\n{}",
            self.log()
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.check();
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs `command` so that the process ends with the calling thread.
fn spawn(command: &Command, dir: &Path) -> Child {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL", "--"])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(name, value),
            None => tied.env_remove(name),
        };
    }
    tied.spawn().unwrap()
}

/// A free port. While this process runs, no other test gets it, in this process or another, so a server finds
/// its port free when it is restarted.
pub(crate) fn free_port() -> u16 {
    static LOCKS: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let dir = env::temp_dir().join("hookswitch-test-ports");
    fs::create_dir_all(&dir).unwrap();
    let start = PORTS.start + (process::id() % PORTS.len() as u32) as u16;
    for port in (start..PORTS.end).chain(PORTS.start..start) {
        // Another user's lock cannot be opened.
        let Ok(lock) = File::create(dir.join(port.to_string())) else {
            continue;
        };
        if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            let mut locks = LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
            locks.push(lock);
            return port;
        }
    }
    panic!("all ports of {PORTS:?} are taken");
}
