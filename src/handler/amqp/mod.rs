//! `amqp`: a message to an exchange for each event, in AMQP 0-9-1, as RabbitMQ speaks it.
//!
//! What is sent is a [`Message`]. CloudEvents has a binding to AMQP 1.0 and none to 0-9-1, so that
//! one is followed as far as 0-9-1 has the same things: the content type is the property of that
//! name, and the attributes are headers with the prefix `cloudEvents_`, which the binding prefers
//! to `cloudEvents:`. In every form, the properties say besides:
//!
//! | property | value |
//! |---|---|
//! | `message_id` | the event's id: the same in every attempt and replay, to tell copies by |
//! | `type` | the event name |
//! | `timestamp` | when the provider says that it happened, in seconds; else when it was received |
//! | `delivery_mode` | 2: queues that last keep it on disk |
//! | `app_id` | `hookswitch` |
//!
//! Messages are mandatory, and the broker confirms each: a queue that lasts has it on disk, a
//! quorum queue on a majority of its machines. Exchanges, queues and what binds them are the
//! broker's owner's to make; nothing is declared.
//!
//! | the broker | outcome |
//! |---|---|
//! | confirms | done |
//! | returns the message, because no queue is bound for it | parked |
//! | rejects the message (`nack`), as a full queue does | tried again |
//! | knows no such exchange (404), or does not let this user publish there (403) | parked |
//! | takes no message as large (311, 406) | parked |
//! | is short of memory or disk, closes the connection, or is not there | tried again |
//!
//! **Order:** the broker has confirmed one event of an ordering key before the next is sent, so a queue
//! holds them in order. A copy whose confirmation never came may arrive late, behind its successors.
//!
//! **Invariant:** nothing that the broker says is in a reason, but its codes: it may quote a routing
//! key.

mod publisher;
mod runtime;
mod settings;

use std::time::Duration;

use lapin::{
    BasicProperties, Confirmation, ErrorKind,
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::{AMQPValue, FieldTable, ShortString},
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo},
};

use super::{
    AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome,
    broker::{connector::Connector, reconnecting::ReconnectingClient, template::Template},
    cloud_event::CloudEvent,
    message::{Format, Message},
};
use crate::secret::Secret;
use publisher::{Publication, Publisher};
use settings::SCHEMES;

pub(super) use settings::Settings;

/// How often both sides say that they are there, in seconds. One that has said nothing for twice
/// as long is taken for gone.
const HEARTBEAT: u16 = 10;

/// By AMQP's own number.
const PERSISTENT: u8 = 2;

/// How long all the attributes may be together, in bytes: headers go in one frame, which common
/// brokers limit to 128 KiB.
const LONGEST_ATTRIBUTES: usize = 64 << 10;

impl HandlerKind for Settings {
    const KIND: &'static str = "amqp";
    const EXAMPLE: &'static str = r#"
[handlers.queue]
kind = "amqp"
events = ["ringcentral.*"]
url = "amqps://rabbitmq.example.com"
vhost = "/"
username = "hookswitch"
password = { env = "AMQP_PASSWORD" }
# tls = { ca = "/etc/hookswitch/ca.pem", certificate = "/etc/hookswitch/rabbitmq.pem", key = "/etc/hookswitch/rabbitmq-key.pem" }
exchange = "telephony"
routing_key = "{type}"
format = "structured"
connect_timeout = "5s"
"#;
    type Handler = Amqp;

    fn build(self, context: &mut BuildContext) -> Result<Amqp, BuildError> {
        context.warn(SCHEMES.cleartext_warning(&self.url.0, self.password.as_ref()));
        let connect_timeout = self.connect_timeout.min(context.timeout);
        let connector = Connector::new(&self.url.0, SCHEMES, &self.tls)?;
        Ok(Amqp {
            uri: self.uri(&connector),
            connector,
            connect_timeout,
            name: format!("hookswitch {}", context.name),
            client: ReconnectingClient::new(connect_timeout),
            exchange: self.exchange.0,
            routing_key: self.routing_key,
            format: self.format,
        })
    }
}

