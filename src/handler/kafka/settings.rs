//! The settings of a `kafka` handler.

use std::fmt;

use rdkafka::ClientConfig;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::{
    cleartext::{self, CleartextWarning},
    client_tls::ClientTls,
    handler::{BuildContext, message::Format},
    secret::Secret,
};

/// The largest values that librdkafka accepts: milliseconds for a message, milliseconds for a missing
/// topic, messages.
const LONGEST_TIMEOUT: u128 = 2_147_483_647;
const LONGEST_PATIENCE: u128 = 3_600_000;
const LARGEST_QUEUE: usize = 10_000_000;

/// Sends each event to a topic of Kafka.
///
/// An event is delivered when all in-sync replicas have it. The build needs OpenSSL's headers and
/// pkg-config (Debian: `libssl-dev`, `pkg-config`).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::handler) struct Settings {
    /// The addresses of some brokers, which name the others.
    #[schemars(with = "Vec<String>")]
    brokers: Brokers,
    /// `false` for no TLS, `true` for TLS, or the CA bundle and the client certificate. By default, TLS
    /// is used unless all brokers are on this machine.
    #[serde(default)]
    #[schemars(schema_with = "Tls::schema")]
    tls: Option<Tls>,
    /// The user name, for SASL.
    username: Option<String>,
    /// The password, for SASL.
    password: Option<Secret>,
    /// The SASL mechanism. The default is `SCRAM-SHA-512`.
    mechanism: Option<Mechanism>,
    /// The topic.
    #[schemars(with = "String")]
    pub(super) topic: Topic,
    /// The form of the message: `structured` is a CloudEvent as JSON, `binary` is its data with the
    /// attributes as headers, `raw` is the provider's own body.
    #[serde(default)]
    pub(super) format: Format,
}

/// A SASL mechanism. The default is the one that reveals the least of a password.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
enum Mechanism {
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl Mechanism {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// At least one broker.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Brokers {
    /// The addresses as librdkafka reads them, separated by commas.
    list: String,
    /// The hosts, by name or address.
    hosts: Vec<String>,
}

impl TryFrom<Vec<String>> for Brokers {
    type Error = String;

    fn try_from(brokers: Vec<String>) -> Result<Self, String> {
        let looks = "a broker looks like \"kafka-1.example.com:9092\"";
        if brokers.is_empty() {
            return Err(format!("no broker is named; {looks}"));
        }
        let mut hosts = Vec::new();
        for broker in &brokers {
            let is_odd = |c: char| c.is_whitespace() || ",/@".contains(c);
            match broker.rsplit_once(':') {
                Some((host, port)) if port.parse::<u16>().is_ok() && !broker.contains(is_odd) => {
                    hosts.push(host.to_owned());
                }
                _ => return Err(format!("a broker is not a host and a port; {looks}")),
            }
        }
        Ok(Self {
            list: brokers.join(","),
            hosts,
        })
    }
}

/// The setting `tls`: a table as for every client, or a boolean, since the address of a broker does
/// not say whether to use TLS.
#[derive(Debug)]
enum Tls {
    Off,
    On(ClientTls),
}

impl Tls {
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let table = generator.subschema_for::<ClientTls>();
        json_schema!({ "anyOf": [{ "type": "boolean" }, table] })
    }
}

impl<'de> Deserialize<'de> for Tls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BooleanOrTable)
    }
}

struct BooleanOrTable;

impl<'de> de::Visitor<'de> for BooleanOrTable {
    type Value = Tls;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`true`, `false`, or a table with `ca`, `certificate` and `key`")
    }

    fn visit_bool<E: de::Error>(self, is_on: bool) -> Result<Tls, E> {
        Ok(match is_on {
            true => Tls::On(ClientTls::default()),
            false => Tls::Off,
        })
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Tls, A::Error> {
        ClientTls::deserialize(de::value::MapAccessDeserializer::new(map)).map(Tls::On)
    }
}

