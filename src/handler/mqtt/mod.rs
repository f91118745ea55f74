//! `mqtt`: publishes a message to a topic for each event, in MQTT 5 at quality of service 1.
//!
//! The message is a [`Message`] in CloudEvents' binding to MQTT 5: the content type is the property of that
//! name, and the attributes are user properties.
//!
//! The value of a field is one level of the topic: `/`, `+`, `#`, `$`, `%` and everything but printable ASCII
//! are percent-encoded.
//!
//! | the broker | outcome |
//! |---|---|
//! | acknowledges (0x00), also without a subscriber (0x10) | done |
//! | does not authorize the topic (0x87), or finds it invalid (0x90) | parked |
//! | refuses the message (0x83, 0x99), its size, or every retained message | parked |
//! | has reached a quota (0x97), or fails (0x80, 0x91) | retried |
//! | closes the connection, or is unavailable | retried |
//!
//! **Order:** the broker acknowledges an event of an ordering key before the next event is sent, and keeps the
//! order of each topic.
//!
//! **Session:** the state of deliveries is in the store alone. Each connection starts clean and leaves no
//! session with the broker (clean start, session expiry 0). When a connection is lost, this side also forgets
//! its unacknowledged messages, since the store hands them out again. So no message is lost, and none is sent
//! that the store has not handed out. The client id stays the same for the life of the handler, so that a new
//! connection ends the old one if the broker still has it.
//!
//! **Invariant:** a reason contains the broker's codes and none of its texts.

mod publisher;
mod settings;

use std::{num::NonZeroU32, time::Duration};

use rumqttc::{Broker, ConnectAuth, MqttOptions, PubAckReason, PublishProperties, SessionMode};
use uuid::Uuid;

use super::{
    AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome,
    broker::{connector::Connector, reconnecting::ReconnectingClient, template::Template},
    cloud_event::{CloudEvent, encode},
    message::{Format, Message},
};
use publisher::{Failure, Publication, Publisher};
use settings::{SCHEMES, is_text};

pub(super) use settings::Settings;

/// The silence after which this side pings the broker, in seconds.
const KEEP_ALIVE: u16 = 10;

impl HandlerKind for Settings {
    const KIND: &'static str = "mqtt";
    const EXAMPLE: &'static str = r#"
[handlers.topic]
kind = "mqtt"
events = ["ringcentral.*"]
url = "mqtts://mqtt.example.com"
username = "hookswitch"
password = { env = "MQTT_PASSWORD" }
# tls = { ca = "/etc/hookswitch/ca.pem", certificate = "/etc/hookswitch/mqtt.pem", key = "/etc/hookswitch/mqtt-key.pem" }
# client_id = "hookswitch-1"
topic = "telephony/{type}"
format = "structured"
retain = false
# expiry = "1d"
connect_timeout = "5s"
"#;
    type Handler = Mqtt;

    fn build(self, context: &mut BuildContext) -> Result<Mqtt, BuildError> {
        context.warn(SCHEMES.cleartext_warning(&self.url.0, self.password.as_ref()));
        let connector = Connector::new(&self.url.0, SCHEMES, &self.tls)?;
        context.connects_to(&connector.host, connector.port);
        let connect_timeout = self.connect_timeout.min(context.timeout);
        Ok(Mqtt {
            options: self.options(connector, connect_timeout),
            concurrency: context.concurrency,
            client: ReconnectingClient::new(connect_timeout),
            topic: self.topic.0,
            format: self.format,
            retain: self.retain,
            expiry: self.expiry,
        })
    }
}

