//! `check`: what `serve` would say of the configuration, without serving.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
};

use super::{Answer, output::count};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// Reports that all is well, and what there is to warn of: a configuration with problems does not get
/// here.
pub(super) fn run(_args: &Args, path: &Path, config: &Config) -> anyhow::Result<Answer> {
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
    Ok(Answer::Yes)
}
