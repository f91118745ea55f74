//! `check`: what `serve` would say of the configuration, without serving.

use std::{
    io::{self, Write},
    path::Path,
};

use super::{Answer, output::count};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// Reports that all is well: a configuration with problems does not get here.
pub(super) fn run(_args: &Args, path: &Path, config: &Config) -> anyhow::Result<Answer> {
    writeln!(
        io::stdout(),
        "{} is sound: {}, {}",
        path.display(),
        count(config.endpoints.len() as u64, "endpoint"),
        count(config.handlers.len() as u64, "handler"),
    )?;
    Ok(Answer::Yes)
}