/// How to get TLS.
const TLS: &str = "leave `tls = false` out";

/// The name of a topic.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Topic(pub(super) String);

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

impl Settings {
    /// The configuration of a client.
    ///
    /// # Errors
    ///
    /// When the settings of TLS or of the user contradict each other.
    pub(super) fn client(&self, context: &BuildContext) -> Result<ClientConfig, String> {
        let timeout = context.timeout.as_millis().clamp(10, LONGEST_TIMEOUT);
        let queue = context.concurrency.saturating_mul(4).min(LARGEST_QUEUE);
        let patience = (timeout / 2).min(LONGEST_PATIENCE);
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.brokers.list.as_str())
            .set("client.id", "hookswitch")
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // As in Java's clients, so that all clients put a key into the same partition.
            .set("partitioner", "murmur2_random")
            // A worker waits for each message, so the client must not wait for further ones.
            .set("linger.ms", "0")
            // Less than the time limit of an attempt, so that it ends with the client's own reason. The
            // client checks for expired messages once a second.
            .set("message.timeout.ms", (timeout * 8 / 10).to_string())
            // How long a missing topic may still be a new one.
            .set("topic.metadata.propagation.max.ms", patience.to_string())
            .set("reconnect.backoff.max.ms", "1000")
            // The broker's limit counts; this is the largest that there can be.
            .set("message.max.bytes", "1000000000")
            // Attempts that were given up leave their messages behind for a moment.
            .set("queue.buffering.max.messages", queue.to_string());
        self.set_tls(&mut config);
        let is_user = self.set_user(&mut config)?;
        let protocol = match (is_user, self.is_tls()) {
            (false, false) => "plaintext",
            (false, true) => "ssl",
            (true, false) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        Ok(config)
    }

    /// Names the brokers to `context`.
    pub(super) fn name_servers(&self, context: &mut BuildContext) {
        let brokers = self.brokers.list.split(',');
        let brokers = brokers.filter_map(|broker| broker.rsplit_once(':'));
        for (host, port) in brokers {
            if let Ok(port) = port.parse() {
                context.connects_to(host, port);
            }
        }
    }

    /// The warning about a password that is sent without TLS.
    pub(super) fn cleartext_warning(&self) -> Option<CleartextWarning> {
        if self.password.is_none() || !matches!(self.tls, Some(Tls::Off)) {
            return None;
        }
        CleartextWarning::new("tls", "its password", &self.brokers.hosts, TLS)
    }

    /// Whether TLS is used.
    fn is_tls(&self) -> bool {
        let mut hosts = self.brokers.hosts.iter();
        match &self.tls {
            Some(Tls::Off) => false,
            Some(Tls::On(_)) => true,
            None => hosts.any(|host| !cleartext::is_loopback(host)),
        }
    }

    /// Sets the files of TLS.
    fn set_tls(&self, config: &mut ClientConfig) {
        let Some(Tls::On(tls)) = &self.tls else {
            return;
        };
        if let Some(ca) = tls.ca() {
            config.set("ssl.ca.location", ca.to_string_lossy());
        }
        if let Some((certificate, key)) = tls.identity() {
            config
                .set("ssl.certificate.location", certificate.to_string_lossy())
                .set("ssl.key.location", key.to_string_lossy());
        }
    }

