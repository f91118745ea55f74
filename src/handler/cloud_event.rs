//! The form in which an event leaves the process: CloudEvents 1.0.
//!
//! | attribute | value |
//! |---|---|
//! | `id` | the event's id: the same in every attempt and replay |
//! | `source` | `/hookswitch/` and the name of the endpoint that received it |
//! | `type` | the event name |
//! | `subject` | what the event is about: a phone number, an extension id |
//! | `time` | the provider's time of the event, or else the time of arrival |
//! | `datacontenttype` | `application/json`; `application/octet-stream` for a body that is not JSON |
//! | `receivedtime` | the time of arrival |
//! | `partitionkey` | the partition key, which several ordering keys may share (CloudEvents' Partitioning extension) |
//! | `attempt` | the number of the attempt, from 1 |
//! | `superseded` | whether a later report on the same thing has already been received |
//! | `replayreason` | the reason of a replay; absent otherwise |
//!
//! `data` is the provider's JSON as it arrived, except that each line break becomes a space, so that the
//! event is one line. A JSON string cannot contain a line break, so its values stay as they are: numbers,
//! escapes, the order of fields. A body that is not JSON is in `data_base64`. The other forms are in
//! [`message`](super::message).

use std::borrow::Cow;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::DeliveryContext;
use crate::event::Notification;

/// One event as a CloudEvent.
#[derive(Clone, Copy, Debug)]
pub struct CloudEvent<'a> {
    notification: &'a Notification,
    context: &'a DeliveryContext,
    /// The body, if it is JSON.
    json: Option<&'a RawValue>,
}

impl<'a> CloudEvent<'a> {
    /// The content type of [`to_line`](Self::to_line).
    pub const CONTENT_TYPE: &'static str = "application/cloudevents+json";

    /// The CloudEvent of one attempt.
    pub fn new(notification: &'a Notification, context: &'a DeliveryContext) -> Self {
        Self {
            notification,
            context,
            json: serde_json::from_slice(&notification.body).ok(),
        }
    }

    /// The structured JSON form, in one line and without a line end.
    pub fn to_line(self) -> Vec<u8> {
        let mut line = Vec::with_capacity(self.notification.body.len() + 640);
        for (name, attribute) in self.attributes() {
            line.push(if line.is_empty() { b'{' } else { b',' });
            line.push(b'"');
            line.extend(name.as_bytes());
            line.extend(b"\":");
            attribute.write_json(&mut line);
        }
        match self.json {
            Some(json) => {
                line.extend(b",\"data\":");
                // JSON has line ends between its tokens only, where a space means the same.
                let in_one_line = |byte| {
                    if matches!(byte, b'\n' | b'\r') {
                        b' '
                    } else {
                        byte
                    }
                };
                line.extend(json.get().bytes().map(in_one_line));
            }
            None => {
                let data = BASE64_STANDARD.encode(&self.notification.body);
                line.extend([b",\"data_base64\":\"", data.as_bytes(), b"\""].concat());
            }
        }
        line.push(b'}');
        line
    }

    /// The body, byte for byte.
    pub fn body(&self) -> Bytes {
        self.notification.body.clone()
    }

    /// The content type of the body: see `datacontenttype`.
    pub const fn body_content_type(&self) -> &'static str {
        match self.json {
            Some(_) => "application/json",
            None => "application/octet-stream",
        }
    }

    /// The body as it arrived, if it is JSON.
    pub const fn json(&self) -> Option<&'a RawValue> {
        self.json
    }

    /// The endpoint that received the event, as a URI reference.
    pub fn source(&self) -> String {
        let endpoint = self.notification.endpoint.as_str();
        format!("/hookswitch/{}", path_segment(endpoint))
    }

    /// The provider's time of the event, or else the time of arrival.
    pub fn time(&self) -> Timestamp {
        let Notification {
            occurred_at,
            received_at,
            ..
        } = self.notification;
        occurred_at.unwrap_or(*received_at)
    }

    /// What the event is about, without control characters; `None` if that is unknown.
    pub fn subject(&self) -> Option<Cow<'a, str>> {
        clean(self.notification.subject())
    }

    /// The partition key, without control characters.
    pub fn key(&self) -> Option<Cow<'a, str>> {
        clean(self.notification.key.as_ref().map(|key| key.as_str()))
    }

    /// The reason of a replay, without control characters.
    pub fn replay(&self) -> Option<Cow<'a, str>> {
        clean(self.context.replay.as_deref())
    }

    /// Every attribute that has a value, in the order in which they are written.
    pub fn attributes(&self) -> Vec<(&'static str, Attribute<'a>)> {
        use Attribute::{Boolean, Integer, Text};

        let Notification {
            id,
            name,
            received_at,
            ..
        } = self.notification;
        let attributes = [
            ("specversion", Some(Text("1.0".into()))),
            ("id", Some(Text(id.to_string().into()))),
            ("source", Some(Text(self.source().into()))),
            ("type", Some(Text(name.as_str().into()))),
            ("subject", self.subject().map(Text)),
            ("time", Some(Text(self.time().to_string().into()))),
            (
                "datacontenttype",
                Some(Text(self.body_content_type().into())),
            ),
            ("receivedtime", Some(Text(received_at.to_string().into()))),
            ("partitionkey", self.key().map(Text)),
            ("attempt", Some(Integer(self.context.attempt))),
            ("superseded", Some(Boolean(self.context.superseded))),
            ("replayreason", self.replay().map(Text)),
        ];
        let present = |(name, value): (_, Option<_>)| value.map(|value| (name, value));
        attributes.into_iter().filter_map(present).collect()
    }
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute<'a> {
    /// A string, not empty and without control characters.
    Text(Cow<'a, str>),
    /// An integer.
    Integer(u32),
    /// A boolean.
    Boolean(bool),
}

