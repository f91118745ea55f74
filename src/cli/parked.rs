//! `parked`: deliveries that were given up.

use anyhow::bail;

use super::{
    Answer,
    events::id,
    output::{Format, or_dash},
};
use crate::{
    app,
    event::{EventId, HandlerName},
    store::{ParkedDelivery, ParkedFilter, Records},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List parked deliveries with their reasons, oldest first
    List(List),
    /// Do without parked deliveries: they are skipped, and no longer keep their events from being
    /// deleted; `replay` makes parked ones again
    Skip(Skip),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Only this handler's
    #[arg(long)]
    handler: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct Skip {
    /// The events whose deliveries to skip; all that are parked where none is given
    #[arg(value_parser = id)]
    ids: Vec<EventId>,
    /// Only this handler's, which need not be configured any more
    #[arg(long)]
    handler: Option<String>,
    /// Why: the record keeps it
    #[arg(long)]
    reason: String,
    /// Print what would be skipped, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: Format,
}

pub(super) fn run(command: &Command, records: &mut dyn Records) -> anyhow::Result<Answer> {
    match command {
        Command::List(args) => {
            let parked = parked(records, args.handler.as_deref(), args.limit)?;
            print(args.format, &parked, "nothing is parked")?;
        }
        Command::Skip(args) => {
            let skipped = skip(args, records)?;
            let none = "nothing that is parked is like that, so nothing is skipped";
            print(args.format, &skipped, none)?;
        }
    }
    Ok(Answer::Yes)
}

fn parked(
    records: &dyn Records,
    handler: Option<&str>,
    limit: usize,
) -> anyhow::Result<Vec<ParkedDelivery>> {
    let handler = handler.map(HandlerName::from);
    Ok(records.parked(&ParkedFilter { handler, limit })?)
}

/// What is skipped, or would be.
fn skip(args: &Skip, records: &mut dyn Records) -> anyhow::Result<Vec<ParkedDelivery>> {
    if args.ids.is_empty() && args.handler.is_none() {
        bail!("this would skip everything that is parked; say which with ids or --handler");
    }
    let mut chosen = parked(records, args.handler.as_deref(), usize::MAX)?;
    chosen.retain(|parked| args.ids.is_empty() || args.ids.contains(&parked.id));
    if !args.dry_run {
        let deliveries = chosen.iter();
        let deliveries: Vec<_> = deliveries
            .map(|parked| (parked.id, parked.handler.clone()))
            .collect();
        records.skip(&deliveries, &args.reason, app::now())?;
    }
    Ok(chosen)
}

fn print(format: Format, parked: &[ParkedDelivery], none: &str) -> anyhow::Result<()> {
    format.print(
        parked,
        ["id", "parked", "handler", "event", "key", "attempts", "why"],
        |delivery| {
            [
                delivery.id.to_string(),
                format!("{:.0}", delivery.parked_at),
                delivery.handler.to_string(),
                delivery.name.to_string(),
                or_dash(delivery.key.as_ref()),
                delivery.attempts.to_string(),
                delivery.why.clone(),
            ]
        },
        none,
    )
}
