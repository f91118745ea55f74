//! The command line: one file per subcommand.
//!
//! **Invariant:** standard output carries only the result, so that it can be piped. Logs, progress and
//! errors go to standard error.
//!
//! # Exit codes
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the command ran with a negative result: not ready, not found, an unexpected answer, an incomplete drain |
//! | 2 | the command line is wrong |
//! | 64 | the configuration is wrong; the report says where |
//! | 69 | the service or its store cannot be opened: in use, unreadable, address in use |
//! | 70 | the store was poisoned by a failed write or sync, or a component of the service failed; acknowledged events are safe |

mod audit;
mod backup;
mod check;
mod completions;
mod doctor;
mod events;
mod handlers;
mod healthcheck;
mod migrate;
mod output;
mod parked;
mod replay;
mod schema;
mod send;
mod serve;
mod status;
mod time;
mod verify;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    app,
    config::{self, Config},
    http, store,
};

const EXIT_CODES: &str = "Exit codes:
  0   done
  1   the command ran with a negative result
  2   the command line is wrong
  64  the configuration is wrong
  69  the service or its store cannot be opened
  70  the store or a component of the service failed; acknowledged events are safe";

/// Where a packaged service has its configuration.
const SYSTEM_CONFIG: &str = "/etc/hookswitch/hookswitch.toml";

/// The configuration file in this folder, or else that of the system, so that operators' commands
/// find the store of the system's service from any folder.
fn default_config() -> PathBuf {
    let (here, system) = (Path::new("hookswitch.toml"), Path::new(SYSTEM_CONFIG));
    let is_missing_here = !here.exists() && system.exists();
    let found = if is_missing_here { system } else { here };
    found.to_owned()
}

/// Receives RingCentral and Zoom telephony webhooks and never loses one.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = EXIT_CODES,
    arg_required_else_help = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// The configuration file (TOML): by default hookswitch.toml in this folder, or else
    /// /etc/hookswitch/hookswitch.toml
    #[arg(
        long,
        short,
        global = true,
        env = "HOOKSWITCH_CONFIG",
        default_value_os_t = default_config(),
        hide_default_value = true,
        value_name = "FILE"
    )]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service until SIGTERM or SIGINT; SIGHUP reloads the configuration
    #[command(after_help = EXIT_CODES)]
    Serve(serve::Args),
    /// Check the configuration and report every problem
    #[command(after_help = EXIT_CODES)]
    Check(check::Args),
    /// Post signed handshakes and events to an endpoint, as its provider would
    Send(send::Args),
    /// Say whether a saved request would be accepted, and if not, why
    Verify(verify::Args),
    /// Check everything that a service depends on, whether or not it runs
    Doctor(doctor::Args),
    /// Ask a running service on this machine whether it is ready
    Healthcheck(healthcheck::Args),
    /// List or show stored events
    #[command(subcommand)]
    Events(events::Command),
    /// List parked deliveries, or skip them
    #[command(subcommand)]
    Parked(parked::Command),
    /// Deliver events again
    Replay(replay::Args),
    /// Copy an embedded store to a new directory; a service may be using the store
    Backup(backup::Args),
    /// Move all events and deliveries from one store to another
    #[command(subcommand)]
    Migrate(migrate::Command),
    /// List or describe the kinds of handlers; pause or resume a handler
    #[command(subcommand)]
    Handlers(handlers::Command),
    /// Ask a running service on this machine what is wrong, and what to do
    Status(status::Args),
    /// List what operators have done, newest first
    Audit(audit::Args),
    /// Print the JSON Schema of an event family, or of the configuration
    Schema(schema::Args),
    /// Print a shell completion script
    Completions(completions::Args),
}

/// How a command ended that did not fail unexpectedly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Success,
    Negative,
    WrongConfiguration,
    ServiceFailed,
}

/// Runs the command line of this process. `builder` has the kinds of handlers.
pub fn main(builder: &app::Builder) -> ExitCode {
    let cli = match Cli::from_arg_matches(&command(builder).get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match run(&cli, builder) {
        Ok(Exit::Success) => ExitCode::SUCCESS,
        Ok(Exit::Negative) => ExitCode::FAILURE,
        Ok(Exit::WrongConfiguration) => ExitCode::from(64),
        Ok(Exit::ServiceFailed) => ExitCode::from(70),
        Err(error) => fail(&error, builder.name()),
    }
}

/// The command line of the program that `builder` names.
fn command(builder: &app::Builder) -> clap::Command {
    let command = Cli::command().name(builder.name());
    command.version(builder.version())
}

fn run(cli: &Cli, builder: &app::Builder) -> anyhow::Result<Exit> {
    let config = || -> anyhow::Result<Config> { Ok(builder.load(&cli.config)?) };
    let operator = || -> anyhow::Result<Box<dyn store::Operator>> {
        Ok(config::load_store(&cli.config)?.operator(app::now)?)
    };
    match &cli.command {
        Command::Serve(args) => serve::run(args, &cli.config, builder),
        Command::Check(args) => check::run(args, &cli.config, builder),
        Command::Send(args) => send::run(args, config()?),
        Command::Verify(args) => verify::run(args, &config()?),
        Command::Doctor(args) => doctor::run(args, &cli.config, builder),
        Command::Healthcheck(args) => healthcheck::run(args, &cli.config),
        Command::Events(command) => events::run(command, operator),
        Command::Parked(command) => parked::run(command, &mut *operator()?),
        Command::Replay(args) => replay::run(args, &mut *operator()?),
        Command::Backup(args) => backup::run(args, &*config::load_store(&cli.config)?),
        Command::Migrate(command) => migrate::run(command, &cli.config, builder),
        Command::Handlers(command) => handlers::run(command, builder, operator),
        Command::Status(args) => status::run(args, &cli.config),
        Command::Audit(args) => audit::run(args, &*operator()?),
        Command::Schema(args) => schema::run(args, builder),
        Command::Completions(args) => completions::run(args, builder),
    }
}

/// Prints `error` in the name of `program`, and returns its exit code.
fn fail(error: &anyhow::Error, program: &str) -> ExitCode {
    let mut stderr = io::stderr().lock();
    let color = output::has_color(&stderr);
    if let Some(report) = error.downcast_ref::<config::Report>() {
        let printed = writeln!(stderr, "{}", report.render(color));
        return ExitCode::from(if printed.is_ok() { 64 } else { 1 });
    }
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS; // `hookswitch events list | head` is no failure.
    }
    let printed = writeln!(stderr, "{program}: {error:#}");
    ExitCode::from(match error.downcast_ref::<app::Error>() {
        _ if printed.is_err() => 1,
        // The files have changed since the configuration was checked.
        Some(app::Error::Bind(http::Error::Certificate(_))) => 64,
        Some(_) => 69,
        None if error.is::<store::StoreError>() => 69,
        None => 1,
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let of_text = error.downcast_ref::<io::Error>().map(io::Error::kind);
    let json = error.downcast_ref::<serde_json::Error>();
    let of_json = json.and_then(serde_json::Error::io_error_kind);
    of_text.or(of_json) == Some(io::ErrorKind::BrokenPipe)
}

/// Runs `future` on a runtime of one thread, for commands that talk to one server.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?
        .block_on(future)
}
