//! The `SendMessage` request for one event.

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{hex, queue::Queue};
use crate::{
    event::Key,
    handler::{
        AnyEvent, Delivery,
        cloud_event::encode,
        message::{Format, Message},
    },
};

/// The most bytes of a message's body and attributes together that any queue accepts: 1 MiB since August
/// 2025. Each queue has a limit of its own below that, `MaximumMessageSize`.
const LARGEST: usize = 1 << 20;

/// The most characters of a message group id and of a deduplication id.
const LONGEST_ID: usize = 128;

/// The request.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SendMessage<'a> {
    queue_url: &'a str,
    pub(super) message_body: String,
    message_attributes: BTreeMap<&'static str, Attribute>,
    #[serde(flatten)]
    fifo: Option<Fifo>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute {
    data_type: &'static str,
    string_value: &'static str,
}

/// The further parameters of a FIFO queue.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Fifo {
    message_group_id: String,
    message_deduplication_id: String,
}

/// Why an event cannot be sent as a message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("the body is not text, which is all that SQS takes; use `format = \"structured\"`")]
    NotText,
    #[error("the body is empty, which SQS does not take; use `format = \"structured\"`")]
    Empty,
    #[error(
        "the body holds a character that SQS does not take; use `format = \"structured\"`, which \
         escapes it"
    )]
    Character,
    #[error("the message is of {0} bytes, and SQS takes no more than {LARGEST}")]
    TooLarge(usize),
}

impl<'a> SendMessage<'a> {
    /// The request that sends `message` to `queue`.
    ///
    /// # Errors
    ///
    /// When no queue would accept the message.
    pub(super) fn new(
        queue: &'a Queue,
        message: &Message,
        delivery: &Delivery<'_, AnyEvent>,
        format: Format,
    ) -> Result<Self, Unfit> {
        let message_body = body(message, format)?;
        let content_type = Attribute {
            data_type: "String",
            string_value: message.content_type,
        };
        let message_attributes = BTreeMap::from([("content-type", content_type)]);
        let attributes = message_attributes.iter().map(|(name, attribute)| {
            name.len() + attribute.data_type.len() + attribute.string_value.len()
        });
        let length = message_body.len() + attributes.sum::<usize>();
        if length > LARGEST {
            return Err(Unfit::TooLarge(length));
        }
        Ok(Self {
            queue_url: &queue.url,
            message_body,
            message_attributes,
            fifo: queue.is_fifo.then(|| Fifo::new(delivery)),
        })
    }
}

fn body(message: &Message, format: Format) -> Result<String, Unfit> {
    let text = str::from_utf8(&message.body).map_err(|_| Unfit::NotText)?;
    match format {
        // JSON has such characters within strings only.
        Format::Structured => Ok(text
            .replace('\u{fffe}', "\\ufffe")
            .replace('\u{ffff}', "\\uffff")),
        Format::Binary | Format::Raw if text.is_empty() => Err(Unfit::Empty),
        Format::Binary | Format::Raw if text.contains(is_forbidden) => Err(Unfit::Character),
        Format::Binary | Format::Raw => Ok(text.to_owned()),
    }
}

/// Whether SQS refuses a character: it accepts the characters of XML.
fn is_forbidden(character: char) -> bool {
    matches!(character, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}')
}

impl Fifo {
    fn new(delivery: &Delivery<'_, AnyEvent>) -> Self {
        let key = delivery.notification.key.as_ref().map(Key::as_str);
        Self {
            message_group_id: match key {
                Some(key) if !key.is_empty() => permitted(key),
                _ => delivery.idempotency_key().to_string(),
            },
            message_deduplication_id: permitted(&delivery.deduplication_id()),
        }
    }
}

