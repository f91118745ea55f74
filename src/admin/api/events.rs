//! `/events`: the stored events, and what became of each.

use axum::response::{IntoResponse, Response};
use http::header;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::Value;

use super::{Context, Problem};
use crate::{
    admin::{
        access::{Denied, Role},
        mask,
    },
    event::{EndpointName, EventId, Family, HandlerName, Key, Notification, Pattern},
    quantity::moment,
    store::{Action, DeliveryDetails, DeliveryState, EventDetails, EventFilter, EventSummary},
};

/// Which events to list. All conditions must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in super::super) struct Filter {
    /// A phone number, an extension id, or an extension number.
    #[serde(
        deserialize_with = "unless_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = 256))]
    pub about: Option<String>,
    /// An event name; `*` stands for any characters.
    #[serde(
        deserialize_with = "unless_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = 256))]
    pub name: Option<String>,
    /// The endpoint that received the event.
    #[serde(
        deserialize_with = "unless_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = 256))]
    pub endpoint: Option<String>,
    /// A handler that has a delivery of the event. `state` and `why` are about that delivery then.
    #[serde(
        deserialize_with = "unless_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = 256))]
    pub handler: Option<String>,
    /// The state of a delivery.
    #[serde(
        deserialize_with = "state_unless_empty",
        skip_serializing_if = "Option::is_none"
    )]
    pub state: Option<State>,
    /// A part of the reason why a delivery failed, was parked or was skipped.
    #[serde(
        deserialize_with = "unless_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = 256))]
    pub why: Option<String>,
    /// The partition key.
    #[serde(
        deserialize_with = "unless_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = 256))]
    pub key: Option<String>,
    /// Only events received at or after this time, or within this age: `2h`.
    #[serde(
        deserialize_with = "unless_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(regex(pattern = moment::PATTERN))]
    pub since: Option<String>,
    /// Only events received before this time, or before this age.
    #[serde(
        deserialize_with = "unless_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(regex(pattern = moment::PATTERN))]
    pub until: Option<String>,
    /// The `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<uuid_schema::Uuid>")]
    pub before: Option<String>,
    /// The most events of a page.
    #[schemars(range(min = 1, max = 200))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The states of deliveries that a filter tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(in super::super) enum State {
    Open,
    Parked,
    Done,
    Skipped,
}

/// The most lines of a page, and how many it has by default.
const MAX_LIMIT: usize = 200;
const DEFAULT_LIMIT: usize = 50;

/// One page of events, newest first.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Page {
    /// The events. There may be fewer than the limit, or none, though older ones match.
    pub events: Vec<Line>,
    /// The `before` of the next page; null when there is nothing older.
    pub next: Option<String>,
    /// Where the next page goes on: the time of `next`.
    pub searched_back_to: Option<Timestamp>,
    /// In a list by number or by key: matching events from before this time may be missing, since
    /// they are not indexed yet.
    pub incomplete_before: Option<Timestamp>,
}

/// One event, without its body. Numbers are masked.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Line {
    pub id: String,
    pub name: String,
    pub endpoint: String,
    /// The partition key.
    pub key: Option<String>,
    /// The numbers and extensions that it is about.
    pub subjects: Vec<String>,
    /// When it occurred, by the provider.
    pub occurred_at: Option<Timestamp>,
    pub received_at: Timestamp,
    /// Unfinished deliveries.
    pub open: u64,
    /// Parked deliveries.
    pub parked: u64,
}

/// One event with its deliveries. Numbers, names and addresses are masked, unless the request asks for
/// them and its token has the role `raw`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Event {
    pub id: String,
    pub name: String,
    /// The family whose schema `typed` has.
    pub family: Option<&'static str>,
    pub endpoint: String,
    pub key: Option<String>,
    pub subjects: Vec<String>,
    pub occurred_at: Option<Timestamp>,
    pub received_at: Timestamp,
    /// The size of the body, in bytes.
    pub body_bytes: usize,
    /// The body as its family reads it.
    pub typed: Option<Value>,
    /// Why its family cannot read it.
    pub problem: Option<String>,
    pub deliveries: Vec<Delivery>,
}