impl Settings {
    fn uri(&self, connector: &Connector) -> AMQPUri {
        let password = self.password.as_ref().map_or("guest", Secret::expose);
        AMQPUri {
            // TLS is spoken below what the library knows of.
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: self.username.as_deref().unwrap_or("guest").to_owned(),
                    password: password.to_owned(),
                },
                host: connector.host.clone(),
                port: connector.port,
            },
            vhost: self.vhost.0.to_string(),
            query: AMQPQueryString {
                heartbeat: Some(HEARTBEAT),
                ..AMQPQueryString::default()
            },
        }
    }
}

/// The handler.
pub(super) struct Amqp {
    /// Has the password in it.
    uri: AMQPUri,
    connector: Connector,
    /// How long a connection may take to be made.
    connect_timeout: Duration,
    /// Of the connection, for who looks at the broker's list of them.
    name: String,
    client: ReconnectingClient<Publisher>,
    exchange: ShortString,
    routing_key: Template,
    format: Format,
}

impl Handler for Amqp {
    type Event = AnyEvent;

    async fn handle(&self, delivery: Delivery<'_, AnyEvent>) -> Outcome {
        let message = match self.compose(&delivery) {
            Ok(message) => message,
            Err(why) => return Outcome::park(why),
        };
        let connect = Publisher::open(
            self.uri.clone(),
            &self.name,
            &self.connector,
            self.connect_timeout,
        );
        let publisher = match self.client.connection(connect).await {
            Ok(publisher) => publisher,
            Err(unconnected) => return Outcome::retry(unconnected),
        };
        if publisher.is_blocked() {
            return Outcome::retry("the broker is short of memory or disk, and takes no messages");
        }
        match publisher.publish(message).await {
            Ok(confirmation) => self.judge(&confirmation),
            Err(error) => self.judge_error(&error),
        }
    }
}

impl Amqp {
    fn compose(&self, delivery: &Delivery<'_, AnyEvent>) -> Result<Publication, String> {
        let event = delivery.notification;
        let message = Message::new(&CloudEvent::new(event, delivery.context), self.format);
        let routing_key =
            (self.routing_key).name(event, delivery.context, |_, text| text.to_owned());
        let at = event.occurred_at.unwrap_or(event.received_at);
        let properties = BasicProperties::default()
            .with_message_id(short("message id", delivery.idempotency_key().to_string())?)
            .with_type(short("event name", event.name.to_string())?)
            .with_timestamp(u64::try_from(at.as_second()).unwrap_or_default())
            .with_delivery_mode(PERSISTENT)
            .with_app_id("hookswitch".into())
            .with_content_type(message.content_type.into())
            .with_headers(headers(&message)?);
        Ok(Publication {
            exchange: self.exchange.clone(),
            routing_key: short("routing key", routing_key)?,
            properties,
            body: message.body,
        })
    }

    /// What an answer means. See the module's table.
    fn judge(&self, confirmation: &Confirmation) -> Outcome {
        match confirmation {
            Confirmation::Ack(None) => Outcome::Done,
            Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => Outcome::park(format!(
                "no queue is bound to the exchange {:?} for the event's routing key",
                self.exchange.as_str()
            )),
            Confirmation::Nack(None) => {
                Outcome::retry("the broker rejected the message, as it does when a queue is full")
            }
            Confirmation::NotRequested => {
                Outcome::retry("the channel was not one on which the broker confirms")
            }
        }
    }

