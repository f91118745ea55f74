//! A name made of an event's fields: a topic, a routing key.
//!
//! | field | value |
//! |---|---|
//! | `{type}` | the event name |
//! | `{provider}` | its first word |
//! | `{endpoint}` | the endpoint that received the event |
//! | `{handler}` | the handler, as the TOML names it |
//! | `{key}` | the partition key |
//! | `{subject}` | what the event is about: a phone number, an extension id |
//! | `{id}` | the event's id |
//!
//! A hyphen stands for what an event does not have.

use std::borrow::Cow;

use serde::Deserialize;

use crate::{
    event::Notification,
    handler::{DeliveryContext, cloud_event::clean},
};

/// A text with fields in braces, see [the module](self).
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(in crate::handler) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field),
}

/// One of the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::handler) enum Field {
    Type,
    Provider,
    Endpoint,
    Handler,
    Key,
    Subject,
    Id,
}

const FIELDS: &[(&str, Field)] = &[
    ("type", Field::Type),
    ("provider", Field::Provider),
    ("endpoint", Field::Endpoint),
    ("handler", Field::Handler),
    ("key", Field::Key),
    ("subject", Field::Subject),
    ("id", Field::Id),
];

impl TryFrom<String> for Template {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after
                .split_once('}')
                .ok_or_else(|| format!("{text:?} has a brace that nothing closes; {}", fields()))?;
            let (_, field) = FIELDS
                .iter()
                .find(|(known, _)| *known == name)
                .ok_or_else(|| format!("{text:?} has an unknown field {name:?}; {}", fields()))?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Field(*field));
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| *part != Part::Text(String::new()));
        Ok(Self(parts))
    }
}

fn fields() -> String {
    let names: Vec<_> = FIELDS
        .iter()
        .map(|(name, _)| format!("{{{name}}}"))
        .collect();
    format!("the fields are {}", names.join(", "))
}

impl Template {
    /// The template of [`event_name`](Self::event_name).
    pub(in crate::handler) const EVENT_NAME: &str = "{type}";

    /// The event name and nothing else.
    pub(in crate::handler) fn event_name() -> Self {
        Self(vec![Part::Field(Field::Type)])
    }

    /// The name for an event of which nothing is known, in which a hyphen stands for each field.
    pub(in crate::handler) fn plain(&self) -> String {
        self.write(|_| "-".to_owned())
    }

    /// The name for one event, each field's value as `safe` writes it.
    pub(in crate::handler) fn name(
        &self,
        event: &Notification,
        context: &DeliveryContext,
        safe: impl Fn(Field, &str) -> String,
    ) -> String {
        self.write(|field| safe(field, &field.of(event, context)))
    }

    fn write(&self, value: impl Fn(Field) -> String) -> String {
        let write = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Field(field) => value(*field),
        };
        self.0.iter().map(write).collect()
    }
}

impl Field {
    fn of<'a>(self, event: &'a Notification, context: &'a DeliveryContext) -> Cow<'a, str> {
        let name = event.name.as_str();
        let value = match self {
            Self::Type => Some(name),
            Self::Provider => name.split('.').next(),
            Self::Endpoint => Some(event.endpoint.as_str()),
            Self::Handler => Some(context.handler.as_str()),
            Self::Key => event.key.as_ref().map(|key| key.as_str()),
            Self::Subject => event.subject(),
            Self::Id => return event.id.to_string().into(),
        };
        clean(value).unwrap_or(Cow::Borrowed("-"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::sample;

    fn name(template: &str, event: &Notification) -> String {
        let template = Template::try_from(template.to_owned()).unwrap();
        template.name(event, &sample::context(), |_, value| {
            value.replace(' ', "_")
        })
    }

    #[test]
    fn each_field_has_its_value_and_the_rest_stays_as_it_is() {
        let event = sample::notification("{}");
        assert_eq!(name("all events", &event), "all events");
        assert_eq!(
            name("a b/{provider}.{type}/{endpoint}/{handler}", &event),
            "a b/zoom.zoom.number-management.unrecognized/front_door/sample"
        );
        assert_eq!(
            name("{key}{subject} {id}", &event),
            "zoom.number-management:acme:17+12025550143 0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"
        );
    }

    #[test]
    fn a_hyphen_stands_for_what_is_not_there() {
        let mut event = sample::notification("{}");
        event.key = None;
        event.subjects = vec![String::new()];
        assert_eq!(name("{key}/{subject}", &event), "-/-");
    }

    #[test]
    fn a_field_that_there_is_not_is_refused_with_those_that_there_are() {
        for wrong in ["{topic}", "{}", "{type", "{Type}", "{ type }"] {
            let problem = Template::try_from(wrong.to_owned()).unwrap_err();
            assert!(
                problem.contains("the fields are {type}, {provider}"),
                "{problem}"
            );
        }
    }
}
