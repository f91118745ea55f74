//! `schema`: the JSON Schema of a family's model.

use anyhow::bail;

use super::{Answer, output};
use crate::event::{FAMILIES, Family};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The family, such as `zoom.number-management`
    family: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let Some(family) = Family::named(&args.family) else {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.name).collect();
        bail!(
            "there is no family {:?}; there are {}",
            args.family,
            known.join(", ")
        );
    };
    output::print_json(&family.schema())?;
    Ok(Answer::Yes)
}
