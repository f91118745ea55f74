//! The settings of an `mqtt` handler.

use std::{num::NonZeroU32, time::Duration};

use reqwest::Url;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

use crate::{
    client_tls::ClientTls,
    handler::{
        self,
        broker::{connector::Schemes, template::Template},
        message::Format,
    },
    quantity,
    secret::Secret,
};

/// Publishes each event to a topic of an MQTT 5 broker.
///
/// An event is delivered when the broker has acknowledged it, at quality of service 1.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::handler) struct Settings {
    /// The URL of the broker. `mqtts` uses TLS, `mqtt` does not.
    #[schemars(with = "String")]
    pub(super) url: BrokerUrl,
    /// The user name.
    pub(super) username: Option<String>,
    /// The password.
    pub(super) password: Option<Secret>,
    /// The CA bundle and the client certificate.
    #[serde(default)]
    pub(super) tls: ClientTls,
    /// The client identifier. Each replica needs its own. The default is random.
    #[schemars(with = "Option<String>")]
    pub(super) client_id: Option<ClientId>,
    /// The topic, with fields in braces: `{type}` is the event name, `{provider}` its first
    /// word, `{endpoint}` and `{handler}` are the names in this file, `{key}` is the partition key,
    /// `{subject}` a phone number or an extension id, `{id}` the id of the event. `-` stands for what
    /// an event does not have. Each value is
    /// one level: `/`, `+`, `#`, `$`, `%` and all but printable ASCII are percent-encoded.
    #[schemars(with = "String")]
    pub(super) topic: Topic,
    /// The form of the message: `structured` is a CloudEvent as JSON, `binary` is its data with the
    /// attributes as user properties, `raw` is the provider's own body.
    #[serde(default)]
    pub(super) format: Format,
    /// Whether the broker keeps the last message of each topic for later subscribers.
    #[serde(default)]
    pub(super) retain: bool,
    /// How long the broker keeps a message for a subscriber that is away. Without it, the broker sets
    /// no limit.
    #[serde(default, deserialize_with = "seconds")]
    #[schemars(with = "Option<quantity::Time>")]
    pub(super) expiry: Option<NonZeroU32>,
    /// The time limit for a new connection, within `timeout`.
    #[serde(default = "handler::connect_timeout", with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub(super) connect_timeout: Duration,
}

/// MQTT counts whole seconds.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NonZeroU32>, D::Error> {
    let duration = quantity::duration::deserialize(deserializer)?;
    let seconds = u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    let seconds = NonZeroU32::new(seconds).ok_or_else(|| {
        de::Error::custom("the shortest expiry is one second; leave it out for none")
    })?;
    Ok(Some(seconds))
}

/// The schemes of MQTT.
pub(super) const SCHEMES: Schemes = Schemes {
    plain: ("mqtt", 1883),
    tls: ("mqtts", 8883),
};

/// The URL of a broker.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct BrokerUrl(pub(super) Url);

impl TryFrom<String> for BrokerUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let example = "mqtts://mqtt.example.com";
        let instead = "which topic is for `topic` to say";
        SCHEMES.url(&text, example, instead).map(Self)
    }
}

/// The most bytes of a text in MQTT.
const LONGEST: usize = u16::MAX as usize;

/// Whether MQTT can carry `text`.
pub(super) fn is_text(text: &str) -> bool {
    text.len() <= LONGEST && !text.contains(char::is_control)
}

/// A client identifier.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct ClientId(pub(super) String);

impl TryFrom<String> for ClientId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() || !is_text(&text) {
            return Err(format!(
                "a client id has 1 to {LONGEST} bytes and no control characters; leave it out to \
                 have one made"
            ));
        }
        Ok(Self(text))
    }
}

/// The template of a topic.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Template")]
pub(super) struct Topic(pub(super) Template);

impl TryFrom<Template> for Topic {
    type Error = &'static str;

    fn try_from(template: Template) -> Result<Self, Self::Error> {
        let plain = template.plain();
        if plain.starts_with('$') {
            return Err("topics that begin with $ are the broker's own; begin it otherwise");
        }
        if plain.is_empty() || !is_text(&plain) || plain.contains(['+', '#']) {
            return Err(
                "a topic has at least one character, no + and no #, and no control characters",
            );
        }
        Ok(Self(template))
    }
}
