//! A third-party server for a test: on a free port, with its data in a folder of its own. It ends with
//! the test.

#![allow(dead_code, reason = "each binary of tests uses some of it")]

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// A timeout for the start of any server, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. It is killed when dropped, and when the test's process ends.
pub(crate) struct Server {
    child: Child,
    dir: TempDir,
    port: u16,
}

impl Server {
    /// Runs the command that `command` makes of a folder and a free port, and waits until it
    /// accepts connections there. What it prints goes to `log` in its folder.
    ///
    /// # Panics
    ///
    /// When the server is not installed or does not start. A test must not pass without its server.
    pub(crate) fn start(command: impl FnOnce(&Path, u16) -> Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let command = command(dir.path(), port);
        let child = spawn(&command, dir.path());
        let mut server = Self { child, dir, port };
        server.until_up(&command);
        server
    }

    /// Runs another command on the folder and the port of one that has ended, and waits as
    /// [`start`](Self::start) does.
    pub(crate) fn restart(&mut self, command: impl FnOnce(&Path, u16) -> Command) {
        let command = command(self.dir(), self.port);
        self.child = spawn(&command, self.dir());
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

    /// Its address.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Its folder.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its output so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    /// The process.
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
    }

    /// Sends it the signal `name`, such as `QUIT`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.unwrap().success(), "no {name} for {id}");
    }

    /// Stops the process with the signal `name`, and waits for its end. The folder and port remain.
    pub(crate) fn stop(&mut self, name: &str) {
        if self.child.try_wait().unwrap().is_none() {
            self.signal(name);
            self.child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
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

/// A port that is free at this moment.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
