//! `events`: the stored events and their deliveries.

use std::io::{self, Write};

use anyhow::bail;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Exit,
    output::{Format, count, or_dash, print_json},
    parked,
};
use crate::{
    event::{EndpointName, EventId, EventName, Family, Key, Notification, Pattern, event_meanings},
    store::{
        DeliveryDetails, DeliveryState, EventDetails, EventFilter, EventList, EventSummary,
        Operator,
    },
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List events, newest first, without bodies
    List(List),
    /// Show what happened to a phone number or an extension, oldest first: its events, with each
    /// delivery and attempt
    Timeline(Timeline),
    /// Show one event: its body, its parsed form, and its deliveries
    Show(Show),
    /// List every event name that can occur, with its meaning
    Names(Names),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    range: Range,
    /// Only events with this partition key
    #[arg(long)]
    key: Option<String>,
    /// Only events about this phone number or extension, however it is written
    #[arg(long)]
    number: Option<String>,
    /// Only events that this endpoint received
    #[arg(long)]
    endpoint: Option<String>,
    /// Only events with a delivery to this handler, in the state and with the reason that the next two
    /// options name
    #[arg(long)]
    handler: Option<String>,
    /// Only events with a delivery in this state
    #[arg(long)]
    state: Option<State>,
    /// Only events with a delivery that is parked, was skipped or failed with this text in the reason
    #[arg(long)]
    why: Option<String>,
    /// Only events older than this one
    #[arg(long, value_name = "ID", value_parser = id)]
    before: Option<EventId>,
    /// List at most this many events
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

/// The state of a delivery. Which of the open ones wait for another depends on the moment.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum State {
    Open,
    Parked,
    Done,
    Skipped,
}