impl Settings {
    fn options(&self, connector: Connector, connect_timeout: Duration) -> MqttOptions {
        let client_id = self.client_id.as_ref().map(|id| id.0.clone());
        let client_id = client_id.unwrap_or_else(random_client_id);
        let broker = Broker::tcp(connector.host.as_str(), connector.port);
        let password = self.password.as_ref();
        let password = password.map(|secret| secret.expose().to_owned().into());
        let mut options = MqttOptions::new(client_id, broker);
        options
            .set_keep_alive(KEEP_ALIVE)
            .set_session_mode(SessionMode::Clean)
            .set_connect_timeout(connect_timeout)
            .set_auth(match (self.username.clone(), password) {
                (None, None) => ConnectAuth::None,
                (Some(username), None) => ConnectAuth::Username { username },
                (None, Some(password)) => ConnectAuth::Password { password },
                (Some(username), Some(password)) => {
                    ConnectAuth::UsernamePassword { username, password }
                }
            })
            .set_socket_connector(move |_, _| {
                let connector = connector.clone();
                async move {
                    let stream =
                        Connector::connect((connector.host.as_str(), connector.port)).await?;
                    connector.secure(stream).await
                }
            });
        options
    }
}

/// A random client id that every broker accepts: 23 letters and digits.
fn random_client_id() -> String {
    let id = Uuid::now_v7().simple().to_string();
    // The end of such an id is random; its beginning is the time.
    format!("hookswitch{}", id.get(19..).unwrap_or_default())
}

/// The handler.
pub(super) struct Mqtt {
    /// Contain the password.
    options: MqttOptions,
    concurrency: usize,
    client: ReconnectingClient<Publisher>,
    topic: Template,
    format: Format,
    retain: bool,
    /// In seconds.
    expiry: Option<NonZeroU32>,
}

impl Handler for Mqtt {
    type Event = AnyEvent;

    async fn handle(&self, delivery: Delivery<'_, AnyEvent>) -> Outcome {
        let message = match self.compose(&delivery) {
            Ok(message) => message,
            Err(why) => return Outcome::park(why),
        };
        let connect = Publisher::open(self.options.clone(), self.concurrency);
        let publisher = match self.client.connection(connect).await {
            Ok(publisher) => publisher,
            Err(unconnected) => return Outcome::retry(unconnected),
        };
        match publisher.publish(message).await {
            Ok(code) => judge(code),
            Err(lost @ Failure::Lost) => Outcome::retry(lost),
            Err(failure @ (Failure::TooLarge { .. } | Failure::NotRetained | Failure::NoTopic)) => {
                Outcome::park(failure)
            }
        }
    }
}

impl Mqtt {
    fn compose(&self, delivery: &Delivery<'_, AnyEvent>) -> Result<Publication, String> {
        let event = delivery.notification;
        let message = Message::new(&CloudEvent::new(event, delivery.context), self.format);
        let topic = self
            .topic
            .name(event, delivery.context, |_, text| level(text));
        let properties = PublishProperties {
            message_expiry_interval: self.expiry.map(NonZeroU32::get),
            content_type: Some(message.content_type.to_owned()),
            user_properties: message
                .attributes_beside_content_type()
                .map(|(name, text)| (name.to_owned(), text.to_owned()))
                .collect(),
            ..PublishProperties::default()
        };
        let texts = properties.user_properties.iter().map(|(_, text)| text);
        if let Some(long) = texts.chain([&topic]).find(|text| !is_text(text)) {
            return Err(format!(
                "the topic or an attribute would be {} bytes long; MQTT takes {}",
                long.len(),
                u16::MAX
            ));
        }
        Ok(Publication {
            topic,
            retain: self.retain,
            properties,
            body: message.body,
        })
    }
}

/// The value of a field as one level of a topic.
fn level(value: &str) -> String {
    encode(value, |byte| {
        byte.is_ascii_graphic() && !b"/+#$%".contains(&byte)
    })
}

