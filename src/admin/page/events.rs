//! `/events`: the list with its filters, and `/events/{id}`: one event with what became of it.

use askama::Template;
use serde::Deserialize;

use super::{ApiContext, Frame, Problem, Show, filters};
use crate::{
    admin::{
        access::Role,
        api::events::{self, Delivery, Event, Filter, Page, State, Which},
    },
    event::{EventId, event_names},
};

#[derive(Template)]
#[template(path = "events.html", config = "src/admin/page/askama.toml")]
pub(super) struct Events {
    frame: Frame,
    filter: Filter,
    is_filtered: bool,
    page: Page,
    /// The query of the next page.
    older: Option<String>,
    names: Vec<String>,
    endpoints: Vec<String>,
    handlers: Vec<String>,
    states: &'static [(State, &'static str)],
}

/// The states of the filter, as its parameter has them.
const STATES: &[(State, &str)] = &[
    (State::Open, "open"),
    (State::Parked, "parked"),
    (State::Done, "done"),
    (State::Skipped, "skipped"),
];

pub(super) async fn list(context: ApiContext, filter: Filter) -> Result<Show<Events>, Problem> {
    // The field at the top of each page takes an id, too.
    if let Some(Ok(id)) = filter.about.as_deref().map(str::parse::<EventId>) {
        return Ok(Show::Elsewhere(format!("/events/{id}")));
    }
    let console = &context.console;
    let page = events::list(context.clone(), filter.clone()).await?;
    let older = page.next.clone().map(|next| Filter {
        before: Some(next),
        ..filter.clone()
    });
    let query = |filter: &Filter| serde_urlencoded::to_string(filter).unwrap_or_default();
    let title = match &filter.about {
        Some(about) => format!("Events about {about}"),
        None => "Events".to_owned(),
    };
    Ok(Show::Page(Events {
        frame: Frame::new(title, "/events", Some(&context.caller)),
        is_filtered: !query(&filter).is_empty(),
        older: older.as_ref().map(query),
        names: event_names().map(|name| name.to_string()).collect(),
        endpoints: console
            .webhook
            .endpoints()
            .into_iter()
            .map(|known| known.name.to_string())
            .collect(),
        handlers: console.handler_names(),
        states: STATES,
        filter,
        page,
    }))
}

#[derive(Template)]
#[template(path = "event.html", config = "src/admin/page/askama.toml")]
pub(super) struct OneEvent {
    frame: Frame,
    event: Event,
    /// The body as its family reads it, indented.
    typed: Option<String>,
    is_unmasked: bool,
    may_unmask: bool,
    /// Where the API is, as the page's address has it.
    origin: String,
}

/// The parameters besides the id.
#[derive(Deserialize)]
pub(super) struct View {
    id: String,
    #[serde(default)]
    unmasked: bool,
}

pub(super) async fn show(context: ApiContext, view: View) -> Result<Show<OneEvent>, Problem> {
    let View { id, unmasked } = view;
    let which = Which { id, unmasked };
    let event = events::show(context.clone(), which).await?;
    let typed = event.typed.as_ref().map(serde_json::to_string_pretty);
    Ok(Show::Page(OneEvent {
        frame: Frame::new(
            format!("Event {}", event.id),
            "/events",
            Some(&context.caller),
        ),
        typed: typed.and_then(Result::ok),
        is_unmasked: unmasked,
        may_unmask: context.caller.may(Role::Raw),
        origin: context.origin.clone(),
        event,
    }))
}

impl Delivery {
    /// The class of the state's color.
    fn tone(&self) -> &'static str {
        match self.state {
            "done" | "skipped" => "ok",
            "parked" => "critical",
            _ => "warning",
        }
    }

    /// How it stands, in words.
    fn now(&self) -> String {
        let Self {
            attempts,
            due_at,
            why,
            replay,
            ..
        } = self;
        let why = why.as_deref().unwrap_or("no reason is on record");
        let now = match (self.state, due_at) {
            ("done", _) => format!("delivered with attempt {attempts}"),
            ("skipped", _) => format!("skipped: {why}"),
            ("parked", _) => format!("parked after {attempts} attempts: {why}"),
            ("queued", _) => "waits, since both are about the same number, for".to_owned(),
            (_, Some(due_at)) => format!("the next attempt is due at {due_at:.0}"),
            (state, None) => state.to_owned(),
        };
        match replay {
            Some(reason) => format!("{now} (replayed: {reason})"),
            None => now,
        }
    }
}