/// What became of an event at one handler.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Delivery {
    pub handler: String,
    /// `ready`, `queued`, `parked`, `done` or `skipped`.
    pub state: &'static str,
    /// The event whose delivery this one waits for, since both are about the same number.
    pub waits_for: Option<String>,
    /// Attempts that ended.
    pub attempts: u32,
    /// When the next attempt is due.
    pub due_at: Option<Timestamp>,
    /// Why it was replayed.
    pub replay: Option<String>,
    /// Why it is parked, or was skipped.
    pub why: Option<String>,
    /// The failed attempts, oldest first.
    pub failures: Vec<Attempt>,
}

/// A failed attempt.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Attempt {
    pub started_at: Timestamp,
    pub took_ms: u64,
    pub why: String,
}

/// Which event.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Which {
    /// The event's id.
    #[schemars(with = "uuid_schema::Uuid")]
    pub id: String,
    /// Shows numbers, names and addresses. Takes the role `raw`.
    #[serde(default)]
    pub unmasked: bool,
}

/// Which body.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct WhichBody {
    /// The event's id.
    #[schemars(with = "uuid_schema::Uuid")]
    pub id: String,
}

/// The number of lines of a page, of `asked` ones.
pub(super) fn limit(asked: Option<usize>) -> Result<usize, Problem> {
    match asked.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit),
        _ => Err(Problem::invalid(format!("`limit` is 1 to {MAX_LIMIT}"))),
    }
}

/// One page of events.
pub(in super::super) async fn list(context: Context, filter: Filter) -> Result<Page, Problem> {
    let filter = filter.for_store(context.console.now())?;
    let listed = context
        .console
        .ask(move |operator| operator.events(&filter))
        .await?;
    Ok(Page {
        searched_back_to: listed.next.map(|id| id.time()),
        next: listed.next.map(|id| id.to_string()),
        events: listed.events.into_iter().map(Line::from).collect(),
        incomplete_before: listed.incomplete_before,
    })
}

/// One event.
pub(in super::super) async fn show(context: Context, which: Which) -> Result<Event, Problem> {
    if which.unmasked && !context.caller.may(Role::Raw) {
        return Err(Denied::Role(Role::Raw).into());
    }
    let details = find(&context, &which.id).await?;
    if which.unmasked {
        record(&context, Action::Unmask, &which.id).await?;
    }
    Ok(Event::new(details, which.unmasked))
}

/// The body of an event, byte for byte.
pub(super) async fn body(context: Context, which: WhichBody) -> Result<Response, Problem> {
    let details = find(&context, &which.id).await?;
    record(&context, Action::ReadBody, &which.id).await?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((headers, details.notification.body).into_response())
}

/// Records that the caller has looked at what identifies people.
async fn record(context: &Context, action: Action, id: &str) -> Result<(), Problem> {
    let entry = context.entry(action, id.to_owned(), String::new());
    let recorded = context.console.ask(move |operator| operator.record(&entry));
    Ok(recorded.await?)
}

async fn find(context: &Context, id: &str) -> Result<EventDetails, Problem> {
    let id: EventId = id.parse().map_err(|_| Problem::absent("an id is a UUID"))?;
    let found = context
        .console
        .ask(move |operator| operator.event(id))
        .await?;
    found.ok_or_else(|| Problem::absent("no event has this id, or retention has deleted it"))
}

