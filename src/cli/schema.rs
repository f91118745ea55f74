//! `schema`: the JSON Schema of an event family, or of the configuration.

use anyhow::bail;

use super::{Exit, output};
use crate::{
    app, config,
    event::{Family, families},
};

/// The name that stands for the configuration.
const CONFIG: &str = "config";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The family, such as `zoom.number-management`, or `config` for the configuration
    family: String,
}

pub(super) fn run(args: &Args, builder: &app::Builder) -> anyhow::Result<Exit> {
    if args.family == CONFIG {
        output::print_json(&config::schema(builder.kinds()))?;
        return Ok(Exit::Success);
    }
    let Some(family) = Family::named(&args.family) else {
        let families = families().map(|family| family.name);
        let known: Vec<_> = families.chain([CONFIG]).collect();
        bail!(
            "there is no schema {:?}; there are {}",
            args.family,
            known.join(", ")
        );
    };
    output::print_json(&family.schema())?;
    Ok(Exit::Success)
}
