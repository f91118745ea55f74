//! Floor 1: parses events. Pure data: the typed shape of each event family, and the facts of an event
//! (its name, its keys, its subject, its time) that the floors above need.
//!
//! **Invariant:** this floor does no I/O, reads no clock, and does not know its caller.
//!
//! **Invariant:** every body has a name. A body that no family claims is `<provider>.unrecognized`. A
//! body that its family cannot read is `<family>.unreadable`. A change that its family does not know is
//! `<family>.unrecognized`.
//!
//! # How to add a family
//!
//! Write one file beside [`ringcentral::phone_number`], implement [`EventFamily`] for its `Event`, add
//! one line to the provider's `FAMILIES`, and put at least six hand-written bodies into
//! `fixtures/<provider>/<family>/`.

mod distinct;
mod e164;
mod envelope;
mod json;
mod lenient_string;
mod name;
mod notification;
mod one_or_many;
mod open_enum;
mod ordering;
mod pattern;
mod subject;
mod tri_state;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::error::Category;

pub use e164::E164;
pub use lenient_string::LenientString;
pub use name::{DedupeKey, EndpointName, EventId, EventName, HandlerName, Key, Topic};
pub use notification::Notification;
pub use ordering::{KeyHash, OrderingKeys, key_hash};
pub use pattern::{Pattern, TenseGap, tense_gaps};
pub use subject::{meant_by, normal_form};
pub use tri_state::TriState;

use crate::entries::entries;

/// A group of events with one typed shape.
///
/// The type is lenient: it reads every body that the provider is known or documented to send, and keeps
/// the members that it does not know.
pub trait EventFamily: DeserializeOwned + Serialize + JsonSchema + Send + Sync + 'static {
    /// `<provider>.<family>`: the name in TOML, fixtures, metrics and logs.
    const NAME: &'static str;

    /// Every change that an event of this family can report, with its meaning in a sentence. A change is
    /// the last part of an event name.
    const CHANGES: &'static [(&'static str, &'static str)];

    /// An event of this family, as the provider would send it.
    const EXAMPLE: &'static str;

    /// Whether an `event` member of this value belongs to this family.
    fn claims(event: &str) -> bool;

    /// Which of [`CHANGES`](Self::CHANGES) this event reports; `None` for a change that the family does not
    /// know.
    fn change(&self) -> Option<&'static str>;

    /// The partition key: the one key that brokers get. It starts with the family's name.
    fn key(&self) -> Option<Key>;

    /// The ordering keys; `None` for an event without order. By default they are all keys of the scope that
    /// the partition key names.
    fn ordering_keys(&self) -> Option<OrderingKeys> {
        all_keys_of(self.key().as_ref())
    }

    /// The ordering keys of the event in `body`, whose partition key is `key`. The same as
    /// [`ordering_keys`](Self::ordering_keys) of a body that the family can read. A body that it cannot
    /// read keeps its order too, as far as its keys can be found.
    fn ordering_keys_of(key: Option<&Key>, body: &[u8]) -> Option<OrderingKeys> {
        let _ = body;
        all_keys_of(key)
    }

    /// What the event is about, as an operator would name it, each once: E.164 numbers, extension ids. The
    /// first one is the CloudEvents attribute `subject`. An operator finds the event by any of them.
    fn subjects(&self) -> Vec<String>;

    /// The time of the event, by the provider's clock.
    fn occurred_at(&self) -> Option<Timestamp>;

    /// What a newer event would replace. An event is superseded when each of its topics has been reported
    /// again with a later provider time; an event without topics never is. `key` and `change` are the
    /// event's own: an event without one of them has no topics.
    fn topics(&self, key: &Key, change: &'static str) -> Vec<Topic>;
}

