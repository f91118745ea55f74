//! An event as a message: what CloudEvents' bindings to protocols have in common.
//!
//! | `format` | content type | attributes beside the body | body |
//! |---|---|---|---|
//! | `structured` | `application/cloudevents+json` | none | the CloudEvent as JSON, in one line |
//! | `binary` | the data's own | all | the provider's, byte for byte |
//! | `raw` | the data's own | none | the provider's, byte for byte |
//!
//! Each protocol has its own names and forms of attributes. HTTP and NATS have the same form of headers, which
//! [`to_header`] writes.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cloud_event::{CloudEvent, encode};

/// The form in which an event leaves the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Data and attributes together.
    #[default]
    Structured,
    /// The data, and the attributes beside it.
    Binary,
    /// The data alone.
    Raw,
}

/// One event, ready for a protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The content type of the body.
    pub content_type: &'static str,
    /// The attributes beside the body, `datacontenttype` among them: each in CloudEvents' canonical text,
    /// without control characters and not empty. Empty except in the binary form.
    pub attributes: Vec<(&'static str, String)>,
    /// The body.
    pub body: Bytes,
}

impl Message {
    /// The message of `event` in the form `format`.
    pub fn new(event: &CloudEvent<'_>, format: Format) -> Self {
        match format {
            Format::Structured => Self {
                content_type: CloudEvent::CONTENT_TYPE,
                attributes: Vec::new(),
                body: event.to_line().into(),
            },
            Format::Binary => Self {
                content_type: event.body_content_type(),
                attributes: texts(event),
                body: event.body(),
            },
            Format::Raw => Self {
                content_type: event.body_content_type(),
                attributes: Vec::new(),
                body: event.body(),
            },
        }
    }

    /// The attributes except `datacontenttype`, for protocols that have a field of their own for the content
    /// type.
    pub fn attributes_beside_content_type(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let attributes = self.attributes.iter();
        attributes
            .filter(|(name, _)| *name != "datacontenttype")
            .map(|(name, text)| (*name, text.as_str()))
    }
}

fn texts(event: &CloudEvent<'_>) -> Vec<(&'static str, String)> {
    let attributes = event.attributes().into_iter();
    attributes
        .map(|(name, value)| (name, value.into_text()))
        .collect()
}

/// The text of an attribute as a header of HTTP or NATS: the space, the quotation mark, the percent sign and
/// everything but printable ASCII are percent-encoded.
pub fn to_header(text: &str) -> String {
    encode(text, |byte| {
        byte.is_ascii_graphic() && byte != b'"' && byte != b'%'
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::{event::Notification, handler::sample};

    fn message(notification: &Notification, format: Format) -> Message {
        let context = sample::context();
        Message::new(&CloudEvent::new(notification, &context), format)
    }

    #[test]
    fn the_structured_form_is_one_line_and_nothing_beside_it() {
        let message = message(&sample::notification("{\"a\":\n1}"), Format::Structured);
        assert_eq!(message.content_type, "application/cloudevents+json");
        assert_eq!(message.attributes, []);
        let event: Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!(event["data"], serde_json::json!({"a": 1}));
        assert!(!message.body.contains(&b'\n'));
    }

    #[test]
    fn the_binary_form_is_the_body_with_every_attribute_beside_it() {
        let message = message(&sample::notification("{\"a\":\n1}"), Format::Binary);
        assert_eq!(message.content_type, "application/json");
        assert_eq!(&message.body[..], b"{\"a\":\n1}");
        let expected = [
            ("specversion", "1.0"),
            ("id", "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"),
            ("source", "/hookswitch/front%20door"),
            ("type", "zoom.number-management.unrecognized"),
            ("subject", "+12025550143"),
            ("time", "2026-03-04T05:06:07Z"),
            ("datacontenttype", "application/json"),
            ("receivedtime", "2026-03-04T05:06:08.25Z"),
            ("partitionkey", "zoom.number-management:acme:17"),
            ("attempt", "3"),
            ("superseded", "true"),
        ];
        let all: Vec<_> = message
            .attributes
            .iter()
            .map(|(name, text)| (*name, text.as_str()))
            .collect();
        assert_eq!(all, expected);
        let beside: Vec<_> = message.attributes_beside_content_type().collect();
        let is_beside = |(name, _): &(&str, &str)| *name != "datacontenttype";
        assert_eq!(
            beside,
            expected.into_iter().filter(is_beside).collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_raw_form_is_the_body_alone() {
        let message = message(&sample::notification("not json"), Format::Raw);
        assert_eq!(message.content_type, "application/octet-stream");
        assert_eq!(message.attributes, []);
        assert_eq!(&message.body[..], b"not json");
    }

    #[test]
    fn a_header_escapes_what_it_cannot_hold() {
        assert_eq!(
            to_header("50% \"Zoë\" €"),
            "50%25%20%22Zo%C3%AB%22%20%E2%82%AC"
        );
        assert_eq!(
            to_header("/hookswitch/front%20door"),
            "/hookswitch/front%2520door"
        );
    }

    proptest! {
        #[test]
        fn any_event_makes_attributes_without_control_characters_and_printable_headers(
            body in prop::collection::vec(any::<u8>(), 0..64),
            subject in any::<String>(),
        ) {
            let mut notification = sample::notification("");
            notification.body = body.into();
            notification.subjects = vec![subject];
            for (_, text) in message(&notification, Format::Binary).attributes {
                prop_assert!(!text.is_empty() && !text.contains(char::is_control));
                prop_assert!(to_header(&text).bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
