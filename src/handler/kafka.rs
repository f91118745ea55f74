//! `kafka`: a message to a topic for each event.
//!
//! What is sent is a [`Message`] in CloudEvents' Kafka binding: its content type is the header
//! `content-type`, and in the binary form its attributes are `ce_` headers, in UTF-8.
//!
//! The message's key is the event's, and the partition is chosen by it as Java's clients choose: so
//! events of one key are in one partition, in order, for as long as the topic has as many partitions.
//! The producer is idempotent: what it sends again for itself is not there twice. What the dispatcher
//! sends again may be, after an answer that was lost; the event's id tells copies apart.
//!
//! | answer | outcome |
//! |---|---|
//! | confirmed by all in-sync replicas (`acks=all`) | done |
//! | too large, invalid, refused by a policy | parked |
//! | no such topic, no right to write to it | parked |
//! | none in time, too few replicas, the queue is full, any other | tried again |
//!
//! librdkafka is built without OpenSSL, the one library that it can do TLS with: there is neither TLS
//! nor a password here, which must not travel without it. Use a listener in a network that you
//! trust, or a proxy on this machine that does both.
//!
//! **Invariant:** no message waits in the client for longer than an attempt does, and no more of them
//! than some for each delivery at once.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use rdkafka::{
    ClientConfig, ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer},
};
use serde::Deserialize;

use super::{
    AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome,
    cloud_event::CloudEvent,
    message::{Format, Message},
};

/// The largest values that librdkafka takes: milliseconds for a message, milliseconds for a topic
/// that is not there, messages.
const LONGEST_TIMEOUT: u128 = 2_147_483_647;
const LONGEST_PATIENCE: u128 = 3_600_000;
const LARGEST_QUEUE: usize = 10_000_000;

/// What the TOML says of a `kafka` handler.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Some brokers, who name the others.
    brokers: Brokers,
    /// Where messages go.
    topic: Topic,
    /// What a message is.
    #[serde(default)]
    format: Format,
}

/// Brokers as librdkafka has them: with commas between.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Brokers(String);

impl TryFrom<Vec<String>> for Brokers {
    type Error = String;

    fn try_from(brokers: Vec<String>) -> Result<Self, String> {
        let looks = "a broker looks like \"kafka-1.example.com:9092\"";
        if brokers.is_empty() {
            return Err(format!("no broker is named; {looks}"));
        }
        for broker in &brokers {
            let port = broker.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            let is_odd = |c: char| c.is_whitespace() || ",/@".contains(c);
            if broker.contains(is_odd) || !matches!(port, Some(Ok(_))) {
                return Err(format!("a broker is not a host and a port; {looks}"));
            }
        }
        Ok(Self(brokers.join(",")))
    }
}

/// The name of a topic.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Topic(String);

impl TryFrom<String> for Topic {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=249).contains(&name.len()) && name.bytes().all(fits) && name != "." && name != ".."
        {
            return Ok(Self(name));
        }
        Err(format!(
            "{name:?} is not the name of a topic: 1 to 249 letters, digits, full stops, underscores and hyphens"
        ))
    }
}

impl HandlerKind for Settings {
    const KIND: &'static str = "kafka";
    const EXAMPLE: &'static str = r#"
[handlers.bus]
kind = "kafka"
events = ["*"]
brokers = ["kafka-1.example.com:9092", "kafka-2.example.com:9092"]   # without TLS
topic = "telephony"
format = "structured"               # or "binary", "raw"
retry = { attempts = 12, first = "1s", ceiling = "1h" }
order = "key"                       # or "none"
concurrency = 8
timeout = "10s"
"#;
    type Handler = Kafka;

    fn build(self, context: &BuildContext) -> Result<Kafka, BuildError> {
        let timeout = context.timeout.as_millis().clamp(10, LONGEST_TIMEOUT);
        let queue = context.concurrency.saturating_mul(4).min(LARGEST_QUEUE);
        let patience = (timeout / 2).min(LONGEST_PATIENCE);
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.brokers.0)
            .set("client.id", "hookswitch")
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // As Java's clients do, so that all of them put one key into one partition.
            .set("partitioner", "murmur2_random")
            // A worker waits for each message: there are no others to wait for.
            .set("linger.ms", "0")
            // A little less than an attempt has, so that it ends with the client's own reason.
            .set("message.timeout.ms", (timeout * 9 / 10).to_string())
            // How long a topic that is not there may turn out to be a new one.
            .set("topic.metadata.propagation.max.ms", patience.to_string())
            .set("reconnect.backoff.max.ms", "1000")
            // The broker's limit is the one that counts; this is the largest one there can be.
            .set("message.max.bytes", "1000000000")
            // Attempts that were given up leave theirs behind for a moment.
            .set("queue.buffering.max.messages", queue.to_string());
        Ok(Kafka {
            config,
            topic: self.topic.0,
            format: self.format,
            trouble: Trouble::default(),
            producer: Mutex::default(),
        })
    }
}

/// The handler.
pub(super) struct Kafka {
    config: ClientConfig,
    topic: String,
    format: Format,
    trouble: Trouble,
    /// Made for the first delivery, and anew after a failure from which it does not recover.
    producer: Mutex<Option<FutureProducer<Trouble>>>,
}

