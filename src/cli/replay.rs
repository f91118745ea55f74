//! `replay`: delivers events again.

use std::io::{self, IsTerminal, Write};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    Exit, audit,
    events::{Range, id},
    output::Format,
};
use crate::{
    app,
    event::{EventId, HandlerName},
    store::{Action, Operator, ReplaySelection},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The events to deliver again; default: all events that the options select
    #[arg(value_parser = id)]
    ids: Vec<EventId>,
    /// Only to this handler, even if its patterns do not match the event; repeatable
    #[arg(long = "handler", value_name = "NAME")]
    handlers: Vec<String>,
    #[command(flatten)]
    range: Range,
    /// Only parked deliveries
    #[arg(long)]
    parked: bool,
    /// The reason, which handlers get and which is stored with the delivery
    #[arg(long, default_value = "replayed by hand")]
    reason: String,
    /// Only print what would be delivered again
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: Format,
}

pub(super) fn run(args: &Args, operator: &mut dyn Operator) -> anyhow::Result<Exit> {
    let selection = ReplaySelection {
        ids: args.ids.clone(),
        handlers: args
            .handlers
            .iter()
            .map(|name| HandlerName::from(name.as_str()))
            .collect(),
        name: args.range.name.clone(),
        since: args.range.since,
        until: args.range.until,
        parked_only: args.parked,
    };
    if is_everything(&selection) {
        bail!(
            "this would deliver every stored event again; select some with ids, --handler, --name, \
             --since, --until or --parked"
        );
    }
    let plan = operator.plan(&selection)?;
    let done = if args.dry_run {
        plan
    } else {
        let bar = progress_bar(plan.total());
        let now = app::now();
        let counts = plan.deliveries.iter();
        let counts: Vec<_> = counts
            .map(|(handler, count)| format!("{count} to {handler}"))
            .collect();
        if !counts.is_empty() {
            let entry = audit::entry(Action::Replay, counts.join(", "), &args.reason);
            operator.record(&entry)?;
        }
        let done = operator.replay(&selection, &args.reason, now, &mut |done| {
            bar.set_position(done)
        })?;
        bar.finish_and_clear();
        done
    };
    args.format.print(
        &done.deliveries,
        [
            "handler",
            if args.dry_run {
                "would be delivered again"
            } else {
                "to be delivered again"
            },
        ],
        |(handler, count)| [handler.to_string(), count.to_string()],
        "no delivery matches, so none is made again",
    )?;
    if done.total() > 0 && !args.format.json && !args.dry_run {
        writeln!(
            io::stderr(),
            "a running service delivers them within about a second"
        )?;
    }
    Ok(Exit::Success)
}

fn is_everything(selection: &ReplaySelection) -> bool {
    let ReplaySelection {
        ids,
        handlers,
        name,
        since,
        until,
        parked_only,
    } = selection;
    ids.is_empty()
        && handlers.is_empty()
        && name.is_none()
        && since.is_none()
        && until.is_none()
        && !parked_only
}

/// A progress bar on standard error, hidden where that is not a terminal.
pub(super) fn progress_bar(total: u64) -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta} left");
    style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
}
