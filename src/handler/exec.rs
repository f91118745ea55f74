//! `exec`: a program of one's own for each event.
//!
//! The program is given as a list of arguments and run as it is: no shell reads it. It gets the
//! CloudEvent as one line on its standard input, and a clean environment:
//!
//! | variable | value |
//! |---|---|
//! | `PATH` | the usual system directories |
//! | `HOOKSWITCH_HANDLER` | the handler's name |
//! | `HOOKSWITCH_EVENT` | the event name |
//! | `HOOKSWITCH_ID` | the event's id, the same in every attempt and replay |
//! | `HOOKSWITCH_ATTEMPT` | which try this is, from 1 |
//! | `HOOKSWITCH_SUPERSEDED` | `true` or `false` |
//! | `HOOKSWITCH_KEY`, `HOOKSWITCH_SUBJECT`, `HOOKSWITCH_REPLAY` | the key, the subject, the reason of a replay; unset where there is none |
//!
//! and what `environment` adds or replaces. Exit status 0 is done, 75 (`EX_TEMPFAIL`) is tried
//! again, any other is parked. A program that a signal ended, or that cannot be started, is tried
//! again. Its standard output goes nowhere; the end of its standard error goes to the debug log,
//! and no further, since it may speak of people.
//!
//! **Invariant:** no process of the program's group outlives an attempt that was given up.

use std::{
    collections::BTreeMap,
    io,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStderr, ChildStdin, Command},
    time::timeout,
};

use super::{
    AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome,
    cloud_event::CloudEvent, text::Text,
};

/// Where programs are looked for that are named without a directory.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `EX_TEMPFAIL`: the exit status by which a program asks to be run again.
const TEMPORARY_FAILURE: i32 = 75;

/// How much of the end of the standard error is kept, in bytes.
const LONGEST_TAIL: usize = 4096;

/// How long the standard error of a program that has ended is waited for, when something that it
/// left running holds it open.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What the TOML says of an `exec` handler.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// The program and its arguments.
    command: CommandLine,
    /// What is added to the environment, or replaced in it.
    #[serde(default)]
    environment: BTreeMap<Variable, Text>,
}

/// A program and its arguments, which are checked while the settings are read.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct CommandLine {
    program: String,
    arguments: Vec<String>,
}

impl TryFrom<Vec<String>> for CommandLine {
    type Error = &'static str;

    fn try_from(words: Vec<String>) -> Result<Self, Self::Error> {
        if words.iter().any(|word| word.contains('\0')) {
            return Err("the command holds a NUL character");
        }
        let mut words = words.into_iter();
        match words.next() {
            Some(program) if !program.is_empty() => Ok(Self {
                program,
                arguments: words.collect(),
            }),
            _ => Err("the command is empty; name a program, such as [\"/usr/bin/env\"]"),
        }
    }
}

/// The name of an environment variable.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct Variable(String);

impl TryFrom<String> for Variable {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!("{name:?} cannot name an environment variable"));
        }
        if name.starts_with("HOOKSWITCH_") {
            return Err(format!(
                "{name:?} is set by hookswitch itself; choose another prefix"
            ));
        }
        Ok(Self(name))
    }
}

impl HandlerKind for Settings {
    const KIND: &'static str = "exec";
    const EXAMPLE: &'static str = r#"
[handlers.provision]
kind = "exec"
events = ["ringcentral.phone-number.*"]
command = ["/usr/local/bin/provision", "--from-webhook"]     # no shell reads this
environment = { TZ = "UTC", API_KEY = { env = "PROVISION_API_KEY" } }
"#;
    type Handler = Exec;

    fn build(self, _context: &BuildContext) -> Result<Exec, BuildError> {
        Ok(Exec { settings: self })
    }
}

/// The handler.
#[derive(Debug)]
pub(super) struct Exec {
    settings: Settings,
}

impl Handler for Exec {
    type Event = AnyEvent;

    async fn handle(&self, delivery: Delivery<'_, AnyEvent>) -> Outcome {
        let program = &self.settings.command.program;
        let run = match Run::start(&mut self.command(&delivery)) {
            Ok(run) => run,
            Err(error) => return Outcome::retry(format!("cannot start {program:?}: {error}")),
        };
        let event = CloudEvent::new(delivery.notification, delivery.context);
        let (status, tail) = run.until_exit(event.to_line() + "\n").await;
        if !tail.is_empty() {
            tracing::debug!(
                handler = %delivery.context.handler,
                event.id = %delivery.notification.id,
                stderr = %String::from_utf8_lossy(&tail),
                "{program:?} wrote to its standard error",
            );
        }
        match status {
            Ok(status) => judge(program, status),
            Err(error) => Outcome::retry(format!("cannot wait for {program:?}: {error}")),
        }
    }
}

