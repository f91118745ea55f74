//! `kafka`: produces a message to a topic for each event.
//!
//! The message is a [`Message`] in CloudEvents' Kafka binding: the content type is the header `content-type`,
//! and in the binary form the attributes are `ce_` headers, in UTF-8.
//!
//! The message's key is the event's partition key. It selects the partition as in Java's clients. So events of
//! one ordering key are in one partition, in order, as long as the topic keeps its number of partitions. Events of
//! several ordering keys may be out of order. The producer is idempotent, so its own retries make no duplicates. A
//! retry of the dispatcher after a lost answer may make one; consumers recognize it by the event's id.
//!
//! | answer | outcome |
//! |---|---|
//! | confirmed by all in-sync replicas (`acks=all`) | done |
//! | too large, invalid, refused by a policy | parked |
//! | no such topic, no right to write to it | parked |
//! | none in time, too few replicas, the queue is full, any other | retried |
//!
//! **TLS** is used with brokers on other machines unless `tls = false`. It is librdkafka's own TLS, by the
//! system's OpenSSL, since librdkafka supports no other library. The default CA bundle is OpenSSL's. A password is
//! sent by SASL, and without TLS to another machine only with `tls = false`.
//!
//! The tests use librdkafka's mock broker, which has neither TLS nor SASL. TLS is tested by a relay before the
//! broker. Of SASL, only the configuration of the client is tested.
//!
//! **Invariant:** a message waits in the client at most a second longer than its attempt, and the number of waiting
//! messages is limited by the number of concurrent deliveries.

mod settings;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer},
};
use tokio::time::timeout;

use super::{
    AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome,
    cloud_event::CloudEvent,
    message::{Format, Message},
};

pub(super) use settings::Settings;

impl HandlerKind for Settings {
    const KIND: &'static str = "kafka";
    const EXAMPLE: &'static str = r#"
[handlers.kafka]
kind = "kafka"
events = ["*"]
brokers = ["kafka-1.example.com:9093", "kafka-2.example.com:9093"]
# tls = { ca = "/etc/hookswitch/ca.pem", certificate = "/etc/hookswitch/kafka.pem", key = "/etc/hookswitch/kafka-key.pem" }
username = "hookswitch"
password = { env = "KAFKA_PASSWORD" }
mechanism = "SCRAM-SHA-512"
topic = "telephony"
format = "structured"
"#;
    type Handler = Kafka;

    fn build(self, context: &mut BuildContext) -> Result<Kafka, BuildError> {
        context.warn(self.cleartext_warning());
        self.name_servers(context);
        let config = self.client(context).map_err(BuildError)?;
        Ok(Kafka {
            config,
            patience: context.timeout - context.timeout / 20,
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
    /// The time limit of a confirmation: a little less than that of an attempt, so that the attempt ends with
    /// a reason even if the client is late.
    patience: Duration,
    topic: String,
    format: Format,
    trouble: Trouble,
    /// Created for the first delivery, and again after a failure from which it cannot recover.
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
            Ok(confirmation) => timeout(self.patience, confirmation).await,
            Err(error) => return self.judge(&error),
        };
        match answer {
            Ok(Ok(Ok(_))) => Outcome::Done,
            Ok(Ok(Err((error, _)))) => self.judge(&error),
            Ok(Err(_)) => Outcome::retry("the client ended before the broker answered"),
            Err(_) => self.unconfirmed(),
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

    /// A panic while it was locked leaves it consistent.
    fn lock(&self) -> MutexGuard<'_, Option<FutureProducer<Trouble>>> {
        self.producer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The outcome of an error. See the module's table.
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
            Some(Code::MessageTimedOut) => self.unconfirmed(),
            _ => Outcome::retry(format!("Kafka did not take it: {error}")),
        }
    }

    fn unconfirmed(&self) -> Outcome {
        let trouble = self.trouble.last();
        Outcome::retry(format!(
            "no broker confirmed it in time; last trouble: {trouble}"
        ))
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        retire(self.lock().take());
    }
}

/// Drops a producer where it may block: it waits for its threads.
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

/// The last error between the client and the brokers.
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
    fn error(&self, error: KafkaError, reason: &str) {
        // It follows the error of the last broker, and says less.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        // The client names its own setting, which has another name here.
        let reason = reason.replace("ssl.ca.location", "`tls.ca`");
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::Deserialize;

    use super::*;

    fn settings(text: &str) -> Result<Settings, String> {
        let table = toml::Deserializer::parse(text).unwrap();
        Settings::deserialize(table).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn the_client_takes_whatever_the_timeout_and_the_concurrency_are() {
        for (concurrency, timeout) in [(1, Duration::from_nanos(1)), (usize::MAX, Duration::MAX)] {
            let settings = settings("brokers = ['127.0.0.1:9']\ntopic = 't'").unwrap();
            let mut context = BuildContext::new("bus".into(), concurrency, timeout);
            let handler = settings.build(&mut context);
            assert!(handler.unwrap().producer().is_ok());
        }
    }
}
