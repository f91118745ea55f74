//! Runs of programs, which a shell stands in for.

use std::{fs, path::Path, time::Duration};

use rustix::process::{Pid, test_kill_process};
use tokio::time::timeout;

use super::{run::LONGEST_TAIL, *};
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
        settings: Settings {
            command: CommandLine {
                program: "no-such-program-anywhere".to_owned(),
                arguments: Vec::new(),
            },
            environment: BTreeMap::new(),
        },
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
    exec.settings.environment = read("{ command = [\"ls\"], environment = { COLOR = \"blue\" } }")
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
    let (status, tail) = run.until_exit(Vec::new()).await;
    assert!(status.unwrap().success());
    assert_eq!(tail.len(), LONGEST_TAIL);
    assert!(tail.ends_with(b"\0the end\n"));
}

#[tokio::test]
async fn what_a_program_leaves_running_does_not_hold_up_its_outcome() {
    let directory = tempfile::tempdir().unwrap();
    // The process left behind ends with its input, a pipe that only this test can write to.
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
    // A program, its child and its grandchild: none would end by itself.
    let script = "sh -c 'sleep 1000 & echo $$ $! > $0/some; mv $0/some $0/pids; wait' $1 & wait";
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

/// A killed process that is not reaped yet does not run any more.
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
        "{ command = [\"./ls\"] }",
        "{ command = [\"/nonexistent/ls\"] }",
        "{ command = [\"/tmp\"] }",
        "{ command = [\"/etc/passwd\"] }",
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
