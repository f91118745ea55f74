//! `/handlers`: who gets events, and how that goes.

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Context, NoParameters, Problem};
use crate::{
    admin::{console::Console, mask, text},
    dispatch::{self, Attempts},
    event::HandlerName,
    store::{self, Action},
    telemetry::ByHandler,
};

/// A handler in force.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Handler {
    /// Its name in the TOML.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// The patterns of the events that it gets.
    pub events: Vec<String>,
    /// The most attempts at the same time.
    pub concurrency: usize,
    /// Unfinished deliveries.
    pub open: u64,
    /// The age of the oldest of them, in seconds.
    pub oldest_seconds: f64,
    /// Parked deliveries.
    pub parked: u64,
    /// When it last accepted or declined an event, since the process began.
    pub succeeded_at: Option<Timestamp>,
    /// Its failures since then.
    pub failing: Option<Failing>,
    /// Its pause, if an operator has paused it.
    pub paused: Option<Pause>,
}

/// Why a handler is paused.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Pause {
    pub since: Timestamp,
    /// Who paused it.
    pub who: String,
    pub reason: String,
}

/// Which handler.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Which {
    /// The handler's name.
    pub name: String,
}

/// Why.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Why {
    /// For the audit log.
    #[schemars(length(min = 1, max = 500))]
    pub reason: String,
}

/// The most characters of a reason.
const MAX_REASON: usize = 500;

/// Whether a request has changed anything.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Changed {
    /// False when the handler was in that state already.
    pub changed: bool,
}

/// Failed attempts without a success between them.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Failing {
    /// When the first of them ended.
    pub since: Timestamp,
    /// How many there were.
    pub attempts: u64,
    /// The last error. Long numbers are masked.
    pub why: String,
}

impl Handler {
    /// The age of the oldest unfinished delivery, in words.
    pub fn oldest(&self) -> String {
        let oldest = SignedDuration::try_from_secs_f64(self.oldest_seconds);
        match self.open {
            0 => String::new(),
            _ => text::duration(oldest.unwrap_or_default()),
        }
    }
}

impl From<&store::Pause> for Pause {
    fn from(pause: &store::Pause) -> Self {
        Self {
            since: pause.since,
            who: pause.who.clone(),
            reason: pause.reason.clone(),
        }
    }
}

impl From<dispatch::Failing> for Failing {
    fn from(failing: dispatch::Failing) -> Self {
        Self {
            since: failing.since,
            attempts: failing.attempts,
            why: mask::text(&failing.why),
        }
    }
}

pub(super) async fn list(context: Context, _: NoParameters) -> Result<Vec<Handler>, Problem> {
    let console = &context.console;
    console.readiness.measure(console.now()).await;
    Ok(all(console))
}

/// Pauses a handler, on every replica and over restarts.
pub(in super::super) async fn pause(
    context: Context,
    which: Which,
    why: Why,
) -> Result<Changed, Problem> {
    set_paused(&context, Action::Pause, which, why).await
}

/// Resumes a handler.
pub(in super::super) async fn resume(
    context: Context,
    which: Which,
    why: Why,
) -> Result<Changed, Problem> {
    set_paused(&context, Action::Resume, which, why).await
}

async fn set_paused(
    context: &Context,
    action: Action,
    Which { name }: Which,
    Why { reason }: Why,
) -> Result<Changed, Problem> {
    let console = &context.console;
    if !(1..=MAX_REASON).contains(&reason.chars().count()) {
        let detail = format!("`reason` has 1 to {MAX_REASON} characters");
        return Err(Problem::invalid(detail));
    }
    if !console.handler_names().contains(&name) {
        return Err(Problem::absent(format!("no handler is called {name:?}")));
    }
    let handler = HandlerName::from(name.as_str());
    let entry = context.entry(action, name, reason);
    let changed = console.ask(move |operator| operator.set_paused(&handler, &entry));
    let changed = changed.await?;
    console.refresh_pauses().await?;
    Ok(Changed { changed })
}

/// The handlers, with the store's gauges as they are.
pub(in super::super) fn all(console: &Console) -> Vec<Handler> {
    let pauses = console.pauses();
    let handlers = console.dispatcher.handlers().into_iter();
    let handlers = handlers.map(|handler| {
        let Attempts {
            succeeded_at,
            failing,
        } = handler.attempts;
        let by = &ByHandler::from(&handler.name);
        let metrics = &console.metrics;
        let count = |gauge: i64| gauge.max(0).cast_unsigned();
        Handler {
            name: handler.name.to_string(),
            kind: handler.kind,
            events: handler
                .settings
                .events
                .iter()
                .map(ToString::to_string)
                .collect(),
            concurrency: handler.settings.concurrency.get(),
            open: count(metrics.open_deliveries.get_or_create(by).get()),
            oldest_seconds: metrics.oldest_open_seconds.get_or_create(by).get(),
            parked: count(metrics.parked_deliveries.get_or_create(by).get()),
            succeeded_at,
            failing: failing.map(Failing::from),
            paused: pauses
                .iter()
                .find(|pause| pause.handler == handler.name)
                .map(Pause::from),
        }
    });
    handlers.collect()
}