impl std::fmt::Debug for Kafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

impl Handler for Kafka {
    type Event = AnyEvent;

    async fn handle(&self, delivery: Delivery<'_, AnyEvent>) -> Outcome {
        let sending = self.producer().and_then(|producer| {
            let event = CloudEvent::new(delivery.notification, delivery.context);
            let message = Message::new(&event, self.format);
            let key = event.key();
            let record = FutureRecord {
                topic: &self.topic,
                partition: None,
                payload: Some(message.body.as_ref()),
                key: key.as_deref(),
                timestamp: None,
                headers: Some(headers(&message)),
            };
            producer.send_result(record).map_err(|(error, _)| error)
        });
        let answer = match sending {
            Ok(confirmation) => confirmation.await,
            Err(error) => return self.judge(&error),
        };
        match answer {
            Ok(Ok(_)) => Outcome::Done,
            Ok(Err((error, _))) => self.judge(&error),
            Err(_) => Outcome::retry("the client ended before the broker answered"),
        }
    }
}

impl Kafka {
    fn producer(&self) -> Result<FutureProducer<Trouble>, KafkaError> {
        let mut producer = self.lock();
        let is_broken =
            |producer: &mut FutureProducer<_>| producer.client().fatal_error().is_some();
        retire(producer.take_if(is_broken));
        if let Some(producer) = &*producer {
            return Ok(producer.clone());
        }
        let made = self.config.create_with_context(self.trouble.clone())?;
        Ok(producer.insert(made).clone())
    }

    /// A panic while it was locked leaves it as sound as it was.
    fn lock(&self) -> MutexGuard<'_, Option<FutureProducer<Trouble>>> {
        self.producer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an error means. See the module's table.
    fn judge(&self, error: &KafkaError) -> Outcome {
        use RDKafkaErrorCode as Code;
        let code = error.rdkafka_error_code();
        match code {
            Some(
                Code::MessageSizeTooLarge
                | Code::InvalidMessage
                | Code::InvalidRecord
                | Code::PolicyViolation
                | Code::UnknownTopic
                | Code::UnknownTopicOrPartition
                | Code::InvalidTopic
                | Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed,
            ) => Outcome::park(format!("Kafka refused: {error}")),
            Some(Code::MessageTimedOut) => Outcome::retry(format!(
                "no broker confirmed it in time; last trouble: {}",
                self.trouble.last()
            )),
            _ => Outcome::retry(format!("Kafka did not take it: {error}")),
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        retire(self.lock().take());
    }
}

/// Lets go of a producer where that may block: it waits for its threads.
fn retire(producer: Option<FutureProducer<Trouble>>) {
    if let Some(producer) = producer {
        thread::spawn(move || drop(producer));
    }
}

fn headers(message: &Message) -> OwnedHeaders {
    let headers = OwnedHeaders::new().insert(Header {
        key: "content-type",
        value: Some(message.content_type),
    });
    let attributes = message.attributes_beside_content_type();
    attributes.fold(headers, |headers, (name, text)| {
        headers.insert(Header {
            key: &format!("ce_{name}"),
            value: Some(text),
        })
    })
}

/// What last went wrong between the client and the brokers.
#[derive(Clone, Default)]
struct Trouble(Arc<Mutex<String>>);

impl Trouble {
    fn last(&self) -> String {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_empty() {
            return "none".to_owned();
        }
        last.clone()
    }
}

impl ClientContext for Trouble {
    fn error(&self, _: KafkaError, reason: &str) {
        reason.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings(text: &str) -> Result<Settings, String> {
        let table = toml::Deserializer::parse(text).unwrap();
        Settings::deserialize(table).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn the_client_takes_whatever_the_timeout_and_the_concurrency_are() {
        for (concurrency, timeout) in [(1, Duration::from_nanos(1)), (usize::MAX, Duration::MAX)] {
            let settings = settings("brokers = ['127.0.0.1:9']\ntopic = 't'").unwrap();
            let handler = settings.build(&BuildContext {
                name: "bus".into(),
                concurrency,
                timeout,
            });
            assert!(handler.unwrap().producer().is_ok());
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_while_they_are_read() {
        let sound = |brokers: &str, topic: &str| {
            settings(&format!("brokers = {brokers}\ntopic = {topic:?}"))
                .map(|settings| settings.brokers.0)
        };
        let two = sound("['one:9092', '[::1]:9093']", "a.b_c-D1");
        assert_eq!(two.as_deref(), Ok("one:9092,[::1]:9093"));
        for (brokers, topic, why) in [
            ("[]", "t", "no broker"),
            ("['hush']", "t", "a broker looks like"),
            ("['one:9092,two:9092']", "t", "a broker looks like"),
            ("['SASL://u:hush@one:9092']", "t", "a broker looks like"),
            ("['one:9092']", "", "name of a topic"),
            ("['one:9092']", "a b", "name of a topic"),
            ("['one:9092']", "..", "name of a topic"),
        ] {
            let refused = sound(brokers, topic).unwrap_err();
            assert!(refused.contains(why), "{brokers} {topic}: {refused}");
            assert!(!refused.contains("hush"), "{refused}");
        }
    }
}
