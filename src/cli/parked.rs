//! `parked`: lists and skips parked deliveries.

use std::collections::BTreeSet;

use anyhow::bail;

use super::{
    Exit, audit,
    events::id,
    output::{Format, or_dash},
};
use crate::{
    app,
    event::{EventId, HandlerName},
    store::{Action, Operator, ParkedDelivery, ParkedFilter},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List parked deliveries with their reasons, oldest first
    List(List),
    /// Count parked deliveries by handler and reason, most frequent first
    Reasons(Reasons),
    /// Skip parked deliveries, so that retention may delete their events; `replay` delivers them
    /// instead
    Skip(Skip),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Only deliveries of this handler
    #[arg(long)]
    handler: Option<String>,
    /// Only deliveries that are parked for a reason with this text in it
    #[arg(long)]
    why: Option<String>,
    /// List at most this many deliveries
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct Reasons {
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
            let parked = parked(
                operator,
                ParkedFilter {
                    handler: handler(operator, args.handler.as_deref())?,
                    why: args.why.clone(),
                    limit: args.limit,
                    ..ParkedFilter::default()
                },
            )?;
            print(args.format, &parked, "no delivery is parked")?;
        }
        Command::Reasons(args) => reasons(args, operator)?,
        Command::Skip(args) => {
            let skipped = skip(args, operator)?;
            let none = "no parked delivery matches, so none is skipped";
            print(args.format, &skipped, none)?;
        }
    }
    Ok(Exit::Success)
}

/// The handler called `name`, which the store must know.
pub(super) fn handler(
    operator: &dyn Operator,
    name: Option<&str>,
) -> anyhow::Result<Option<HandlerName>> {
    let Some(name) = name.map(HandlerName::from) else {
        return Ok(None);
    };
    let known: Vec<_> = operator
        .handlers()?
        .into_iter()
        .map(|known| known.handler)
        .collect();
    if !known.contains(&name) {
        let known: Vec<_> = known.iter().map(HandlerName::as_str).collect();
        bail!(
            "the store knows no handler {name:?}; it knows {}",
            known.join(", ")
        );
    }
    Ok(Some(name))
}

fn reasons(args: &Reasons, operator: &dyn Operator) -> anyhow::Result<()> {
    args.format.print(
        &operator.parked_reasons()?,
        ["handler", "count", "oldest", "why"],
        |reason| {
            [
                reason.handler.to_string(),
                format!("{}{}", reason.count, if reason.at_least { "+" } else { "" }),
                format!("{:.0}", reason.oldest),
                reason.why.clone(),
            ]
        },
        "no delivery is parked",
    )
}

/// The deliveries that `filter` selects, from as many pages as it takes.
fn parked(
    operator: &dyn Operator,
    mut filter: ParkedFilter,
) -> anyhow::Result<Vec<ParkedDelivery>> {
    let mut deliveries = Vec::new();
    loop {
        let mut page = operator.parked(&filter)?;
        filter.limit -= page.deliveries.len();
        deliveries.append(&mut page.deliveries);
        if page.next.is_none() || filter.limit == 0 {
            return Ok(deliveries);
        }
        filter.after = page.next;
    }
}

/// Skips the selected deliveries, unless it is a dry run, and returns them.
fn skip(args: &Skip, operator: &mut dyn Operator) -> anyhow::Result<Vec<ParkedDelivery>> {
    if args.ids.is_empty() && args.handler.is_none() {
        bail!("this would skip all parked deliveries; select some with ids or --handler");
    }
    let mut chosen = parked(
        operator,
        ParkedFilter {
            handler: args.handler.as_deref().map(HandlerName::from),
            limit: usize::MAX,
            ..ParkedFilter::default()
        },
    )?;
    chosen.retain(|parked| args.ids.is_empty() || args.ids.contains(&parked.id));
    if !args.dry_run && !chosen.is_empty() {
        let handlers: BTreeSet<_> = chosen.iter().map(|parked| &parked.handler).collect();
        let handlers: Vec<_> = handlers.into_iter().map(HandlerName::as_str).collect();
        let target = format!("{} to {}", chosen.len(), handlers.join(", "));
        operator.record(&audit::entry(Action::Skip, target, &args.reason))?;
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