impl Filter {
    /// The filter as the store has it, at `now`.
    fn for_store(self, now: Timestamp) -> Result<EventFilter, Problem> {
        let time = |text: Option<String>| {
            let time = text.map(|text| moment::parse(&text, now)).transpose();
            time.map_err(Problem::invalid)
        };
        let name = self.name.as_deref().map(Pattern::new).transpose();
        let before = self.before.map(|id| id.parse()).transpose();
        Ok(EventFilter {
            name: name.map_err(|error| Problem::absent(error.to_string()))?,
            since: time(self.since)?,
            until: time(self.until)?,
            key: self.key.as_deref().map(Key::from),
            about: self.about,
            endpoint: self.endpoint.as_deref().map(EndpointName::from),
            handler: self.handler.as_deref().map(HandlerName::from),
            state: self.state.map(DeliveryState::from),
            why: self.why,
            before: before.map_err(|_| Problem::invalid("`before` is the `next` of a page"))?,
            after: None,
            limit: limit(self.limit)?,
        })
    }
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

impl From<EventSummary> for Line {
    fn from(event: EventSummary) -> Self {
        Self {
            id: event.id.to_string(),
            name: event.name.to_string(),
            endpoint: event.endpoint.to_string(),
            key: event.key.map(|key| mask::text(key.as_str())),
            subjects: event
                .subjects
                .iter()
                .map(|subject| mask::text(subject))
                .collect(),
            occurred_at: event.occurred_at,
            received_at: event.received_at,
            open: event.open,
            parked: event.parked,
        }
    }
}

impl Event {
    fn new(details: EventDetails, is_unmasked: bool) -> Self {
        let EventDetails {
            notification: event,
            deliveries,
        } = details;
        let shown = |text: &str| match is_unmasked {
            true => text.to_owned(),
            false => mask::text(text),
        };
        let family = Family::of_event(&event.name);
        let (typed, problem) = match family.map(|family| family.value(&event.body)) {
            Some(Ok(value)) => (Some(value), None),
            Some(Err(problem)) => (None, Some(problem.to_string())),
            None => (None, Some("no family claims this event".to_owned())),
        };
        let typed = typed.map(|mut value| {
            if !is_unmasked {
                mask::json(&mut value);
            }
            value
        });
        let Notification {
            id,
            name,
            endpoint,
            key,
            subjects,
            ..
        } = &event;
        Self {
            id: id.to_string(),
            name: name.to_string(),
            family: family.map(|family| family.name),
            endpoint: endpoint.to_string(),
            key: key.as_ref().map(|key| shown(key.as_str())),
            subjects: subjects.iter().map(|subject| shown(subject)).collect(),
            occurred_at: event.occurred_at,
            received_at: event.received_at,
            body_bytes: event.body.len(),
            typed,
            problem,
            deliveries: deliveries.into_iter().map(Delivery::from).collect(),
        }
    }
}

/// The name of `state`.
const fn name(state: DeliveryState) -> &'static str {
    match state {
        DeliveryState::Ready => "ready",
        DeliveryState::Queued => "queued",
        DeliveryState::Parked => "parked",
        DeliveryState::Done => "done",
        DeliveryState::Skipped => "skipped",
    }
}

impl From<DeliveryDetails> for Delivery {
    fn from(delivery: DeliveryDetails) -> Self {
        let masked = |text: String| mask::text(&text);
        let failures = delivery.failures.into_iter().map(|failure| Attempt {
            started_at: failure.started_at,
            took_ms: failure.took_ms,
            why: mask::text(&failure.why),
        });
        Self {
            handler: delivery.handler.to_string(),
            state: name(delivery.state),
            waits_for: delivery.waits_for.map(|id| id.to_string()),
            attempts: delivery.attempts,
            due_at: delivery.due_at,
            replay: delivery.replay,
            why: delivery.why.map(masked),
            failures: failures.collect(),
        }
    }
}

/// The most characters of a text.
const MAX_TEXT: usize = 256;

/// A text; an empty one, as forms send it, stands for nothing.
pub(super) fn unless_empty<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    if text
        .as_ref()
        .is_some_and(|text| text.chars().count() > MAX_TEXT)
    {
        return Err(D::Error::custom(format!(
            "a text has at most {MAX_TEXT} characters"
        )));
    }
    Ok(text
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty()))
}

fn state_unless_empty<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<State>, D::Error> {
    let text = unless_empty(deserializer)?;
    let state =
        text.map(|text| State::deserialize(serde::de::value::StringDeserializer::new(text)));
    state.transpose()
}

/// The schema of an event's id.
mod uuid_schema {
    use std::borrow::Cow;

    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

    pub(super) struct Uuid;

    impl JsonSchema for Uuid {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            "Uuid".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({ "type": "string", "format": "uuid" })
        }
    }
}
