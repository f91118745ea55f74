//! `parked`: lists and skips parked deliveries.

use anyhow::bail;

use super::{
    Exit,
    events::id,
    output::{Format, or_dash},
};
use crate::{
    app,
    event::{EventId, HandlerName},
    store::{Operator, ParkedDelivery, ParkedFilter},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List parked deliveries with their reasons, oldest first
    List(List),
    /// Skip parked deliveries, so that retention may delete their events; `replay` delivers them
    /// instead
    Skip(Skip),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Only deliveries of this handler
    #[arg(long)]
    handler: Option<String>,
    /// List at most this many deliveries
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct Skip {
    /// The events whose parked deliveries to skip; default: all events
    #[arg(value_parser = id)]
    ids: Vec<EventId>,
    /// Only deliveries of this handler, which need not be configured any more
    #[arg(long)]
    handler: Option<String>,
    /// The reason, which is stored with the delivery
    #[arg(long)]
    reason: String,
    /// Only print what would be skipped
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: Format,
}

pub(super) fn run(command: &Command, operator: &mut dyn Operator) -> anyhow::Result<Exit> {
    match command {
        Command::List(args) => {
            let parked = parked(operator, args.handler.as_deref(), args.limit)?;
            print(args.format, &parked, "no delivery is parked")?;
        }
        Command::Skip(args) => {
            let skipped = skip(args, operator)?;
            let none = "no parked delivery matches, so none is skipped";
            print(args.format, &skipped, none)?;
        }
    }
    Ok(Exit::Success)
}

fn parked(
    operator: &dyn Operator,
    handler: Option<&str>,
    limit: usize,
) -> anyhow::Result<Vec<ParkedDelivery>> {
    let handler = handler.map(HandlerName::from);
    Ok(operator.parked(&ParkedFilter { handler, limit })?)
}

/// Skips the selected deliveries, unless it is a dry run, and returns them.
fn skip(args: &Skip, operator: &mut dyn Operator) -> anyhow::Result<Vec<ParkedDelivery>> {
    if args.ids.is_empty() && args.handler.is_none() {
        bail!("this would skip all parked deliveries; select some with ids or --handler");
    }
    let mut chosen = parked(operator, args.handler.as_deref(), usize::MAX)?;
    chosen.retain(|parked| args.ids.is_empty() || args.ids.contains(&parked.id));
    if !args.dry_run {
        let deliveries = chosen.iter();
        let deliveries: Vec<_> = deliveries
            .map(|parked| (parked.id, parked.handler.clone()))
            .collect();
        operator.skip(&deliveries, &args.reason, app::now())?;
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