/// The outcome of an answer. See the module's table.
fn judge(code: PubAckReason) -> Outcome {
    let number = code as u8;
    match code {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Outcome::Done,
        PubAckReason::NotAuthorized => Outcome::park(format!(
            "the broker does not let this user publish to the event's topic (0x{number:02x})"
        )),
        PubAckReason::TopicNameInvalid => Outcome::park(format!(
            "the broker does not take the event's topic (0x{number:02x})"
        )),
        PubAckReason::ImplementationSpecificError | PubAckReason::PayloadFormatInvalid => {
            Outcome::park(format!(
                "the broker does not take such a message (0x{number:02x})"
            ))
        }
        PubAckReason::UnspecifiedError
        | PubAckReason::PacketIdentifierInUse
        | PubAckReason::QuotaExceeded => Outcome::retry(format!(
            "the broker could not take the message (0x{number:02x})"
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::{settings::Topic, *};
    use crate::handler::sample;

    fn settings(more: &str) -> Result<Settings, String> {
        let toml = format!("{{ url = \"mqtt://localhost\", topic = \"t\", {more} }}");
        let value = toml::de::ValueDeserializer::parse(&toml).map_err(|bad| bad.to_string())?;
        Settings::deserialize(value).map_err(|problem| problem.to_string())
    }

    fn topic(topic: &str) -> Result<Topic, String> {
        let template = Template::try_from(topic.to_owned())?;
        Topic::try_from(template).map_err(str::to_owned)
    }

    #[test]
    fn a_value_is_one_level_whatever_is_in_it() {
        assert_eq!(level("a.b:c-d_e"), "a.b:c-d_e");
        assert_eq!(
            level("$SYS/+/# 50%\0\u{e9}"),
            "%24SYS%2F%2B%2F%23%2050%25%00%C3%A9"
        );
    }

    #[test]
    fn a_topic_that_nobody_may_publish_to_is_refused_while_it_is_read() {
        for good in ["telephony", "{subject}", "/a//b/", "a$b/{type}"] {
            assert!(topic(good).is_ok(), "{good}");
        }
        for bad in ["", "$SYS/{type}", "a/+/b", "{type}/#", "a\u{0}b", "{topic}"] {
            assert!(topic(bad).is_err(), "{bad}");
        }
        let long = "x".repeat(usize::from(u16::MAX) + 1);
        assert!(topic(&long).is_err());
    }

    #[test]
    fn settings_that_cannot_work_are_refused_while_they_are_read() {
        assert!(settings("client_id = \"one\", retain = true, expiry = \"1d\"").is_ok());
        for bad in [
            "client_id = \"\"",
            "client_id = \"a\\u0000b\"",
            "expiry = \"1ms\"",
            "retain = 1",
            "format = \"xml\"",
            "qos = 2",
        ] {
            assert!(settings(bad).is_err(), "{bad}");
        }
        for url in [
            "mqtt://localhost/topic",
            "mqtt://me:hush@localhost",
            "http://hush",
        ] {
            let toml = format!("{{ url = {url:?}, topic = \"t\" }}");
            let value = toml::de::ValueDeserializer::parse(&toml).unwrap();
            let problem = Settings::deserialize(value).unwrap_err().to_string();
            assert!(!problem.contains("hush"), "{problem}");
        }
    }

    #[test]
    fn a_client_id_of_its_own_making_is_one_that_every_broker_takes() {
        let (one, other) = (random_client_id(), random_client_id());
        assert_ne!(one, other);
        assert_eq!(one.len(), 23);
        assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }

    #[test]
    fn authorities_without_tls_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&path, made.cert.pem()).unwrap();
        let refused = settings(&format!("tls.ca = {path:?}"))
            .unwrap()
            .build(&mut sample::build_context());
        let problem = refused.err().unwrap().to_string();
        assert!(problem.contains("mqtts://"), "{problem}");
    }

    #[test]
    fn each_answer_has_its_outcome() {
        for (code, outcome) in [
            (PubAckReason::Success, "Done"),
            (PubAckReason::NoMatchingSubscribers, "Done"),
            (PubAckReason::UnspecifiedError, "Retry"),
            (PubAckReason::ImplementationSpecificError, "Park"),
            (PubAckReason::NotAuthorized, "Park"),
            (PubAckReason::TopicNameInvalid, "Park"),
            (PubAckReason::PacketIdentifierInUse, "Retry"),
            (PubAckReason::QuotaExceeded, "Retry"),
            (PubAckReason::PayloadFormatInvalid, "Park"),
        ] {
            let judged = format!("{:?}", judge(code));
            assert!(judged.starts_with(outcome), "{code:?}: {judged}");
        }
    }
}
