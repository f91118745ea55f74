//! `amqp`: publishes a message to an exchange for each event, in AMQP 0-9-1, the protocol of RabbitMQ.
//!
//! The message is a [`Message`]. CloudEvents has a binding to AMQP 1.0 and none to 0-9-1, so the message follows
//! the former as far as possible: the content type is the property of that name, and the attributes are headers
//! with the prefix `cloudEvents_`, which the binding prefers to `cloudEvents:`. In every form a message also has
//! these properties:
//!
//! | property | value |
//! |---|---|
//! | `message_id` | the event's id, the same in every attempt and replay: consumers recognize duplicates by it |
//! | `type` | the event name |
//! | `timestamp` | the provider's time of the event, in seconds, or else the time of arrival |
//! | `delivery_mode` | 2: durable queues keep the message on disk |
//! | `app_id` | `hookswitch` |
//!
//! Messages are mandatory, and the broker confirms each: then a durable queue has it on disk, and a quorum queue
//! on a majority of its machines. Hookswitch declares nothing: the operator of the broker creates exchanges,
//! queues and bindings.
//!
//! | the broker | outcome |
//! |---|---|
//! | confirms | done |
//! | returns the message, since no queue is bound for it | parked |
//! | rejects the message (`nack`), as a full queue does | retried |
//! | has no such exchange (404), or does not let this user publish to it (403) | parked |
//! | refuses the size of the message (311, 406) | parked |
//! | is short of memory or disk, closes the connection, or is unavailable | retried |
//!
//! **Order:** the broker confirms an event of an ordering key before the next event is sent, so a queue has them
//! in order. A duplicate whose confirmation was lost may arrive late, after its successors.
//!
//! **Invariant:** a reason contains the broker's codes and none of its texts, which may quote a routing key.

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

/// The interval of heartbeats, in seconds. A peer that is silent for two intervals counts as gone.
const HEARTBEAT: u16 = 10;

/// The delivery mode of a persistent message, as AMQP numbers it.
const PERSISTENT: u8 = 2;

/// The most bytes of all attributes together: headers are one frame, which common brokers limit to
/// 128 KiB.
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
        context.connects_to(&connector.host, connector.port);
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
            // The library does not see the TLS below it.
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
    /// Contains the password.
    uri: AMQPUri,
    connector: Connector,
    /// The time limit for a new connection.
    connect_timeout: Duration,
    /// The name of the connection in the broker's list of connections.
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

    /// The outcome of an answer. See the module's table.
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

    /// The outcome of a lost channel. See the module's table.
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

/// A short string of AMQP.
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
        event.subjects = vec!["x".repeat(LONGEST_ATTRIBUTES)];
        let context = sample::context();
        let message = Message::new(&CloudEvent::new(&event, &context), Format::Binary);
        assert!(headers(&message).unwrap_err().contains("AMQP takes 65536"));
    }
}
