//! `parked`: deliveries that were given up.

use super::{
    Answer,
    output::{Format, or_dash},
};
use crate::{
    event::HandlerName,
    store::{ParkedFilter, Records},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List parked deliveries with their reasons, oldest first
    List(List),
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

pub(super) fn run(command: &Command, records: &dyn Records) -> anyhow::Result<Answer> {
    let Command::List(args) = command;
    let parked = records.parked(&ParkedFilter {
        handler: args.handler.as_deref().map(HandlerName::from),
        limit: args.limit,
    })?;
    args.format.print(
        &parked,
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
        "nothing is parked",
    )?;
    Ok(Answer::Yes)
}
