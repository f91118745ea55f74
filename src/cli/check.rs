//! `check`: the problems and warnings of a configuration.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
};

use super::{Exit, output::count};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// Prints the warnings and a summary. A configuration with problems fails before.
pub(super) fn run(_args: &Args, path: &Path, config: &Config) -> anyhow::Result<Exit> {
    if !config.warnings.problems().is_empty() {
        let mut stderr = io::stderr().lock();
        let color = stderr.is_terminal();
        writeln!(stderr, "{}", config.warnings.render(color))?;
    }
    writeln!(
        io::stdout(),
        "{} is sound: {}, {}",
        path.display(),
        count(config.endpoints.len() as u64, "endpoint"),
        count(config.handlers.len() as u64, "handler"),
    )?;
    Ok(Exit::Success)
}