impl Exec {
    fn command(&self, delivery: &Delivery<'_, AnyEvent>) -> Command {
        let Settings {
            command,
            environment,
        } = &self.settings;
        let Delivery {
            notification,
            context,
            ..
        } = delivery;
        let event = CloudEvent::new(notification, context);
        let known = [
            ("HOOKSWITCH_KEY", event.key()),
            ("HOOKSWITCH_SUBJECT", event.subject()),
            ("HOOKSWITCH_REPLAY", event.replay()),
        ];
        let known = known
            .iter()
            .filter_map(|(name, value)| value.as_deref().map(|value| (name, value)));
        let mut run = Command::new(&command.program);
        run.args(&command.arguments)
            .env_clear()
            .env("PATH", PATH)
            .envs(
                environment
                    .iter()
                    .map(|(name, text)| (&name.0, text.expose())),
            )
            .env("HOOKSWITCH_HANDLER", context.handler.as_str())
            .env("HOOKSWITCH_EVENT", notification.name.as_str())
            .env("HOOKSWITCH_ID", delivery.idempotency_key().to_string())
            .env("HOOKSWITCH_ATTEMPT", context.attempt.to_string())
            .env("HOOKSWITCH_SUPERSEDED", context.superseded.to_string())
            .envs(known);
        run
    }
}

fn judge(program: &str, status: ExitStatus) -> Outcome {
    match (status.code(), status.signal()) {
        (Some(0), _) => Outcome::Done,
        (Some(TEMPORARY_FAILURE), _) => Outcome::retry(format!(
            "{program:?} asked to be run again with exit status {TEMPORARY_FAILURE}"
        )),
        (Some(code), _) => Outcome::park(format!("{program:?} ended with exit status {code}")),
        (None, Some(signal)) => Outcome::retry(format!("{program:?} was ended by signal {signal}")),
        (None, None) => Outcome::retry(format!("{program:?} ended with {status}")),
    }
}

/// A program that runs, with its ends of the pipes.
struct Run {
    /// Dropped before `child`: a group can be killed safely only until its leader has been reaped.
    group: Group,
    child: Child,
    stdin: Option<ChildStdin>,
    stderr: Option<ChildStderr>,
}

impl Run {
    fn start(command: &mut Command) -> io::Result<Self> {
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

    /// Feeds the program `input` until it exits, whether or not it reads. Returns how it exited,
    /// and the end of its standard error.
    async fn until_exit(mut self, input: String) -> (io::Result<ExitStatus>, Vec<u8>) {
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
            // The group may go on without its leader if it likes, and its number may soon be
            // another's.
            self.group.0 = None;
            if !heard {
                // An `Err` says that the rest was not waited for.
                timeout(LAST_WORDS, listen).await.ok();
            }
            status
        };
        (status, tail)
    }
}

