//! Floor 1: what was said. Pure data: the typed shape of each event family, and the facts
//! (name, key, subject, time) that the floors above need of one.
//!
//! **Invariant:** nothing here does I/O, reads a clock, or knows who asked.
//!
//! **Invariant:** reading never refuses. A body that no family claims is `<provider>.unrecognized`;
//! a body that its own family cannot read is `<family>.unreadable`; a change that its family does
//! not know is `<family>.unrecognized`.
//!
//! # How to add a family
//!
//! Write one file beside [`ringcentral::phone_number`], implement [`EventFamily`] for its `Event`, add
//! one line to the provider's `FAMILIES`, and put at least six hand-written bodies into
//! `fixtures/<provider>/<family>/`.

mod e164;
mod envelope;
mod given;
mod json;
mod list;
mod name;
mod notification;
mod open_enum;
mod ordering;
mod pattern;
mod text;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use jiff::Timestamp;
use schemars::{JsonSchema, Schema};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::error::Category;

pub use e164::E164;
pub use given::Given;
pub use name::{DedupeKey, EndpointName, EventId, EventName, HandlerName, Key, Topic};
pub use notification::Notification;
pub use ordering::{KeyHash, OrderingKeys, key_hash};
pub use pattern::Pattern;
pub use text::Text;

use crate::entries::entries;

/// A group of events with one typed shape.
///
/// The type is lenient: it reads every body that the provider has been seen or documented to send,
/// and keeps what it does not understand.
pub trait EventFamily: DeserializeOwned + Serialize + JsonSchema + Send + Sync + 'static {
    /// `<provider>.<family>`, the one string that names it in TOML, fixtures, metrics and logs.
    const NAME: &'static str;

    /// Every change that an event of this family can report: the last part of its event name.
    const CHANGES: &'static [&'static str];

    /// One event of this family, as the provider would send it.
    const EXAMPLE: &'static str;

    /// Whether the envelope's own `event` field belongs to this family.
    fn claims(event: &str) -> bool;

    /// Which of [`CHANGES`](Self::CHANGES) this event reports; `None` for one that the provider
    /// added since.
    fn change(&self) -> Option<&'static str>;

    /// The partition key: the one key that brokers get.
    fn key(&self) -> Option<Key>;

    /// The ordering keys of an event, of which `key` is known as its partition key: all keys of that
    /// unless the family says otherwise. Told from the body, so that one which the model cannot read
    /// keeps its place as well, as far as the body tells it. `None` where nothing does: no order
    /// holds.
    fn ordering_keys(key: Option<&Key>, body: &[u8]) -> Option<OrderingKeys> {
        let _ = body;
        whole(key)
    }

    /// The same of an event that was read.
    fn own_ordering_keys(&self) -> Option<OrderingKeys> {
        whole(self.key().as_ref())
    }

    /// The thing the event is about, as a reader would name it: an E.164 number, an extension id.
    fn subject(&self) -> Option<String>;

    /// When the provider says that it happened.
    fn occurred_at(&self) -> Option<Timestamp>;

    /// What a newer event would replace, given the event's own key and change: an event without
    /// either replaces nothing and is not asked. An event is superseded when each of its topics has
    /// been reported again with a later provider time; one with no topics never is.
    fn topics(&self, key: &Key, change: &'static str) -> Vec<Topic>;
}

/// An [`EventFamily`] with its type erased: one line of its provider's `FAMILIES`.
#[derive(Debug)]
pub struct Family {
    /// [`EventFamily::NAME`].
    pub name: &'static str,
    /// [`EventFamily::CHANGES`].
    pub changes: &'static [&'static str],
    /// [`EventFamily::EXAMPLE`].
    #[cfg(test)]
    pub example: &'static str,
    claims: fn(&str) -> bool,
    ordering_keys: fn(Option<&Key>, &[u8]) -> Option<OrderingKeys>,
    facts: fn(&[u8]) -> Result<Facts, Unreadable>,
    value: fn(&[u8]) -> Result<serde_json::Value, Unreadable>,
    schema: fn() -> Schema,
}

entries! {
    /// The families of each provider. Order does not matter: no two claim the same event.
    const FAMILIES: [&[Family] = FAMILIES];

    pub mod ringcentral;
    pub mod zoom;
}

