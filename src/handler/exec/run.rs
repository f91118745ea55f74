//! One run of a program, from its start to its end.
//!
//! **Invariant:** no process of the program's group outlives a run that was dropped.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStderr, ChildStdin, Command},
    time::timeout,
};

/// The most bytes of the end of the standard error that are kept.
pub(super) const LONGEST_TAIL: usize = 4096;

/// How long the run waits for the standard error of an ended program, which a process that it left behind may
/// keep open.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A running program, with the ends of its pipes.
pub(super) struct Run {
    /// Dropped before `child`: a group can be killed safely only until its leader has been reaped.
    group: Group,
    child: Child,
    stdin: Option<ChildStdin>,
    stderr: Option<ChildStderr>,
}

impl Run {
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let leader = child.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self {
            group: Group(leader.and_then(Pid::from_raw)),
            stdin: child.stdin.take(),
            stderr: child.stderr.take(),
            child,
        })
    }

    /// Writes `input` to the program until it exits, whether or not it reads. Returns its exit status and the
    /// end of its standard error.
    pub(super) async fn until_exit(mut self, input: Vec<u8>) -> (io::Result<ExitStatus>, Vec<u8>) {
        let mut tail = Vec::new();
        let feed = feed(self.stdin.take(), input);
        let status = {
            let listen = listen(self.stderr.take(), &mut tail);
            tokio::pin!(feed, listen);
            let (mut fed, mut heard) = (false, false);
            let status = loop {
                tokio::select! {
                    biased;
                    status = self.child.wait() => break status,
                    () = &mut feed, if !fed => fed = true,
                    () = &mut listen, if !heard => heard = true,
                }
            };
            // The group may continue without its leader, and its number may soon be
            // another's.
            self.group.0 = None;
            if !heard {
                // An `Err` means that the rest was not waited for.
                timeout(LAST_WORDS, listen).await.ok();
            }
            status
        };
        (status, tail)
    }
}

/// Writes `input` and closes the pipe. A program need not read all of its input.
async fn feed(stdin: Option<ChildStdin>, input: Vec<u8>) {
    if let Some(mut stdin) = stdin {
        // The only error is that the program has closed its end.
        stdin.write_all(&input).await.ok();
    }
}

/// Reads to the end and keeps the last bytes.
async fn listen(stderr: Option<ChildStderr>, tail: &mut Vec<u8>) {
    let Some(mut stderr) = stderr else {
        return;
    };
    let mut chunk = [0; 1024];
    while let Ok(read @ 1..) = stderr.read(&mut chunk).await {
        tail.extend(chunk.iter().take(read));
        let excess = tail.len().saturating_sub(LONGEST_TAIL);
        tail.drain(..excess);
    }
}

/// A process group that is killed when this is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // An error means that the group has ended by itself.
            kill_process_group(leader, Signal::KILL).ok();
        }
    }
}