impl From<State> for DeliveryState {
    fn from(state: State) -> Self {
        match state {
            State::Open => Self::Ready,
            State::Parked => Self::Parked,
            State::Done => Self::Done,
            State::Skipped => Self::Skipped,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Timeline {
    /// The phone number or extension, however it is written
    #[arg(allow_hyphen_values = true)]
    number: String,
    #[command(flatten)]
    range: Range,
    /// Show at most this many events, the latest ones
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

/// A selection of events by name and time of arrival.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Range {
    /// Only events with this name; `*` matches any characters
    #[arg(long, value_parser = Pattern::new)]
    pub(super) name: Option<Pattern>,
    /// Only events received at or after this time (2026-01-31T08:00:00Z) or age (2h)
    #[arg(long, value_parser = super::time::parse)]
    pub(super) since: Option<jiff::Timestamp>,
    /// Only events received before this time or age
    #[arg(long, value_parser = super::time::parse)]
    pub(super) until: Option<jiff::Timestamp>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// The event's id
    #[arg(value_parser = id)]
    id: EventId,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct Names {
    #[command(flatten)]
    format: Format,
}

/// `operator` opens the store, which the names do not need.
pub(super) fn run(
    command: &Command,
    operator: impl FnOnce() -> anyhow::Result<Box<dyn Operator>>,
) -> anyhow::Result<Exit> {
    match command {
        Command::List(args) => list(args, &*operator()?),
        Command::Timeline(args) => timeline(args, &*operator()?),
        Command::Show(args) => show(args, &*operator()?),
        Command::Names(args) => names(args),
    }
}

/// One row of the names.
#[derive(Debug, Serialize)]
struct Name {
    event: EventName,
    meaning: &'static str,
}

fn names(args: &Names) -> anyhow::Result<Exit> {
    let names = event_meanings().map(|(event, meaning)| Name { event, meaning });
    args.format.print(
        &names.collect::<Vec<_>>(),
        ["event", "meaning"],
        |name| [name.event.to_string(), name.meaning.to_owned()],
        "no event can occur",
    )?;
    Ok(Exit::Success)
}

/// Parses an event's id.
pub(super) fn id(text: &str) -> Result<EventId, String> {
    let help = "an id looks like 01a203eb-0f3f-797b-9600-3580fa44e674; `hookswitch events list` shows them";
    text.parse().map_err(|_| help.to_owned())
}

fn list(args: &List, operator: &dyn Operator) -> anyhow::Result<Exit> {
    let filter = EventFilter {
        name: args.range.name.clone(),
        since: args.range.since,
        until: args.range.until,
        key: args.key.as_deref().map(Key::from),
        about: args.number.clone(),
        endpoint: args.endpoint.as_deref().map(EndpointName::from),
        handler: parked::handler(operator, args.handler.as_deref())?,
        state: args.state.map(DeliveryState::from),
        why: args.why.clone(),
        before: args.before,
        after: None,
        limit: args.limit,
    };
    let (events, end) = collect(operator, filter)?;
    warn_if_incomplete(&end)?;
    args.format.print(
        &events,
        [
            "id", "received", "event", "endpoint", "key", "open", "parked",
        ],
        |event| {
            [
                event.id.to_string(),
                format!("{:.3}", event.received_at),
                event.name.to_string(),
                event.endpoint.to_string(),
                or_dash(event.key.as_ref()),
                event.open.to_string(),
                event.parked.to_string(),
            ]
        },
        "no stored event matches",
    )?;
    Ok(Exit::Success)
}

/// Says on standard error that events may be missing.
fn warn_if_incomplete(list: &EventList) -> io::Result<()> {
    let Some(before) = list.incomplete_before else {
        return Ok(());
    };
    writeln!(
        io::stderr(),
        "events received before {before:.0} may be missing: the service is still indexing them"
    )
}

fn timeline(args: &Timeline, operator: &dyn Operator) -> anyhow::Result<Exit> {
    let filter = EventFilter {
        name: args.range.name.clone(),
        since: args.range.since,
        until: args.range.until,
        about: Some(args.number.clone()),
        limit: args.limit,
        ..EventFilter::default()
    };
    let (events, end) = collect(operator, filter)?;
    warn_if_incomplete(&end)?;
    let mut found = Vec::with_capacity(events.len());
    for event in events.iter().rev() {
        // Retention may have deleted the event meanwhile.
        found.extend(operator.event(event.id)?);
    }
    if args.format.json {
        print_json(&found.iter().map(as_json).collect::<Vec<_>>())?;
        return Ok(Exit::Success);
    }
    let mut out = io::stdout().lock();
    if end.next.is_some() {
        writeln!(out, "there are older events; --limit shows more of them\n")?;
    }
    for (number, record) in found.iter().enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        print_story(&mut out, record)?;
    }
    if found.is_empty() {
        writeln!(io::stderr(), "no stored event is about {}", args.number)?;
    }
    Ok(Exit::Success)
}

/// An event in a few lines, with its deliveries.
fn print_story(out: &mut impl Write, record: &EventDetails) -> io::Result<()> {
    let event = &record.notification;
    writeln!(
        out,
        "{:.3}  {}  {}",
        event.received_at, event.name, event.id
    )?;
    write!(out, "  received by {}", event.endpoint)?;
    if let Some(occurred_at) = event.occurred_at {
        write!(out, ", occurred {occurred_at:.3}")?;
    }
    writeln!(out, "; about {}", event.subjects.join(", "))?;
    if record.deliveries.is_empty() {
        writeln!(out, "  no handler takes this event")?;
    }
    for delivery in &record.deliveries {
        print_delivery(out, "  ", delivery)?;
    }
    Ok(())
}

/// The events that `filter` selects, from as many pages as it takes, and the list that ended them.
fn collect(
    operator: &dyn Operator,
    mut filter: EventFilter,
) -> anyhow::Result<(Vec<EventSummary>, EventList)> {
    let mut events = Vec::new();
    loop {
        let mut page = operator.events(&filter)?;
        filter.limit -= page.events.len();
        events.append(&mut page.events);
        if page.next.is_none() || filter.limit == 0 {
            return Ok((events, page));
        }
        filter.before = page.next;
    }
}

fn show(args: &Show, operator: &dyn Operator) -> anyhow::Result<Exit> {
    let Some(record) = operator.event(args.id)? else {
        bail!(
            "there is no event {}; `hookswitch events list` shows the stored ones",
            args.id
        );
    };
    if args.format.json {
        print_json(&as_json(&record))?;
    } else {
        print(&record)?;
    }
    Ok(Exit::Success)
}

fn as_json(record: &EventDetails) -> Value {
    let event = &record.notification;
    let (body, parsed) = (body(event), parsed(event));
    json!({
        "id": event.id,
        "name": event.name,
        "endpoint": event.endpoint,
        "key": event.key,
        "subject": event.subject(),
        "subjects": event.subjects,
        "occurred_at": event.occurred_at,
        "received_at": event.received_at,
        "body": body,
        "understood": parsed.as_ref().ok(),
        "problem": parsed.as_ref().err(),
        "deliveries": record.deliveries,
    })
}

fn print(record: &EventDetails) -> anyhow::Result<()> {
    let event = &record.notification;
    let mut out = io::stdout().lock();
    writeln!(out, "id        {}", event.id)?;
    writeln!(out, "event     {}", event.name)?;
    writeln!(out, "endpoint  {}", event.endpoint)?;
    writeln!(out, "key       {}", or_dash(event.key.as_ref()))?;
    writeln!(
        out,
        "subject   {}",
        or_dash(Some(&event.subjects.join(", ")).filter(|text| !text.is_empty()))
    )?;
    writeln!(out, "occurred  {}", or_dash(event.occurred_at.as_ref()))?;
    writeln!(out, "received  {}", event.received_at)?;
    if let Err(problem) = parsed(event) {
        writeln!(out, "problem   {problem}")?;
    }
    if record.deliveries.is_empty() {
        writeln!(out, "\nno handler takes this event")?;
    }
    for delivery in &record.deliveries {
        writeln!(out)?;
        print_delivery(&mut out, "", delivery)?;
    }
    match body(event) {
        Value::String(text) => writeln!(out, "\n{text}")?,
        body => writeln!(out, "\n{body:#}")?,
    }
    Ok(())
}

/// A delivery and its failed attempts, each line behind `indent`.
fn print_delivery(
    out: &mut impl Write,
    indent: &str,
    delivery: &DeliveryDetails,
) -> io::Result<()> {
    let state = serde_json::to_value(delivery.state).unwrap_or_default();
    write!(
        out,
        "{indent}handler {}: {}, {}",
        delivery.handler,
        state.as_str().unwrap_or_default(),
        count(delivery.attempts.into(), "attempt")
    )?;
    if let Some(id) = delivery.waits_for {
        write!(out, ", waits for {id}")?;
    } else if let Some(due_at) = delivery.due_at {
        write!(out, ", due {due_at:.0}")?;
    }
    if let Some(ended_at) = delivery.ended_at {
        write!(out, ", {ended_at:.3}")?;
    }
    if let Some(reason) = &delivery.replay {
        write!(out, ", replayed: {reason}")?;
    }
    let last = delivery.failures.last().map(|failure| &failure.why);
    if let Some(why) = delivery.why.as_ref().filter(|why| last != Some(why)) {
        write!(out, ", since {why}")?;
    }
    writeln!(out)?;
    for failure in &delivery.failures {
        writeln!(
            out,
            "{indent}  {:.3}  {} ms  {}",
            failure.started_at, failure.took_ms, failure.why
        )?;
    }
    Ok(())
}

/// The body as JSON if it is JSON, or else as text.
fn body(event: &Notification) -> Value {
    serde_json::from_slice(&event.body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&event.body).into_owned()))
}

/// The body as parsed by its family's model, or why it cannot be parsed.
fn parsed(event: &Notification) -> Result<Value, String> {
    match Family::of_event(&event.name) {
        Some(family) => family
            .value(&event.body)
            .map_err(|problem| problem.to_string()),
        None => Err("no family claims this event".to_owned()),
    }
}