/// Every family.
pub fn families() -> impl Iterator<Item = &'static Family> + Clone {
    FAMILIES.iter().copied().flatten()
}

/// What the floors above need to know of an event, whatever its family.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// See [`EventFamily::change`].
    pub change: Option<&'static str>,
    /// See [`EventFamily::key`].
    pub key: Option<Key>,
    /// See [`EventFamily::ordering_keys`].
    pub ordering_keys: Option<OrderingKeys>,
    /// See [`EventFamily::subject`].
    pub subject: Option<String>,
    /// See [`EventFamily::occurred_at`].
    pub occurred_at: Option<Timestamp>,
    /// See [`EventFamily::topics`].
    pub topics: Vec<Topic>,
}

impl Facts {
    fn of<F: EventFamily>(event: &F) -> Self {
        let (change, key) = (event.change(), event.key());
        let topics = match (&key, change) {
            (Some(key), Some(change)) => event.topics(key, change),
            _ => Vec::new(),
        };
        Self {
            change,
            key,
            ordering_keys: event.own_ordering_keys(),
            subject: event.subject(),
            occurred_at: event.occurred_at(),
            topics,
        }
    }
}

/// A body that its family's model cannot read. Says what is wrong and where, and nothing of what
/// the body holds.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a readable {family} event: {problem} at line {line}, column {column}; the body is kept \
     as it came"
)]
pub struct Unreadable {
    family: &'static str,
    problem: Problem,
    line: usize,
    column: usize,
}

/// What is wrong with a body.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("it is not JSON")]
    Syntax,
    #[error("it ends too soon")]
    End,
    /// The text names a member of the model, not of the body.
    #[error("{0}")]
    Missing(String),
    #[error("a member is of another type")]
    Shape,
}

impl Unreadable {
    /// Takes over what may be told of `error`. Its own text is left behind, since it quotes values
    /// from the body: addresses and phone numbers.
    fn new(family: &'static str, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let problem = match error.classify() {
            Category::Io | Category::Syntax => Problem::Syntax,
            Category::Eof => Problem::End,
            Category::Data => match text.split_once(" at line ") {
                Some((text, _)) if text.starts_with("missing field `") => {
                    Problem::Missing(text.to_owned())
                }
                _ => Problem::Shape,
            },
        };
        Self {
            family,
            problem,
            line: error.line(),
            column: error.column(),
        }
    }
}

/// The verdict of [`recognize`] on one authentic body.
#[derive(Debug)]
pub struct Recognized {
    /// The event name.
    pub name: EventName,
    /// What is known of it; but for ordering keys empty for a body that could not be read.
    pub facts: Facts,
    /// Why it could not be read, where it could not.
    #[cfg_attr(
        not(test),
        expect(
            dead_code,
            reason = "a typed handler reads the body again, and parks with the reason"
        )
    )]
    pub unreadable: Option<Unreadable>,
}

/// Names an authentic body of `provider` and collects its facts. Never fails: see the module's
/// second invariant.
pub fn recognize(provider: &str, body: &[u8]) -> Recognized {
    // Whatever a family can read is sound as an envelope too, and need not be read as one first.
    envelope::first_event(body)
        .and_then(|event| Family::claiming(provider, &event))
        .and_then(|family| Some(family.recognized((family.facts)(body).ok()?)))
        .unwrap_or_else(|| examine(provider, body))
}

/// What [`recognize`] says, found out the long way: what nobody can read is told apart.
fn examine(provider: &str, body: &[u8]) -> Recognized {
    let family = envelope::event(body).and_then(|event| Family::claiming(provider, &event));
    let Some(family) = family else {
        return Recognized {
            name: EventName::of(&[provider, ".", UNRECOGNIZED]),
            facts: Facts::default(),
            unreadable: None,
        };
    };
    match (family.facts)(body) {
        Ok(facts) => family.recognized(facts),
        Err(unreadable) => Recognized {
            name: family.event_name(UNREADABLE),
            facts: Facts {
                ordering_keys: (family.ordering_keys)(None, body),
                ..Facts::default()
            },
            unreadable: Some(unreadable),
        },
    }
}

/// The ordering keys of an event that was named `name`, with `key` for its partition key; `None` where
/// no order holds.
pub fn ordering_keys(name: &EventName, key: Option<&Key>, body: &[u8]) -> Option<OrderingKeys> {
    match Family::naming(name) {
        Some(family) => (family.ordering_keys)(key, body),
        None => whole(key),
    }
}

