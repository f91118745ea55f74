//! What the TOML says of an `amqp` handler.

use std::time::Duration;

use lapin::types::ShortString;
use reqwest::Url;
use serde::Deserialize;

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
    /// The broker's part to speak with.
    #[serde(default = "Name::slash")]
    pub(super) vhost: Name,
    /// As whom.
    pub(super) username: Option<String>,
    /// What proves it.
    pub(super) password: Option<Secret>,
    /// The CA bundle and the client certificate.
    #[serde(default)]
    pub(super) tls: ClientTls,
    /// The exchange, which must be there; `""` is the broker's own, which routes to the queue that
    /// the routing key names.
    pub(super) exchange: Name,
    /// The routing key.
    #[serde(default = "Template::event_name")]
    pub(super) routing_key: Template,
    /// What is sent.
    #[serde(default)]
    pub(super) format: Format,
    /// How long a connection may take to be made.
    #[serde(default = "handler::connect_timeout", with = "quantity::duration")]
    pub(super) connect_timeout: Duration,
}

/// How AMQP writes addresses.
pub(super) const SCHEMES: Schemes = Schemes {
    plain: ("amqp", 5672),
    tls: ("amqps", 5671),
};

/// Where a broker is.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Address(pub(super) Url);

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let example = "amqps://rabbitmq.example.com";
        let place = "the virtual host is for `vhost` to say";
        SCHEMES.url(&text, example, place).map(Self)
    }
}

/// The name of an exchange or a virtual host.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Name(pub(super) ShortString);

impl Name {
    /// The virtual host that every broker begins with.
    fn slash() -> Self {
        Self("/".into())
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let length = name.len();
        ShortString::try_new(name)
            .map(Self)
            .map_err(|_| format!("a name has at most 255 bytes in AMQP; this one has {length}"))
    }
}
