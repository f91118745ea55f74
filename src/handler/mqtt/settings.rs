//! What the TOML says of an `mqtt` handler.

use std::{num::NonZeroU32, time::Duration};

use reqwest::Url;
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

/// Settings, which are checked while they are read as far as each one can be by itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::handler) struct Settings {
    /// Where to.
    pub(super) url: Address,
    /// As whom.
    pub(super) username: Option<String>,
    /// What proves it.
    pub(super) password: Option<Secret>,
    /// The CA bundle and the client certificate.
    #[serde(default)]
    pub(super) tls: ClientTls,
    /// What the broker knows this client by; one of its own making, where nothing is said.
    pub(super) client_id: Option<Text>,
    /// Where to in the broker.
    pub(super) topic: Topic,
    /// What is sent.
    #[serde(default)]
    pub(super) format: Format,
    /// Whether the broker keeps the last message of each topic for whoever subscribes later.
    #[serde(default)]
    pub(super) retain: bool,
    /// How long the broker keeps a message for a subscriber who is away, in seconds; as long as it
    /// likes, where nothing is said.
    #[serde(default, deserialize_with = "seconds")]
    pub(super) expiry: Option<NonZeroU32>,
    /// How long a connection may take to be made.
    #[serde(default = "handler::connect_timeout", with = "quantity::duration")]
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

/// How MQTT writes addresses.
pub(super) const SCHEMES: Schemes = Schemes {
    plain: ("mqtt", 1883),
    tls: ("mqtts", 8883),
};

/// Where a broker is.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Address(pub(super) Url);

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let example = "mqtts://mqtt.example.com";
        let place = "which topic is for `topic` to say";
        SCHEMES.url(&text, example, place).map(Self)
    }
}

/// How long a text may be in MQTT, in bytes.
const LONGEST: usize = u16::MAX as usize;

/// Whether MQTT can carry `text`.
pub(super) fn is_text(text: &str) -> bool {
    text.len() <= LONGEST && !text.contains(char::is_control)
}

/// A text that MQTT can carry.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Text(pub(super) String);

impl TryFrom<String> for Text {
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

/// What makes a topic of an event.
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