/// All keys of the scope that a partition key is.
fn whole(key: Option<&Key>) -> Option<OrderingKeys> {
    let scope = key_hash(&[key?.as_str()]);
    Some(OrderingKeys::whole(scope))
}

/// Reads `body` as an event of family `F`.
///
/// # Errors
///
/// When the body is not JSON, or not of the family's shape.
pub fn decode<F: EventFamily>(body: &[u8]) -> Result<F, Unreadable> {
    json::read(body).map_err(|error| Unreadable::new(F::NAME, &error))
}

/// The last part of the name of an event that nobody claims, or that reports an unknown change.
pub const UNRECOGNIZED: &str = "unrecognized";

/// The last part of the name of an event that its own family could not read.
pub const UNREADABLE: &str = "unreadable";

impl Family {
    const fn of<F: EventFamily>() -> Self {
        Self {
            name: F::NAME,
            changes: F::CHANGES,
            #[cfg(test)]
            example: F::EXAMPLE,
            claims: F::claims,
            ordering_keys: F::ordering_keys,
            facts: |body| {
                let event = decode::<F>(body)?;
                Ok(Facts::of(&event))
            },
            value: |body| {
                serde_json::to_value(decode::<F>(body)?)
                    .map_err(|error| Unreadable::new(F::NAME, &error))
            },
            schema: || {
                let mut schema = schemars::schema_for!(F);
                schema.insert("title".to_owned(), F::NAME.into());
                schema
            },
        }
    }

    /// The family called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        families().find(|family| family.name == name)
    }

    /// The family that events called `name` are of.
    pub fn naming(name: &EventName) -> Option<&'static Self> {
        let (family, _) = name.as_str().rsplit_once('.')?;
        Self::named(family)
    }

    /// The family of `provider` that `event` belongs to.
    fn claiming(provider: &str, event: &str) -> Option<&'static Self> {
        let is_sent_by = |family: &Self| {
            let rest = family.name.strip_prefix(provider);
            rest.is_some_and(|rest| rest.starts_with('.'))
        };
        families().find(|family| is_sent_by(family) && (family.claims)(event))
    }

    /// The verdict on a body of this family that could be read.
    fn recognized(&'static self, facts: Facts) -> Recognized {
        Recognized {
            name: self.event_name(facts.change.unwrap_or(UNRECOGNIZED)),
            facts,
            unreadable: None,
        }
    }

    /// The provider that sends this family: the first part of its name.
    pub fn provider(&self) -> &'static str {
        self.name
            .split_once('.')
            .map_or(self.name, |(provider, _)| provider)
    }

    /// The family's own part of its name: `phone-number`.
    #[cfg(test)]
    pub fn short_name(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(_, family)| family)
    }

    /// The event name for `change`.
    pub fn event_name(&self, change: &str) -> EventName {
        EventName::of(&[self.name, ".", change])
    }

    /// Every name that an event of this family can have.
    pub fn event_names(&self) -> impl Iterator<Item = EventName> {
        self.changes
            .iter()
            .copied()
            .chain([UNRECOGNIZED, UNREADABLE])
            .map(|change| self.event_name(change))
    }

    /// Collects the facts of `body`.
    ///
    /// # Errors
    ///
    /// When the model cannot read it.
    #[cfg(test)]
    pub fn facts(&self, body: &[u8]) -> Result<Facts, Unreadable> {
        (self.facts)(body)
    }

    /// The typed value of `body`, written back as JSON: what the model understood of it.
    ///
    /// # Errors
    ///
    /// When the model cannot read it.
    pub fn value(&self, body: &[u8]) -> Result<serde_json::Value, Unreadable> {
        (self.value)(body)
    }

    /// The JSON Schema of the family's model.
    pub fn schema(&self) -> Schema {
        (self.schema)()
    }
}

/// Every event name that can occur: what a handler's patterns are checked against.
pub fn event_names() -> Vec<EventName> {
    let mut names: Vec<_> = families().flat_map(Family::event_names).collect();
    let providers: BTreeSet<_> = families().map(Family::provider).collect();
    names.extend(
        providers
            .iter()
            .map(|provider| EventName::new(format!("{provider}.{UNRECOGNIZED}"))),
    );
    names
}
