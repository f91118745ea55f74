//! The programs that are measured, each in a process of its own.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// The unit of processor time in `/proc`, on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// The longest start: a ledger of millions of events may have to be made anew.
const START: Duration = Duration::from_secs(600);

/// A running program. Killed when dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`. Its output goes to `log`.
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> anyhow::Result<Self> {
        let output = File::create(&log)?;
        let child = command.stdout(output.try_clone()?).stderr(output).spawn()?;
        Ok(Self { child, log })
    }

    /// Waits until `is_up`.
    pub(crate) fn wait_until(&mut self, is_up: impl Fn() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        while !is_up() {
            if self.child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("it did not start:\n{}", fs::read_to_string(&self.log)?);
            }
            thread::sleep(Duration::from_millis(1)); // Between two looks.
        }
        Ok(())
    }

    /// The processor time since its start.
    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(self.proc("stat"))?;
        // The name of the program, which may have spaces, ends at the parenthesis.
        let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u32 = ticks.map(|ticks| ticks.parse().unwrap_or(0)).sum();
        Ok(TICK * ticks)
    }

    /// Its resident set, now and at most.
    pub(crate) fn memory(&self) -> anyhow::Result<String> {
        let status = fs::read_to_string(self.proc("status"))?;
        let lines = status
            .lines()
            .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
        Ok(lines.collect::<Vec<_>>().join("  "))
    }

    fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.child.id()))
    }

    /// Stops it with SIGTERM.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A running `hookswitch serve`.
pub(crate) struct Service {
    pub(crate) process: Process,
    admin: SocketAddr,
}

impl Service {
    /// Starts it with `config`, whose admin server is at the port `admin`, and waits until it is ready.
    pub(crate) fn start(config: &Path, admin: u16) -> anyhow::Result<Self> {
        let mut command = hookswitch(config);
        command.arg("serve");
        let admin = SocketAddr::from(([127, 0, 0, 1], admin));
        let mut process = Process::start(&mut command, config.with_extension("log"))?;
        process
            .wait_until(|| get(admin, "/readyz").is_ok_and(|answer| answer.contains(" 200 ")))?;
        Ok(Self { process, admin })
    }

    /// The sum of the metrics whose lines start with `series`.
    pub(crate) fn metric(&self, series: &str) -> anyhow::Result<f64> {
        let text = get(self.admin, "/metrics")?;
        let lines = text.lines().filter(|line| line.starts_with(series));
        let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Ok(values.sum())
    }

    /// Stops it as an operator does.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        self.process.stop()
    }
}

/// The program itself, with `config`.
pub(crate) fn hookswitch(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookswitch"));
    command.env_remove("RUST_LOG").arg("--config").arg(config);
    command
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
