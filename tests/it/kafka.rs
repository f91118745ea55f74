//! The handler kind `kafka`, through the real service and the mock brokers of librdkafka, since
//! there is no package of a real broker.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use serde_json::Value;

use crate::{
    harness::{ENDPOINTS, Home, Service, cnam, eventually},
    support::relay::Relay,
};

const TOPIC: &str = "telephony";
const PARTITIONS: i32 = 3;

/// A lock that tests share while they start processes, and that a test holds alone while it closes
/// a broker's listener. A process that is being started inherits all descriptors until its program
/// runs, the listener too. librdkafka, which opens the listener again on the same port, aborts if
/// that fails.
static STARTS: RwLock<()> = RwLock::new(());

/// A broker, and the messages in its topic.
struct Kafka {
    // Dropped first, since it leaves the cluster.
    consumer: BaseConsumer,
    cluster: MockCluster<'static, DefaultProducerContext>,
    received: Vec<Received>,
}

/// A message as a consumer receives it.
struct Received {
    partition: i32,
    key: String,
    headers: BTreeMap<String, String>,
    body: Value,
}

impl Received {
    fn serial(&self) -> &str {
        self.body["data"]["payload"]["object"]["cnam"]
            .as_str()
            .unwrap()
    }
}

impl Kafka {
    fn start() -> Self {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, PARTITIONS, 1).unwrap();
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", "tests")
            .set("enable.auto.commit", "false")
            .set("reconnect.backoff.max.ms", "100")
            .create()
            .unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            let from = partitions.add_partition_offset(TOPIC, partition, Offset::Beginning);
            from.unwrap();
        }
        consumer.assign(&partitions).unwrap();
        Self {
            consumer,
            cluster,
            received: Vec::new(),
        }
    }

    fn handler(&self, extra: &str) -> String {
        handler("bus", &self.cluster.bootstrap_servers(), extra)
    }

    /// The messages received so far.
    fn received(&mut self) -> &[Received] {
        while let Some(Ok(message)) = self.consumer.poll(Duration::from_millis(20)) {
            let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
            let headers = message.headers().unwrap().iter();
            self.received.push(Received {
                partition: message.partition(),
                key: text(message.key()),
                headers: headers
                    .map(|header| (header.key.to_owned(), text(header.value)))
                    .collect(),
                body: serde_json::from_slice(message.payload().unwrap()).unwrap(),
            });
        }
        &self.received
    }

    /// The serials of `key`, each where it first occurs.
    fn serials(&mut self, key: &str) -> Vec<String> {
        let mut serials = Vec::new();
        for message in self.received().iter().filter(|it| it.key == key) {
            let serial = message.serial().to_owned();
            if !serials.contains(&serial) {
                serials.push(serial);
            }
        }
        serials
    }
}

/// A handler with quick retries.
fn handler(name: &str, broker: &str, extra: &str) -> String {
    format!(
        r#"
[handlers.{name}]
kind = "kafka"
events = ["zoom.number-management.*"]
brokers = ["{broker}"]
topic = "{TOPIC}"
timeout = "2s"
retry = {{ attempts = 100000, first = "20ms", ceiling = "50ms" }}
{extra}
"#
    )
}

fn key(carrier: u32) -> String {
    format!("zoom.number-management/acct-{carrier}/{carrier}")
}

fn post(service: &Service, serials: std::ops::Range<u64>) {
    for serial in serials {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
        assert_eq!(service.zoom(&cnam(2, serial)).status, 200);
    }
}

