//! `schema`: the JSON Schema of an event family.

use anyhow::bail;

use super::{Exit, output};
use crate::event::{Family, families};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The family, such as `zoom.number-management`
    family: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    let Some(family) = Family::named(&args.family) else {
        let known: Vec<_> = families().map(|family| family.name).collect();
        bail!(
            "there is no family {:?}; there are {}",
            args.family,
            known.join(", ")
        );
    };
    output::print_json(&family.schema())?;
    Ok(Exit::Success)
}
