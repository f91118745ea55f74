//! The settings of an `amqp` handler.

use std::time::Duration;

use lapin::types::ShortString;
use reqwest::Url;
use schemars::JsonSchema;
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

/// Publishes each event to an exchange of an AMQP 0-9-1 broker such as RabbitMQ.
///
/// Exchanges and queues must exist: hookswitch declares none. An event is delivered when the broker has
/// confirmed it. An event that no queue is bound for is parked.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::handler) struct Settings {
    /// The URL of the broker. `amqps` uses TLS, `amqp` does not.
    #[schemars(with = "String")]
    pub(super) url: BrokerUrl,
    /// The virtual host.
    #[serde(default = "Name::slash")]
    #[schemars(with = "String", extend("default" = Name::SLASH))]
    pub(super) vhost: Name,
    /// The user name. The default is `guest`.
    pub(super) username: Option<String>,
    /// The password. The default is `guest`.
    pub(super) password: Option<Secret>,
    /// The CA bundle and the client certificate.
    #[serde(default)]
    pub(super) tls: ClientTls,
    /// The exchange, which must exist. `""` is the default exchange, which routes to the queue that
    /// the routing key names.
    #[schemars(with = "String")]
    pub(super) exchange: Name,
    /// The routing key, with fields in braces: `{type}` is the event name, `{provider}` its first
    /// word, `{endpoint}` and `{handler}` are the names in this file, `{key}` is the partition key,
    /// `{subject}` a phone number or an extension id, `{id}` the id of the event. `-` stands for what
    /// an event does not have.
    #[serde(default = "Template::event_name")]
    #[schemars(with = "String", extend("default" = Template::EVENT_NAME))]
    pub(super) routing_key: Template,
    /// The form of the message: `structured` is a CloudEvent as JSON, `binary` is its data with the
    /// attributes as headers, `raw` is the provider's own body.
    #[serde(default)]
    pub(super) format: Format,
    /// The time limit for a new connection, within `timeout`.
    #[serde(default = "handler::connect_timeout", with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub(super) connect_timeout: Duration,
}

/// The schemes of AMQP.
pub(super) const SCHEMES: Schemes = Schemes {
    plain: ("amqp", 5672),
    tls: ("amqps", 5671),
};

/// The URL of a broker.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct BrokerUrl(pub(super) Url);

impl TryFrom<String> for BrokerUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let example = "amqps://rabbitmq.example.com";
        let instead = "the virtual host is for `vhost` to say";
        SCHEMES.url(&text, example, instead).map(Self)
    }
}

/// The name of an exchange or a virtual host.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Name(pub(super) ShortString);

impl Name {
    /// The virtual host that every broker begins with.
    const SLASH: &str = "/";

    fn slash() -> Self {
        Self(Self::SLASH.into())
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