    /// Sets the user and the mechanism, if there are any.
    fn set_user(&self, config: &mut ClientConfig) -> Result<bool, String> {
        let problem = match (&self.username, &self.password) {
            (Some(username), Some(password)) => {
                config
                    .set("sasl.mechanism", self.mechanism.unwrap_or_default().name())
                    .set("sasl.username", username)
                    .set("sasl.password", password.expose());
                return Ok(true);
            }
            (None, None) if self.mechanism.is_none() => return Ok(false),
            (None, None) => "`mechanism` is given without `username` and `password`",
            (Some(_), None) => "`username` is given without `password`",
            (None, Some(_)) => "`password` is given without `username`",
        };
        Err(format!("{problem}; they come together, or not at all"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        handler::sample,
        secret::{self, Sources},
    };

    fn settings(text: &str) -> Result<Settings, String> {
        let sources = Sources {
            env: |_| Some("hush".to_owned()),
            inline: false,
        };
        let table = toml::Deserializer::parse(text).unwrap();
        secret::with(sources, || Settings::deserialize(table))
            .map_err(|error| error.message().to_owned())
    }

    /// The configuration of a client for a broker at `broker`.
    fn client(broker: &str, more: &str) -> Result<ClientConfig, String> {
        let text = format!("brokers = ['{broker}:9093']\ntopic = 't'\n{more}");
        settings(&text)?.client(&sample::build_context())
    }

    #[test]
    fn settings_that_cannot_work_are_refused_while_they_are_read() {
        let sound = |brokers: &str, topic: &str| {
            settings(&format!("brokers = {brokers}\ntopic = {topic:?}"))
                .map(|settings| settings.brokers.list)
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

    const USER: &str = "username = 'a'\npassword = { env = 'A' }";

    #[test]
    fn tls_is_spoken_beyond_this_machine_unless_told_otherwise() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, made.cert.pem()).unwrap();
        let ca = format!("tls.ca = {:?}", file.path());
        let user_without_tls = format!("{USER}\ntls = false");
        for (broker, more, expected) in [
            ("kafka", "", "ssl"),
            ("127.0.0.1", "", "plaintext"),
            ("[::1]", "", "plaintext"),
            ("localhost", "", "plaintext"),
            ("localhost", "tls = true", "ssl"),
            ("localhost", &ca, "ssl"),
            ("kafka", "tls = false", "plaintext"),
            ("kafka", USER, "sasl_ssl"),
            ("localhost", USER, "sasl_plaintext"),
            ("kafka", &user_without_tls, "sasl_plaintext"),
        ] {
            let client = client(broker, more).unwrap();
            let protocol = client.get("security.protocol");
            assert_eq!(protocol, Some(expected), "{broker} {more}");
        }
    }

    #[test]
    fn a_user_has_a_password_and_a_mechanism() {
        for (mechanism, expected) in [
            ("", "SCRAM-SHA-512"),
            ("mechanism = 'SCRAM-SHA-512'", "SCRAM-SHA-512"),
            ("mechanism = 'SCRAM-SHA-256'", "SCRAM-SHA-256"),
            ("mechanism = 'PLAIN'", "PLAIN"),
        ] {
            let client = client("kafka", &format!("{USER}\n{mechanism}")).unwrap();
            assert_eq!(client.get("sasl.mechanism"), Some(expected));
            assert_eq!(client.get("sasl.username"), Some("a"));
            assert_eq!(client.get("sasl.password"), Some("hush"));
            // The library accepts it only if it was built with the mechanism.
            let made = client.create::<rdkafka::producer::BaseProducer>();
            assert!(made.is_ok(), "{mechanism}: {:?}", made.err());
        }
        for (more, why) in [
            ("username = 'a'", "without `password`"),
            ("password = { env = 'A' }", "without `username`"),
            ("mechanism = 'PLAIN'", "`mechanism` is given without"),
            ("mechanism = 'GSSAPI'", "unknown variant"),
            (
                "username = 'a'\npassword = 'hush'",
                "only while every listener",
            ),
        ] {
            let refused = client("kafka", more).unwrap_err();
            assert!(refused.contains(why), "{more}: {refused}");
            assert!(!refused.contains("hush"), "{refused}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = format!("brokers = ['kafka:9093']\ntopic = 't'\n{USER}");
        let settings = settings(&text).unwrap();
        assert!(!format!("{settings:?}").contains("hush"), "{settings:?}");
    }
}