/// An [`EventFamily`] with its type erased: one line of its provider's `FAMILIES`.
#[derive(Debug)]
pub struct Family {
    /// [`EventFamily::NAME`].
    pub name: &'static str,
    /// [`EventFamily::CHANGES`].
    pub changes: &'static [(&'static str, &'static str)],
    /// [`EventFamily::EXAMPLE`].
    #[cfg(test)]
    pub example: &'static str,
    claims: fn(&str) -> bool,
    ordering_keys_of: fn(Option<&Key>, &[u8]) -> Option<OrderingKeys>,
    facts: fn(&[u8]) -> Result<Facts, Unreadable>,
    value: fn(&[u8]) -> Result<serde_json::Value, Unreadable>,
    schema: fn() -> Schema,
    subschema: fn(&mut SchemaGenerator) -> Schema,
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

/// What the floors above need of an event, whatever its family.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// See [`EventFamily::change`].
    pub change: Option<&'static str>,
    /// See [`EventFamily::key`].
    pub key: Option<Key>,
    /// See [`EventFamily::ordering_keys`].
    pub ordering_keys: Option<OrderingKeys>,
    /// See [`EventFamily::subjects`].
    pub subjects: Vec<String>,
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
            ordering_keys: event.ordering_keys(),
            subjects: event.subjects(),
            occurred_at: event.occurred_at(),
            topics,
        }
    }
}

/// A body that its family cannot read. The text says what is wrong and where, and quotes nothing of the
/// body.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a readable {family} event: {defect} at line {line}, column {column}; the body is kept \
     as it came"
)]
pub struct Unreadable {
    family: &'static str,
    defect: Defect,
    line: usize,
    column: usize,
}

/// What is wrong with a body.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Defect {
    #[error("it is not JSON")]
    Syntax,
    #[error("it ends too soon")]
    End,
    /// The text names a member of the type, not of the body.
    #[error("{0}")]
    Missing(String),
    #[error("a member is of another type")]
    Shape,
}

impl Unreadable {
    /// Keeps what may be logged of `error`. Its text may not: it quotes values of the body, such as
    /// addresses and phone numbers.
    fn new(family: &'static str, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let defect = match error.classify() {
            Category::Io | Category::Syntax => Defect::Syntax,
            Category::Eof => Defect::End,
            Category::Data => match text.split_once(" at line ") {
                Some((text, _)) if text.starts_with("missing field `") => {
                    Defect::Missing(text.to_owned())
                }
                _ => Defect::Shape,
            },
        };
        Self {
            family,
            defect,
            line: error.line(),
            column: error.column(),
        }
    }
}

/// What [`recognize`] finds out about an authentic body.
#[derive(Debug)]
pub struct Recognized {
    /// The event name.
    pub name: EventName,
    /// The facts. A body that could not be read has at most ordering keys.
    pub facts: Facts,
    /// Why the body could not be read.
    #[cfg_attr(
        not(test),
        expect(
            dead_code,
            reason = "a typed handler reads the body again, and parks with the reason"
        )
    )]
    pub unreadable: Option<Unreadable>,
}

/// Names an authentic body of `provider` and collects its facts.
pub fn recognize(provider: &str, body: &[u8]) -> Recognized {
    // A body that a family can read is also an envelope, so the envelope is not parsed first.
    envelope::first_event(body)
        .and_then(|event| Family::claiming(provider, &event))
        .and_then(|family| Some(family.recognized((family.facts)(body).ok()?)))
        .unwrap_or_else(|| recognize_slowly(provider, body))
}

/// The same as [`recognize`], with the envelope parsed first: it tells a body that no family claims from a
/// body that its family cannot read.
fn recognize_slowly(provider: &str, body: &[u8]) -> Recognized {
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
                ordering_keys: (family.ordering_keys_of)(None, body),
                ..Facts::default()
            },
            unreadable: Some(unreadable),
        },
    }
}