#[test]
fn an_event_is_a_message_under_its_key_in_either_form() {
    let _turn = STARTS.read().unwrap_or_else(PoisonError::into_inner);
    let mut kafka = Kafka::start();
    let home = Home::new(&[ENDPOINTS, &kafka.handler("")]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the event has arrived", || kafka.received().len() == 1);

    home.configure(&[ENDPOINTS, &kafka.handler("format = \"binary\"")]);
    service.signal("HUP");
    eventually("the reload is applied", || {
        service.metric(r#"hookswitch_reloads_total{result="applied"}"#) > 0.0
    });
    assert_eq!(service.zoom(&cnam(1, 2)).status, 200);
    eventually("the event has arrived", || kafka.received().len() == 2);

    let [structured, binary] = kafka.received() else {
        panic!("there are more than two messages");
    };
    assert_eq!(structured.key, key(1));
    assert_eq!(binary.key, key(1));
    assert_eq!(structured.partition, binary.partition);
    let content_type = (
        "content-type".to_owned(),
        "application/cloudevents+json".to_owned(),
    );
    assert_eq!(structured.headers, BTreeMap::from([content_type]));
    assert_eq!(structured.body["specversion"], "1.0");
    assert_eq!(structured.serial(), "serial 1");

    let header = |name: &str| binary.headers[name].as_str();
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("ce_specversion"), "1.0");
    assert_eq!(header("ce_type"), structured.body["type"]);
    assert_eq!(header("ce_source"), structured.body["source"]);
    assert_eq!(header("ce_subject"), "+12025550001");
    assert_eq!(header("ce_partitionkey"), key(1));
    assert_ne!(header("ce_id"), structured.body["id"]);
    let sent: Value = serde_json::from_str(&cnam(1, 2)).unwrap();
    assert_eq!(binary.body, sent);
}

#[test]
fn a_broker_gets_everything_in_order_after_an_outage() {
    let _turn = STARTS.write().unwrap_or_else(PoisonError::into_inner);
    let mut kafka = Kafka::start();
    kafka.cluster.broker_down(1).unwrap();
    let home = Home::new(&[ENDPOINTS, &kafka.handler("")]);
    let service = home.start();
    post(&service, 0..10);
    let why = "no broker confirmed it in time; last trouble: ";
    eventually("the log gives the reason", || service.log().contains(why));
    kafka.cluster.broker_up(1).unwrap();
    eventually("the earlier events have arrived", || {
        kafka.received().len() >= 20
    });
    post(&service, 10..20);
    eventually("some later events have arrived", || {
        kafka.received().len() > 20
    });
    kafka.cluster.broker_down(1).unwrap();
    post(&service, 20..30);
    kafka.cluster.broker_up(1).unwrap();
    let expected: Vec<_> = (0..30).map(|serial| format!("serial {serial}")).collect();
    for carrier in [1, 2] {
        eventually("all events have arrived", || {
            kafka.serials(&key(carrier)).len() == 30
        });
        assert_eq!(kafka.serials(&key(carrier)), expected);
    }
}

#[test]
fn messages_that_kafka_refuses_are_parked_with_the_reason() {
    let _turn = STARTS.read().unwrap_or_else(PoisonError::into_inner);
    use RDKafkaRespErr as Error;
    type Refuse = fn(&Kafka);
    let cases: [(Refuse, &str); 4] = [
        (
            |kafka| {
                let error = Error::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
                kafka
                    .cluster
                    .request_errors(RDKafkaApiKey::Produce, &[error]);
            },
            "Message size too large",
        ),
        (
            |kafka| {
                let error = Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
                kafka
                    .cluster
                    .request_errors(RDKafkaApiKey::Produce, &[error]);
            },
            "Topic authorization failed",
        ),
        (
            |kafka| {
                let error = Error::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
                kafka.cluster.topic_error(TOPIC, error).unwrap();
            },
            "Unknown topic",
        ),
        (
            |kafka| {
                let error = Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
                kafka.cluster.topic_error(TOPIC, error).unwrap();
            },
            "Topic authorization failed",
        ),
    ];
    for (refuse, why) in cases {
        let kafka = Kafka::start();
        refuse(&kafka);
        let home = Home::new(&[ENDPOINTS, &kafka.handler("")]);
        let service = home.start();
        assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
        let mut reason = String::new();
        eventually(why, || {
            let parked = home.json(&["parked", "list"]);
            reason = parked[0]["why"].as_str().unwrap_or_default().to_owned();
            !reason.is_empty()
        });
        assert!(reason.contains(why), "{reason}");
    }
}

#[test]
fn too_few_replicas_are_retried() {
    let _turn = STARTS.read().unwrap_or_else(PoisonError::into_inner);
    let mut kafka = Kafka::start();
    let few = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
    kafka
        .cluster
        .request_errors(RDKafkaApiKey::Produce, &[few; 4]);
    let home = Home::new(&[ENDPOINTS, &kafka.handler("")]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the event has arrived", || {
        kafka.serials(&key(1)) == ["serial 1"]
    });
    assert_eq!(home.json(&["parked", "list"]), serde_json::json!([]));
}

#[test]
fn over_tls_both_sides_are_verified_by_the_ca() {
    let _turn = STARTS.read().unwrap_or_else(PoisonError::into_inner);
    let mut kafka = Kafka::start();
    let relay = Relay::start(kafka.cluster.bootstrap_servers().parse().unwrap());
    let broker = relay.address.to_string();
    let home = Home::new(&[]);
    std::fs::write(home.path().join("ca.pem"), &relay.tls.authority).unwrap();
    let shown = relay.tls.client.settings(home.path());
    let ca = "tls.ca = \"{dir}/ca.pem\"";
    home.configure(&[
        ENDPOINTS,
        &handler("known", &broker, &format!("{ca}\n{shown}")),
        &handler("nameless", &broker, ca),
        &handler("wary", &broker, "tls = true"),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    let done = r#"hookswitch_deliveries_total{handler="known",outcome="done"}"#;
    eventually("the event is confirmed", || service.metric(done) == 1.0);
    for (name, why) in [
        ("nameless", "alert certificate required"),
        (
            "wary",
            "broker certificate could not be verified, verify that `tls.ca` is correctly configured",
        ),
    ] {
        eventually(why, || {
            let log = service.log();
            let mut reasons = log
                .lines()
                .filter(|line| line.contains(&format!(" to {name} ")));
            reasons.any(|reason| reason.contains(why))
        });
    }
    assert_eq!(kafka.serials(&key(1)), ["serial 1"]);
    assert_eq!(kafka.received().len(), 1);
}
