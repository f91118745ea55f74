//! Measures hookswitch. Every figure is a ratio of two things measured in turn on one machine, since machines
//! differ and their speed varies.
//!
//! `cargo bench -- embedded`, `cargo bench -- ladder` and `cargo bench --features postgres -- postgres` print what
//! `docs/benchmarks.md` reports. `cargo bench -- help` lists everything.

#![expect(clippy::print_stdout, reason = "the figures go to standard output")]

mod disk;
mod embedded;
mod ladder;
mod load;
mod postgres;
mod process;
mod receiver;
#[path = "../../tests/support"]
#[expect(
    clippy::unwrap_used,
    reason = "a server that does not start ends the measurement"
)]
mod support {
    pub(crate) mod postgres;
    pub(crate) mod server;
}

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};

/// The secret of the endpoint that is measured.
const SECRET: &str = "local-zoom-secret";

/// Measures hookswitch.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --", bin_name = "cargo bench --")]
struct Args {
    #[command(subcommand)]
    command: Command,

    /// The folder for stores and databases: its disk is measured
    #[arg(long, global = true, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,

    /// Passed by cargo
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare the embedded store with the least durable receiver
    Embedded(embedded::Args),
    /// Measure the cost of each thing that a 200 stands for
    Ladder(ladder::Args),
    /// Compare the PostgreSQL store with pgbench (needs PostgreSQL and the feature `postgres`)
    Postgres(postgres::Args),
    /// Post signed events to a service that runs already
    Load(load::Args),
    /// Measure an 800-byte append and its sync
    Disk(disk::Args),
    /// Run a receiver that hookswitch is compared with
    Receiver(receiver::Args),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tempfile::env::override_temp_dir(&args.dir)
        .ok()
        .context("the folder for temporary files is set already")?;
    match args.command {
        Command::Embedded(args) => embedded::measure(&args),
        Command::Ladder(args) => ladder::measure(&args),
        Command::Postgres(args) => postgres::measure(&args),
        Command::Load(args) => {
            println!("{}", load::run(args)?);
            Ok(())
        }
        Command::Disk(disk) => {
            println!("{}", disk::measure(&args.dir, &disk)?);
            Ok(())
        }
        Command::Receiver(args) => receiver::run(&args),
    }
}

/// A configuration with one endpoint, written to `name` in `dir`. `store` and `handlers` are TOML.
fn configuration(
    dir: &Path,
    name: &str,
    [listen, admin]: [u16; 2],
    store: &str,
    handlers: &str,
) -> anyhow::Result<PathBuf> {
    let path = dir.join(name);
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:{listen}\"\n\
         [admin]\nlisten = \"127.0.0.1:{admin}\"\n\
         [store]\n{store}\n\
         [endpoints.zoom]\nfamily = \"zoom.number-management\"\npath = \"/zoom/number-management\"\n\
         secret_tokens = [\"{SECRET}\"]\n{handlers}"
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

/// A handler that writes every event to a file in `dir`, and syncs it.
fn archive(dir: &Path, settings: &str) -> String {
    let path = dir.join("events.ndjson");
    format!("[handlers.archive]\nkind = \"file\"\nevents = [\"*\"]\npath = {path:?}\n{settings}\n")
}

/// Prints the average of `ratios`.
fn print_average(ratios: &[f64]) {
    let average = ratios.iter().sum::<f64>() / ratios.len() as f64;
    println!("average ratio {average:.2}");
}