/// The ordering keys of the event in `body`, with its name and its partition key; `None` for an event
/// without order.
pub fn ordering_keys(name: &EventName, key: Option<&Key>, body: &[u8]) -> Option<OrderingKeys> {
    match Family::of_event(name) {
        Some(family) => (family.ordering_keys_of)(key, body),
        None => all_keys_of(key),
    }
}

/// The subjects of the event in `body`; `None` if its family cannot read it.
fn subjects_of(name: &EventName, body: &[u8]) -> Option<Vec<String>> {
    let facts = (Family::of_event(name)?.facts)(body).ok()?;
    Some(facts.subjects)
}

/// All keys of the scope that `key` names.
fn all_keys_of(key: Option<&Key>) -> Option<OrderingKeys> {
    let scope = key_hash(&[key?.as_str()]);
    Some(OrderingKeys::whole(scope))
}

/// Reads `body` as an event of family `F`.
///
/// # Errors
///
/// When the body is not JSON, or not of the family's type.
pub fn decode<F: EventFamily>(body: &[u8]) -> Result<F, Unreadable> {
    json::read(body).map_err(|error| Unreadable::new(F::NAME, &error))
}

/// The last part of the name of an event that no family claims, or whose change is not known.
pub const UNRECOGNIZED: &str = "unrecognized";

/// The last part of the name of an event that its family cannot read.
pub const UNREADABLE: &str = "unreadable";

impl Family {
    const fn of<F: EventFamily>() -> Self {
        Self {
            name: F::NAME,
            changes: F::CHANGES,
            #[cfg(test)]
            example: F::EXAMPLE,
            claims: F::claims,
            ordering_keys_of: F::ordering_keys_of,
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
            subschema: SchemaGenerator::subschema_for::<F>,
        }
    }

    /// The family called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        families().find(|family| family.name == name)
    }

    /// The family of the events called `name`.
    pub fn of_event(name: &EventName) -> Option<&'static Self> {
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

    /// What is found out about a body of this family that could be read.
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

    /// Every event name of this family, with its meaning.
    fn event_names(&self) -> impl Iterator<Item = (EventName, &'static str)> {
        let others = [
            (
                UNRECOGNIZED,
                "An event of this family reports a change that hookswitch does not know.",
            ),
            (
                UNREADABLE,
                "An event of this family has a body that hookswitch cannot read.",
            ),
        ];
        let changes = self.changes.iter().copied().chain(others);
        changes.map(|(change, meaning)| (self.event_name(change), meaning))
    }

    /// Collects the facts of `body`.
    ///
    /// # Errors
    ///
    /// When the family cannot read it.
    #[cfg(test)]
    pub fn facts(&self, body: &[u8]) -> Result<Facts, Unreadable> {
        (self.facts)(body)
    }

    /// The typed value of `body`, written back as JSON.
    ///
    /// # Errors
    ///
    /// When the family cannot read it.
    pub fn value(&self, body: &[u8]) -> Result<serde_json::Value, Unreadable> {
        (self.value)(body)
    }

    /// The JSON Schema of the family's type.
    pub fn schema(&self) -> Schema {
        (self.schema)()
    }

    /// The same as a part of a larger schema.
    pub fn subschema(&self, generator: &mut SchemaGenerator) -> Schema {
        (self.subschema)(generator)
    }
}

/// Every event name that can occur. A handler's patterns are checked against them.
pub fn event_names() -> impl Iterator<Item = EventName> {
    event_meanings().map(|(name, _)| name)
}

/// Every event name that can occur, with its meaning in a sentence.
pub fn event_meanings() -> impl Iterator<Item = (EventName, &'static str)> {
    let of_families = families().flat_map(Family::event_names);
    let providers: BTreeSet<_> = families().map(Family::provider).collect();
    let of_providers = providers.into_iter().map(|provider| {
        let name = EventName::of(&[provider, ".", UNRECOGNIZED]);
        (
            name,
            "An authentic event is of no family that hookswitch knows.",
        )
    });
    of_families.chain(of_providers)
}