/// `text` as an id: letters, digits and punctuation of ASCII, within the limit of an id.
fn permitted(text: &str) -> String {
    let id = encode(text, |byte| byte.is_ascii_graphic() && byte != b'%');
    if id.len() > LONGEST_ID {
        return hex(&Sha256::digest(text));
    }
    id
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        event::Notification,
        handler::{DeliveryContext, cloud_event::CloudEvent, sample},
    };

    fn send(
        queue: &str,
        notification: &Notification,
        context: &DeliveryContext,
        format: Format,
    ) -> Result<Value, Unfit> {
        let queue = Queue::try_from(format!("http://127.0.0.1/1/{queue}")).unwrap();
        let message = Message::new(&CloudEvent::new(notification, context), format);
        let delivery = Delivery {
            event: AnyEvent,
            notification,
            context,
        };
        let message = SendMessage::new(&queue, &message, &delivery, format)?;
        Ok(serde_json::to_value(message).unwrap())
    }

    #[test]
    fn a_standard_queue_gets_neither_a_group_nor_a_deduplication_id() {
        let event = sample::notification("{\"a\":\n1}");
        let message = send("plain", &event, &sample::context(), Format::Raw);
        let expected = json!({
            "QueueUrl": "http://127.0.0.1/1/plain",
            "MessageBody": "{\"a\":\n1}",
            "MessageAttributes": {
                "content-type": { "DataType": "String", "StringValue": "application/json" },
            },
        });
        assert_eq!(message, Ok(expected));
    }

    #[test]
    fn a_fifo_queue_is_told_the_key_and_what_copies_are_told_by() {
        let mut event = sample::notification("{}");
        let mut context = sample::context();
        let ids = |event: &Notification, context: &DeliveryContext| {
            let message = send("q.fifo", event, context, Format::Structured).unwrap();
            let text = |name: &str| message[name].as_str().unwrap().to_owned();
            (text("MessageGroupId"), text("MessageDeduplicationId"))
        };
        let id = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5";
        let (group, first) = ids(&event, &context);
        assert_eq!(group, "zoom.number-management:acme:17");
        assert_eq!(first, format!("{id}/sample"));
        context.attempt += 1;
        assert_eq!(ids(&event, &context).1, first, "another attempt");
        context.replays = 2;
        assert_eq!(ids(&event, &context).1, format!("{id}/sample/2"));
        event.key = None;
        assert_eq!(ids(&event, &context).0, id);
        context.handler = "a b/Zoë".into();
        assert_eq!(ids(&event, &context).1, format!("{id}/a%20b/Zo%C3%AB/2"));
    }

    #[test]
    fn what_sqs_does_not_take_is_escaped_or_refused() {
        let raw = |body: &[u8]| {
            let mut event = sample::notification("");
            event.body = body.to_vec().into();
            send("q", &event, &sample::context(), Format::Raw).map(|_| ())
        };
        for (body, expected) in [
            (&b"tabs\tand\r\nlines"[..], Ok(())),
            ("\u{7f}\u{fffd}\u{1fffe}".as_bytes(), Ok(())),
            (b"", Err(Unfit::Empty)),
            (b"\xff", Err(Unfit::NotText)),
            (b"a\0", Err(Unfit::Character)),
            ("\"\u{ffff}\"".as_bytes(), Err(Unfit::Character)),
        ] {
            assert_eq!(raw(body), expected, "{body:?}");
        }
    }

    #[test]
    fn a_message_may_have_a_mebibyte_with_its_attributes() {
        let beside = "content-type".len() + "String".len() + "application/json".len();
        let of = |length: usize| {
            let event = sample::notification(&format!("\"{}\"", "a".repeat(length - 2)));
            send("q", &event, &sample::context(), Format::Raw)
        };
        assert!(of(LARGEST - beside).is_ok());
        assert_eq!(of(LARGEST - beside + 1), Err(Unfit::TooLarge(LARGEST + 1)));
    }

    #[test]
    fn long_keys_that_differ_at_their_end_are_groups_that_differ() {
        let long = "é".repeat(LONGEST_ID);
        let groups = ["a", "b"].map(|end| permitted(&(long.clone() + end)));
        assert_eq!(groups.each_ref().map(String::len), [64, 64]);
        assert_eq!(groups.iter().collect::<HashSet<_>>().len(), 2);
        assert_eq!(permitted(&"a".repeat(LONGEST_ID)).len(), LONGEST_ID);
    }

    proptest! {
        #[test]
        fn any_event_makes_a_structured_message_that_sqs_takes_and_that_says_the_same(
            text in any::<String>(),
            subject in "[\u{fff0}-\u{ffff}]{0,9}",
            key in any::<String>(),
        ) {
            let mut event = sample::notification(&json!({ "text": text }).to_string());
            event.subjects = vec![subject];
            event.key = Some(Key::new(key));
            let message = send("q.fifo", &event, &sample::context(), Format::Structured).unwrap();
            let body = message["MessageBody"].as_str().unwrap();
            prop_assert!(!body.contains(is_forbidden));
            let sent: Value = serde_json::from_str(body).unwrap();
            prop_assert_eq!(&sent["data"]["text"], &text);
            for id in ["MessageGroupId", "MessageDeduplicationId"] {
                let id = message[id].as_str().unwrap();
                prop_assert!((1..=LONGEST_ID).contains(&id.len()));
                prop_assert!(id.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