    /// What the loss of a channel means. See the module's table.
    fn judge_error(&self, error: &lapin::Error) -> Outcome {
        let kind = match error.kind() {
            ErrorKind::ProtocolError(error) => Some(error.kind()),
            _ => None,
        };
        let exchange = self.exchange.as_str();
        match kind {
            Some(AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)) => {
                Outcome::park(format!("the broker has no exchange {exchange:?}"))
            }
            Some(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)) => Outcome::park(format!(
                "the broker does not let this user publish to the exchange {exchange:?}, or not \
                 with this routing key"
            )),
            Some(AMQPErrorKind::Soft(
                code @ (AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::CONTENTTOOLARGE),
            )) => Outcome::park(format!(
                "the broker does not take such a message (code {}), as when it is larger than its \
                 `max_message_size`",
                code.get_id()
            )),
            _ => Outcome::retry(format!(
                "the broker did not confirm the message: {}",
                publisher::describe(error)
            )),
        }
    }
}

/// The attributes, each with the prefix of CloudEvents.
fn headers(message: &Message) -> Result<FieldTable, String> {
    let mut headers = FieldTable::default();
    let mut length = 0;
    for (name, text) in message.attributes_beside_content_type() {
        length += name.len() + text.len();
        let name = short("name of an attribute", format!("cloudEvents_{name}"))?;
        headers.insert(name, AMQPValue::LongString(text.into()));
    }
    if length > LONGEST_ATTRIBUTES {
        return Err(format!(
            "the event's attributes are {length} bytes long; AMQP takes {LONGEST_ATTRIBUTES}"
        ));
    }
    Ok(headers)
}

/// A text that AMQP keeps short.
fn short(what: &str, text: String) -> Result<ShortString, String> {
    let length = text.len();
    ShortString::try_new(text)
        .map_err(|_| format!("the {what} would be {length} bytes long; AMQP takes 255"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::handler::sample;

    fn settings(url: &str, more: &str) -> Result<Settings, String> {
        let toml = format!("{{ url = {url:?}, exchange = \"\", {more} }}");
        let value = toml::de::ValueDeserializer::parse(&toml).map_err(|bad| bad.to_string())?;
        Settings::deserialize(value).map_err(|problem| problem.to_string())
    }

    fn uri(url: &str, more: &str) -> AMQPUri {
        let settings = settings(url, more).unwrap();
        let connector = Connector::new(&settings.url.0, SCHEMES, &settings.tls).unwrap();
        settings.uri(&connector)
    }

    #[test]
    fn what_is_not_said_is_what_every_broker_begins_with() {
        let plain = uri("amqp://localhost", "");
        assert_eq!(plain.vhost, "/");
        assert_eq!(plain.authority.port, 5672);
        let AMQPUserInfo { username, password } = plain.authority.userinfo;
        assert_eq!((username.as_str(), password.as_str()), ("guest", "guest"));
        let named = uri("amqps://[::1]/", "username = \"me\", vhost = \"office\"");
        assert_eq!(named.vhost, "office");
        assert_eq!(named.authority.host, "::1");
        assert_eq!(named.authority.port, 5671);
        assert_eq!(named.authority.userinfo.username, "me");
        assert_eq!(uri("amqp://localhost:1", "").authority.port, 1);
    }

    #[test]
    fn settings_that_cannot_work_are_refused_while_they_are_read() {
        let long = format!("vhost = \"{}\"", "x".repeat(256));
        for (url, more) in [
            ("amqp://localhost/vhost", ""),
            ("amqp://me:hush@localhost", ""),
            ("http://localhost", ""),
            ("amqp://localhost", "routing_key = \"{topic}\""),
            ("amqp://localhost", "format = \"xml\""),
            ("amqp://localhost", "mandatory = false"),
            ("amqp://localhost", &long),
        ] {
            let problem = settings(url, more).unwrap_err();
            assert!(!problem.contains("hush"), "{problem}");
        }
    }

    #[test]
    fn attributes_that_no_frame_can_hold_are_parked() {
        let mut event = sample::notification("{}");
        event.subject = Some("x".repeat(LONGEST_ATTRIBUTES));
        let context = sample::context();
        let message = Message::new(&CloudEvent::new(&event, &context), Format::Binary);
        assert!(headers(&message).unwrap_err().contains("AMQP takes 65536"));
    }
}