/// Writes `input` and closes the pipe. A program need not read what it has no use for.
async fn feed(stdin: Option<ChildStdin>, input: String) {
    if let Some(mut stdin) = stdin {
        // The one error there is says that the program has closed its end.
        stdin.write_all(input.as_bytes()).await.ok();
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
            // It can only have ended by itself.
            kill_process_group(leader, Signal::KILL).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use rustix::process::test_kill_process;

    use super::*;
    use crate::handler::sample;

    fn read(settings: &str) -> Result<Settings, toml::de::Error> {
        Settings::deserialize(toml::de::ValueDeserializer::parse(settings)?)
    }

    /// Runs `script` in a shell, with `directory` as its first argument.
    fn shell(script: &str, directory: &Path) -> Exec {
        let settings = toml::Table::from_iter([(
            "command".to_owned(),
            vec!["sh", "-c", script, "sh", directory.to_str().unwrap()].into(),
        )]);
        Exec {
            settings: settings.try_into().unwrap(),
        }
    }

    async fn deliver(exec: &Exec, body: &str) -> Outcome {
        let notification = sample::notification(body);
        let mut context = sample::context();
        context.replay = Some("it was \0 lost".to_owned());
        let delivery = Delivery {
            event: AnyEvent,
            notification: &notification,
            context: &context,
        };
        exec.handle(delivery).await
    }

    async fn outcome(script: &str) -> String {
        let outcome = deliver(&shell(script, Path::new("/")), "{}").await;
        match outcome {
            Outcome::Done => "done".to_owned(),
            Outcome::Retry { after, why } => {
                assert_eq!(after, None);
                format!("retry: {why}")
            }
            Outcome::Park { why } => format!("park: {why}"),
            Outcome::Skip { why } => format!("skip: {why}"),
        }
    }

    #[tokio::test]
    async fn the_exit_status_decides() {
        for (script, expected) in [
            ("exit 0", "done"),
            (
                "exit 75",
                "retry: \"sh\" asked to be run again with exit status 75",
            ),
            ("exit 1", "park: \"sh\" ended with exit status 1"),
            ("exit 74", "park: \"sh\" ended with exit status 74"),
            ("kill -TERM $$", "retry: \"sh\" was ended by signal 15"),
        ] {
            assert_eq!(outcome(script).await, expected, "{script}");
        }
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_tried_again() {
        let exec = Exec {
            settings: read("{ command = [\"no-such-program-anywhere\"] }").unwrap(),
        };
        let Outcome::Retry { why, .. } = deliver(&exec, "{}").await else {
            panic!("not a retry");
        };
        let why = why.to_string();
        assert!(
            why.starts_with("cannot start \"no-such-program-anywhere\": No such"),
            "{why}"
        );
    }

    #[tokio::test]
    async fn the_program_gets_the_event_and_a_clean_environment() {
        let directory = tempfile::tempdir().unwrap();
        let mut exec = shell("cat > $1/stdin && env | sort > $1/env", directory.path());
        exec.settings.environment =
            read("{ command = [\"x\"], environment = { COLOR = \"blue\" } }")
                .unwrap()
                .environment;
        assert!(matches!(deliver(&exec, "{\"a\": 1}").await, Outcome::Done));
        let line = fs::read_to_string(directory.path().join("stdin")).unwrap();
        assert!(line.ends_with("}\n"), "{line}");
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["data"]["a"], 1);

        let environment = fs::read_to_string(directory.path().join("env")).unwrap();
        let set_by_the_shell = ["PWD=", "OLDPWD=", "SHLVL=", "_="];
        let environment: Vec<_> = environment
            .lines()
            .filter(|line| !set_by_the_shell.iter().any(|name| line.starts_with(name)))
            .collect();
        let expected = [
            "COLOR=blue",
            "HOOKSWITCH_ATTEMPT=3",
            "HOOKSWITCH_EVENT=zoom.number-management.unrecognized",
            "HOOKSWITCH_HANDLER=sample",
            "HOOKSWITCH_ID=0192f0c1-2a3b-7c4d-8e5f-60718293a4b5",
            "HOOKSWITCH_KEY=zoom.number-management:acme:17",
            "HOOKSWITCH_REPLAY=it was \u{fffd} lost",
            "HOOKSWITCH_SUBJECT=+12025550143",
            "HOOKSWITCH_SUPERSEDED=true",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ];
        assert_eq!(environment, expected);
    }

    #[tokio::test]
    async fn a_program_need_not_read_and_may_write_a_great_deal() {
        let body = format!("\"{}\"", "x".repeat(1 << 20));
        let root = Path::new("/");
        for script in [
            "exit 0",
            "exec <&-; exit 0",
            "head -c 3000000 /dev/zero >&2; cat > /dev/null",
            "head -c 3000000 /dev/zero; cat > /dev/null",
        ] {
            let outcome = deliver(&shell(script, root), &body).await;
            assert!(matches!(outcome, Outcome::Done), "{script}: {outcome:?}");
        }
    }

    #[tokio::test]
    async fn the_end_of_the_standard_error_is_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "head -c 9000 /dev/zero >&2; echo the end >&2"]);
        let run = Run::start(&mut command).unwrap();
        let (status, tail) = run.until_exit(String::new()).await;
        assert!(status.unwrap().success());
        assert_eq!(tail.len(), LONGEST_TAIL);
        assert!(tail.ends_with(b"\0the end\n"));
    }

    #[tokio::test]
    async fn what_a_program_leaves_running_does_not_hold_up_its_outcome() {
        let directory = tempfile::tempdir().unwrap();
        // The one left behind ends when its input, a pipe that only this test can write, does.
        let fifo = directory.path().join("fifo");
        let script = "mkfifo $1/fifo; (read line < $1/fifo) & exit 0";
        let outcome = deliver(&shell(script, directory.path()), "{}").await;
        assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
        fs::write(fifo, "you may go\n").unwrap();
    }

    #[tokio::test]
    async fn a_dropped_attempt_takes_its_whole_group_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let pids = directory.path().join("pids");
        // A program, its child and its grandchild, none of which would ever end.
        let script =
            "sh -c 'sleep 1000 & echo $$ $! > $0/some; mv $0/some $0/pids; wait' $1 & wait";
        let exec = shell(script, directory.path());
        let started = async {
            while !pids.exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            outcome = deliver(&exec, "{}") => panic!("it ended: {outcome:?}"),
            () = started => {}
        }
        let pids = fs::read_to_string(pids).unwrap();
        for pid in pids.split_whitespace() {
            let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
            let gone = async {
                while is_running(pid) {
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(20), gone).await.unwrap();
        }
    }

    /// A killed process that nobody has reaped yet is no longer running.
    fn is_running(pid: Pid) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        test_kill_process(pid).is_ok() && !stat.contains(") Z ")
    }

    #[test]
    fn settings_that_cannot_work_are_refused_while_they_are_read() {
        for settings in [
            "{ command = [] }",
            "{ command = [\"\"] }",
            "{ command = [\"a\\u0000b\"] }",
            "{ command = \"ls\" }",
            "{ command = [\"ls\"], environment = { \"A=B\" = \"c\" } }",
            "{ command = [\"ls\"], environment = { HOOKSWITCH_ID = \"c\" } }",
            "{ command = [\"ls\"], environment = { A = \"\\u0000\" } }",
            "{ command = [\"ls\"], environment = { A = { env = \"UNSET\" } } }",
            "{ command = [\"ls\"], shell = true }",
        ] {
            assert!(read(settings).is_err(), "{settings}");
        }
        let shown = format!(
            "{:?}",
            read("{ command = [\"ls\"], environment = { A = \"hush\" } }").unwrap()
        );
        assert!(!shown.contains("hush"), "{shown}");
    }
}
