//! The command line: one file per subcommand.
//!
//! **Invariant:** standard output carries what was asked for and nothing else, so that it can be
//! piped; logs, progress and errors go to standard error.
//!
//! # Exit codes
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the command ran, and its answer is no: not ready, not found, an answer that was not expected, a drain that was cut short |
//! | 2 | the command line itself is wrong |
//! | 64 | the configuration is wrong; the report says where |
//! | 69 | the service or its store cannot be opened: in use, unreadable, address taken |
//! | 70 | the store was poisoned by a failed write or sync, or a part of the service failed; what was acknowledged is safe |

mod check;
mod completions;
mod events;
mod healthcheck;
mod migrate;
mod output;
mod parked;
mod replay;
mod schema;
mod send;
mod serve;
mod time;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::{
    app,
    config::{self, Config},
    store,
};

/// Receives RingCentral and Zoom telephony webhooks and never loses one.
#[derive(Debug, Parser)]
#[command(
    name = "hookswitch",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// The TOML file that says what to receive and who gets it
    #[arg(
        long,
        short,
        global = true,
        env = "HOOKSWITCH_CONFIG",
        default_value = "hookswitch.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Receive, store and deliver until told to stop (SIGTERM, SIGINT; SIGHUP reloads)
    Serve(serve::Args),
    /// Read the configuration, report everything that is wrong with it, and do no more
    Check(check::Args),
    /// Post handshakes and events to an endpoint, signed as its provider would
    Send(send::Args),
    /// Ask a running service on this machine whether it is ready
    Healthcheck(healthcheck::Args),
    /// Look at stored events
    #[command(subcommand)]
    Events(events::Command),
    /// Look at deliveries that were given up and wait for a person, or do without them
    #[command(subcommand)]
    Parked(parked::Command),
    /// Make deliveries again, on purpose
    Replay(replay::Args),
    /// Move everything from one store to another
    #[command(subcommand)]
    Migrate(migrate::Command),
    /// Print the JSON Schema of an event family
    Schema(schema::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// What a command that did not fail comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
    Failed,
}

/// Runs the command line of this process on top of `builder`, which knows the kinds of handlers.
pub fn main(builder: &app::Builder) -> ExitCode {
    let cli = Cli::parse();
    match run(&cli, builder) {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::FAILURE,
        Ok(Answer::Failed) => ExitCode::from(70),
        Err(error) => fail(&error),
    }
}

fn run(cli: &Cli, builder: &app::Builder) -> anyhow::Result<Answer> {
    let config = || -> anyhow::Result<Config> { Ok(builder.load(&cli.config)?) };
    let records = || -> anyhow::Result<Box<dyn store::Records>> {
        Ok(config::load_store(&cli.config)?.records(app::now)?)
    };
    match &cli.command {
        Command::Serve(args) => serve::run(args, &cli.config, builder),
        Command::Check(args) => check::run(args, &cli.config, &config()?),
        Command::Send(args) => send::run(args, config()?),
        Command::Healthcheck(args) => healthcheck::run(args, &cli.config),
        Command::Events(command) => events::run(command, &*records()?),
        Command::Parked(command) => parked::run(command, &mut *records()?),
        Command::Replay(args) => replay::run(args, &mut *records()?),
        Command::Migrate(command) => migrate::run(command, &cli.config, builder),
        Command::Schema(args) => schema::run(args),
        Command::Completions(args) => completions::run(args),
    }
}

/// Says what went wrong, and finds the exit code for it.
fn fail(error: &anyhow::Error) -> ExitCode {
    let mut stderr = io::stderr().lock();
    let color = stderr.is_terminal();
    if let Some(report) = error.downcast_ref::<config::Report>() {
        let said = writeln!(stderr, "{}", report.render(color));
        return ExitCode::from(if said.is_ok() { 64 } else { 1 });
    }
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS; // `hookswitch events list | head` is no failure.
    }
    let said = writeln!(stderr, "hookswitch: {error:#}");
    let unavailable = error.is::<app::Error>() || error.is::<store::StoreError>();
    ExitCode::from(match (said, unavailable) {
        (Ok(()), true) => 69,
        _ => 1,
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A runtime for the commands that only need to talk to one server.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?
        .block_on(future)
}
