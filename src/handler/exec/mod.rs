//! `exec`: runs a program of your own for each event.
//!
//! The setting is a list of arguments, which no shell reads. The program gets the CloudEvent as one line on its
//! standard input, and a clean environment:
//!
//! | variable | value |
//! |---|---|
//! | `PATH` | the usual system directories |
//! | `HOOKSWITCH_HANDLER` | the handler's name |
//! | `HOOKSWITCH_EVENT` | the event name |
//! | `HOOKSWITCH_ID` | the event's id, the same in every attempt and replay |
//! | `HOOKSWITCH_ATTEMPT` | the number of the attempt, from 1 |
//! | `HOOKSWITCH_SUPERSEDED` | `true` or `false` |
//! | `HOOKSWITCH_KEY`, `HOOKSWITCH_SUBJECT`, `HOOKSWITCH_REPLAY` | the partition key, the subject, the reason of a replay; each unset if there is none |
//!
//! `environment` adds variables and replaces them. Exit status 0 is done, 75 (`EX_TEMPFAIL`) is a retry, and any
//! other is parked. A program that a signal ended, or that cannot be started, is retried. The standard output is
//! dropped. The end of the standard error goes to the debug log only, since it may contain personal data.
//!
//! A program that exceeds the time limit is killed, together with its process group.

mod run;
#[cfg(test)]
mod tests;

use std::{
    borrow::Borrow, collections::BTreeMap, io, os::unix::process::ExitStatusExt, path::Path,
    process::ExitStatus,
};

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::process::Command;

use super::{
    AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome,
    cloud_event::CloudEvent, text_or_secret::TextOrSecret,
};
use crate::secret;
use run::Run;

/// The directories in which a program without a directory is looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `EX_TEMPFAIL`: the exit status by which a program requests a retry.
const TEMPORARY_FAILURE: i32 = 75;

/// Runs a program for each event, with the CloudEvent on its standard input.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// The program and its arguments. The program has its whole path, or is a name that is looked
    /// for in `PATH`. No shell is involved.
    #[schemars(with = "Vec<String>")]
    command: CommandLine,
    /// Environment variables besides those that hookswitch sets. A value is a text or a secret.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, TextOrSecret>")]
    environment: BTreeMap<Variable, TextOrSecret>,
}

/// A program and its arguments, which are checked while the settings are read.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct CommandLine {
    program: String,
    arguments: Vec<String>,
}

impl TryFrom<Vec<String>> for CommandLine {
    type Error = String;

    fn try_from(words: Vec<String>) -> Result<Self, String> {
        if words.iter().any(|word| word.contains('\0')) {
            return Err("the command holds a NUL character".to_owned());
        }
        let mut words = words.into_iter();
        let program = words.next().filter(|program| !program.is_empty());
        let empty = "the command is empty; name a program, such as [\"/usr/bin/env\"]";
        let program = program.ok_or(empty)?;
        if program.contains('/') {
            check_path(&program)?;
        }
        Ok(Self {
            program,
            arguments: words.collect(),
        })
    }
}

/// Checks that `program` is a whole path, and that this user may run what is there.
fn check_path(program: &str) -> Result<(), String> {
    let path = Path::new(program);
    if !path.is_absolute() {
        return Err(format!(
            "the program {program:?} is looked for in the folder that hookswitch is started from; \
             write its whole path, which begins with a slash"
        ));
    }
    if secret::is_unread() {
        return Ok(());
    }
    require_executable(path).map_err(|error| {
        let help = match error.kind() {
            io::ErrorKind::PermissionDenied => "let this user execute it, with `chmod +x`",
            _ => "install it, or name one that is there",
        };
        format!("the program {program:?} cannot be run: {error}; {help}")
    })
}

fn require_executable(path: &Path) -> io::Result<()> {
    if path.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(rustix::fs::access(path, rustix::fs::Access::EXEC_OK)?)
}

/// The name of an environment variable.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct Variable(String);

impl Borrow<str> for Variable {
    fn borrow(&self) -> &str {
        &self.0
    }
}

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
command = ["/bin/sh", "/usr/local/lib/provision.sh", "--from-webhook"]
environment = { TZ = "UTC", API_KEY = { env = "PROVISION_API_KEY" } }
"#;
    type Handler = Exec;

    fn build(self, _context: &mut BuildContext) -> Result<Exec, BuildError> {
        self.find_program().map_err(BuildError)?;
        Ok(Exec { settings: self })
    }
}

impl Settings {
    /// Looks for a program that is named without a directory.
    fn find_program(&self) -> Result<(), String> {
        let program = &self.command.program;
        let path = self.environment.get("PATH");
        let path = path.map_or(PATH, TextOrSecret::expose);
        let mut folders = path.split(':').map(Path::new);
        let is_there = |folder: &Path| require_executable(&folder.join(program)).is_ok();
        if program.contains('/') || secret::is_unread() || folders.any(is_there) {
            return Ok(());
        }
        Err(format!(
            "there is no program {program:?} in {PATH}; write its whole path, or set `PATH` in \
             `environment`"
        ))
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
        let mut line = event.to_line();
        line.push(b'\n');
        let (status, tail) = run.until_exit(line).await;
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
