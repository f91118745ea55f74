//! The fields of an event that a statement can name, and their values.

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    event::Notification,
    handler::{AnyEvent, Delivery, cloud_event::CloudEvent},
};

/// A field that a statement can name. If CloudEvents has an attribute for it, the values are the same:
/// see [`cloud_event`](crate::handler::cloud_event).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Id,
    Source,
    Type,
    Subject,
    Time,
    ReceivedTime,
    Key,
    Attempt,
    Superseded,
    ReplayReason,
    DataContentType,
    Data,
    Body,
    Event,
}

/// Every field with its name.
const FIELDS: &[(Field, &str)] = &[
    (Field::Id, "id"),
    (Field::Source, "source"),
    (Field::Type, "type"),
    (Field::Subject, "subject"),
    (Field::Time, "time"),
    (Field::ReceivedTime, "receivedtime"),
    (Field::Key, "key"),
    (Field::Attempt, "attempt"),
    (Field::Superseded, "superseded"),
    (Field::ReplayReason, "replayreason"),
    (Field::DataContentType, "datacontenttype"),
    (Field::Data, "data"),
    (Field::Body, "body"),
    (Field::Event, "event"),
];

impl Field {
    /// The field called `name`.
    pub(super) fn named(name: &str) -> Option<Self> {
        let mut fields = FIELDS.iter();
        fields
            .find(|(_, known)| *known == name)
            .map(|(field, _)| *field)
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        let mut fields = FIELDS.iter();
        let found = fields.find(|(field, _)| *field == self);
        found.map_or("", |(_, name)| name)
    }

    /// The names of all fields, for error messages.
    pub(super) fn list() -> String {
        let names: Vec<_> = FIELDS.iter().map(|(_, name)| format!(":{name}")).collect();
        names.join(", ")
    }
}

/// The value of a field. Owned, so that another thread can use it.
pub(super) enum Value {
    Text(String),
    Id(Uuid),
    Time(Timestamp),
    Json(Box<RawValue>),
    Number(u32),
    Flag(bool),
    Bytes(Bytes),
}

impl Value {
    /// The value as CloudEvents write it. Replacement characters stand for bytes that are not UTF-8.
    pub(super) fn to_text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Id(id) => id.to_string(),
            Self::Time(time) => time.to_string(),
            Self::Json(json) => json.get().to_owned(),
            Self::Number(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        }
    }
}

impl fmt::Debug for Value {
    /// Database clients log parameters at their lowest levels.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value(..)")
    }
}

/// One event, as the values of its fields.
pub(super) struct Row<'a> {
    notification: &'a Notification,
    event: CloudEvent<'a>,
    attempt: u32,
    superseded: bool,
}

impl<'a> Row<'a> {
    pub(super) fn new(delivery: &Delivery<'a, AnyEvent>) -> Self {
        let Delivery {
            notification,
            context,
            ..
        } = *delivery;
        Self {
            notification,
            event: CloudEvent::new(notification, context),
            attempt: context.attempt,
            superseded: context.superseded,
        }
    }

    /// The values of `fields`; `None` for those that the event does not have.
    pub(super) fn values(&self, fields: &[Field]) -> Vec<Option<Value>> {
        fields.iter().map(|field| self.value(*field)).collect()
    }

    fn value(&self, field: Field) -> Option<Value> {
        let text = |text: &str| Value::Text(text.to_owned());
        Some(match field {
            Field::Id => Value::Id(Uuid::from_bytes(*self.notification.id.as_bytes())),
            Field::Source => Value::Text(self.event.source()),
            Field::Type => text(self.notification.name.as_str()),
            Field::Subject => text(&self.event.subject()?),
            Field::Time => Value::Time(self.event.time()),
            Field::ReceivedTime => Value::Time(self.notification.received_at),
            Field::Key => text(&self.event.key()?),
            Field::Attempt => Value::Number(self.attempt),
            Field::Superseded => Value::Flag(self.superseded),
            Field::ReplayReason => text(&self.event.replay()?),
            Field::DataContentType => text(self.event.body_content_type()),
            Field::Data => Value::Json(self.event.json()?.to_owned()),
            Field::Body => Value::Bytes(self.event.body()),
            Field::Event => Value::Json(serde_json::from_slice(&self.event.to_line()).ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::{DeliveryContext, sample};

    fn texts(notification: &Notification, context: &DeliveryContext) -> Vec<Option<String>> {
        let delivery = Delivery {
            event: AnyEvent,
            notification,
            context,
        };
        let fields: Vec<_> = FIELDS.iter().map(|(field, _)| *field).collect();
        let values = Row::new(&delivery).values(&fields);
        let text = |value: Option<Value>| value.map(|value| value.to_text());
        values.into_iter().map(text).collect()
    }

    #[test]
    fn a_field_holds_what_the_cloud_event_says() {
        let notification = sample::notification("{\"n\":\n1.10}");
        let mut context = sample::context();
        context.replay = Some("lost".to_owned());
        let event = CloudEvent::new(&notification, &context);
        let line = String::from_utf8(event.to_line()).unwrap();
        let expected = [
            "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5",
            "/hookswitch/front%20door",
            "zoom.number-management.unrecognized",
            "+12025550143",
            "2026-03-04T05:06:07Z",
            "2026-03-04T05:06:08.25Z",
            "zoom.number-management:acme:17",
            "3",
            "true",
            "lost",
            "application/json",
            "{\"n\":\n1.10}",
            "{\"n\":\n1.10}",
            line.as_str(),
        ];
        let held = texts(&notification, &context);
        assert_eq!(held, expected.map(|text| Some(text.to_owned())));
        // The same names as the attributes, except the one that is shorter here.
        for (name, value) in event.attributes() {
            let name = match name {
                "specversion" => continue,
                "partitionkey" => "key",
                name => name,
            };
            let at = FIELDS.iter().position(|(_, field)| *field == name).unwrap();
            assert_eq!(held[at], Some(value.into_text()), "{name}");
        }
    }

    #[test]
    fn what_an_event_does_not_have_is_absent() {
        let mut notification = sample::notification("not json");
        notification.subjects.clear();
        notification.key = None;
        let held = texts(&notification, &sample::context());
        let absent = FIELDS.iter().zip(&held).filter(|(_, held)| held.is_none());
        let absent: Vec<_> = absent.map(|((field, _), _)| *field).collect();
        assert_eq!(
            absent,
            [Field::Subject, Field::Key, Field::ReplayReason, Field::Data]
        );
    }

    #[test]
    fn a_value_is_not_shown() {
        let value = Value::Text("+12025550143".to_owned());
        assert_eq!(format!("{value:?}"), "Value(..)");
    }
}
