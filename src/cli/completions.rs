//! `completions`: shell completion scripts.

use std::io;

use super::Exit;
use crate::app::Builder;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &Args, builder: &Builder) -> anyhow::Result<Exit> {
    let (mut script, mut command) = (Vec::new(), super::command(builder));
    clap_complete::generate(args.shell, &mut command, builder.name(), &mut script);
    io::Write::write_all(&mut io::stdout(), &script)?;
    Ok(Exit::Success)
}
