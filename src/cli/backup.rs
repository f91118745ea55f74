//! `backup`: copies an embedded store, which a service may be using.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use indicatif::BinaryBytes;

use super::Exit;
use crate::store::Engine;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the backup, which is created
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

pub(super) fn run(args: &Args, store: &dyn Engine) -> anyhow::Result<Exit> {
    let backup = store.backup(&args.to)?;
    writeln!(
        io::stdout(),
        "{} of journal and {} of ledger backed up to {to}; to restore, copy {to} to a [store] path and \
         start the service",
        BinaryBytes(backup.journal_bytes),
        BinaryBytes(backup.ledger_bytes),
        to = args.to.display(),
    )?;
    Ok(Exit::Success)
}