impl Attribute<'_> {
    /// CloudEvents' canonical text of the value.
    pub fn into_text(self) -> String {
        match self {
            Self::Text(text) => text.into_owned(),
            Self::Integer(number) => number.to_string(),
            Self::Boolean(flag) => flag.to_string(),
        }
    }

    fn write_json(&self, out: &mut Vec<u8>) {
        let written = match self {
            Self::Text(text) => serde_json::to_writer(out, text),
            Self::Integer(number) => serde_json::to_writer(out, number),
            Self::Boolean(flag) => serde_json::to_writer(out, flag),
        };
        debug_assert!(written.is_ok(), "memory takes any string and number");
    }
}

/// The text of an attribute, which CloudEvents requires to be not empty and without control characters.
pub(super) fn clean(text: Option<&str>) -> Option<Cow<'_, str>> {
    let text = text.filter(|text| !text.is_empty())?;
    Some(if text.contains(char::is_control) {
        Cow::Owned(text.replace(char::is_control, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    })
}

/// Encodes the name of an endpoint, which can be any TOML key, for the URI reference `source`.
fn path_segment(text: &str) -> String {
    encode(text, |byte| {
        byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
    })
}

/// Percent-encodes all bytes but those that stay.
pub(super) fn encode(text: &str, stays: impl Fn(u8) -> bool) -> String {
    let encode = |byte| {
        if stays(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::handler::sample;

    fn line(notification: &Notification, context: &DeliveryContext) -> String {
        String::from_utf8(CloudEvent::new(notification, context).to_line()).unwrap()
    }

    #[test]
    fn the_structured_form_holds_every_attribute_and_the_body_as_it_came() {
        let notification = sample::notification(r#"{"n": 1.10,  "e": "\u00e9", "b": 1, "a": 2}"#);
        let mut context = sample::context();
        context.replay = Some("the receiver lost it".to_owned());
        let expected = concat!(
            r#"{"specversion":"1.0","id":"0192f0c1-2a3b-7c4d-8e5f-60718293a4b5","#,
            r#""source":"/hookswitch/front%20door","type":"zoom.number-management.unrecognized","#,
            r#""subject":"+12025550143","time":"2026-03-04T05:06:07Z","#,
            r#""datacontenttype":"application/json","receivedtime":"2026-03-04T05:06:08.25Z","#,
            r#""partitionkey":"zoom.number-management:acme:17","attempt":3,"superseded":true,"#,
            r#""replayreason":"the receiver lost it","#,
            r#""data":{"n": 1.10,  "e": "\u00e9", "b": 1, "a": 2}}"#,
        );
        assert_eq!(line(&notification, &context), expected);
    }

    #[test]
    fn what_is_not_known_is_left_out_and_time_falls_back_to_the_time_of_receipt() {
        let mut notification = sample::notification("{}");
        notification.occurred_at = None;
        notification.subjects = vec![String::new()];
        notification.key = None;
        let event: Value = serde_json::from_str(&line(&notification, &sample::context())).unwrap();
        assert_eq!(event["time"], "2026-03-04T05:06:08.25Z");
        for absent in ["subject", "partitionkey", "replayreason", "data_base64"] {
            assert_eq!(event.get(absent), None, "{absent}");
        }
    }

    #[test]
    fn a_body_that_is_not_json_is_carried_in_base64() {
        for body in [
            &b"not json"[..],
            b"\xff\xfe",
            b"",
            b"{} {}",
            b"{\"a\": \"\xc3\"}",
        ] {
            let mut notification = sample::notification("");
            notification.body = Bytes::copy_from_slice(body);
            let event: Value =
                serde_json::from_str(&line(&notification, &sample::context())).unwrap();
            assert_eq!(event["datacontenttype"], "application/octet-stream");
            assert_eq!(event.get("data"), None);
            let data = event["data_base64"].as_str().unwrap();
            assert_eq!(BASE64_STANDARD.decode(data).unwrap(), body);
        }
    }

    /// Any JSON value, without the fractions that two readers may round differently.
    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_body_makes_one_line_of_json_that_says_the_same(
            body in json(),
            pretty in any::<bool>(),
            subject in any::<Option<String>>(),
            endpoint in any::<String>(),
        ) {
            let text = if pretty {
                serde_json::to_string_pretty(&body).unwrap().replace('\n', "\r\n")
            } else {
                body.to_string()
            };
            let mut notification = sample::notification(&text);
            notification.subjects = Vec::from_iter(subject);
            notification.endpoint = endpoint.as_str().into();
            let line = line(&notification, &sample::context());
            prop_assert!(!line.contains(['\n', '\r']));
            let event: Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(&event["data"], &body);
        }

        #[test]
        fn any_bytes_make_one_line_of_json(
            body in prop::collection::vec(any::<u8>(), 0..64),
            subject in any::<String>(),
        ) {
            let mut notification = sample::notification("");
            notification.body = Bytes::from(body);
            notification.subjects = vec![subject];
            let context = sample::context();
            let event = CloudEvent::new(&notification, &context);
            let line = event.to_line();
            prop_assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
            prop_assert!(serde_json::from_slice::<Value>(&line).unwrap().is_object());
        }
    }
}
