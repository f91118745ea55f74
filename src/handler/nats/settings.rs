//! The settings of a `nats` handler.

use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{auth::Auth, subject::Subject};
use crate::{
    cleartext::CleartextWarning,
    client_tls::ClientTls,
    handler::{self, broker::url, message::Format},
    quantity,
};

/// Publishes each event to a JetStream stream of NATS.
///
/// The stream must exist. An event is delivered when the stream has acknowledged it. The header
/// `Nats-Msg-Id` lets the stream drop duplicates.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::handler) struct Settings {
    /// The URLs of servers of one cluster. `tls` at one of them uses TLS with all.
    #[schemars(with = "Vec<String>")]
    pub(super) servers: Servers,
    /// The subject, with fields in braces: `{type}` is the event name, `{provider}` its first
    /// word, `{endpoint}` and `{handler}` are the names in this file, `{key}` is the partition key,
    /// `{subject}` a phone number or an extension id, `{id}` the id of the event. `-` stands for what
    /// an event does not have.
    #[schemars(with = "String")]
    pub(super) subject: Subject,
    /// The form of the message: `structured` is a CloudEvent as JSON, `binary` is its data with the
    /// attributes as headers, `raw` is the provider's own body.
    #[serde(default)]
    pub(super) format: Format,
    /// The credentials, in one of four forms.
    auth: Option<Auth>,
    /// The CA bundle and the client certificate.
    #[serde(default)]
    tls: ClientTls,
    /// The time limit for a new connection to one server, within `timeout`.
    #[serde(default = "handler::connect_timeout", with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    connect_timeout: Duration,
}

/// How to get TLS.
const TLS: &str = "begin the URLs of `servers` with \"tls://\"";

/// The interval of pings on a silent connection.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// At least one server.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Vec<Server>")]
pub(super) struct Servers(pub(super) Vec<ServerAddr>);

impl TryFrom<Vec<Server>> for Servers {
    type Error = &'static str;

    fn try_from(servers: Vec<Server>) -> Result<Self, Self::Error> {
        match servers.is_empty() {
            true => Err("there is no server; name one, such as [\"tls://nats.example.com:4222\"]"),
            false => Ok(Self(servers.into_iter().map(|server| server.0).collect())),
        }
    }
}

/// One server.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Server(ServerAddr);

impl TryFrom<String> for Server {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let url = url::read(&text, &["tls", "nats"], "tls://nats.example.com:4222")?;
        let address = ServerAddr::from_url(url);
        address.map(Self).map_err(|error| error.to_string())
    }
}

impl Settings {
    /// Checks that `tls` is set only if a server uses TLS.
    ///
    /// # Errors
    ///
    /// When `tls` is set without such a server.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.is_tls() {
            true => Ok(()),
            false => self.tls.require_unset(TLS),
        }
    }

    /// Whether TLS is used. A server may name others of its cluster without a scheme, so one URL with TLS
    /// means TLS with all.
    fn is_tls(&self) -> bool {
        self.servers.0.iter().any(ServerAddr::tls_required)
    }

    /// The longest time that it takes to try all servers.
    pub(super) fn longest_connect(&self) -> Duration {
        let servers = u32::try_from(self.servers.0.len()).unwrap_or(u32::MAX);
        self.connect_timeout.saturating_mul(servers)
    }

    /// The warning about credentials that are sent without TLS.
    pub(super) fn cleartext_warning(&self) -> Option<CleartextWarning> {
        let credential = self.auth.as_ref()?.credential()?;
        if self.is_tls() {
            return None;
        }
        let servers = self.servers.0.iter().map(ServerAddr::host);
        CleartextWarning::new("servers", credential, servers, TLS)
    }

    /// The options of a connection.
    pub(super) fn options(&self) -> ConnectOptions {
        let options = ConnectOptions::new()
            .name("hookswitch")
            .require_tls(self.is_tls())
            .connection_timeout(self.connect_timeout)
            .ping_interval(PING_INTERVAL)
            // One try for each server: see [`super::connection`].
            .max_reconnects(self.servers.0.len());
        let options = match self.tls.ca() {
            Some(ca) => options.add_root_certificates(ca.to_owned()),
            None => options,
        };
        let options = match self.tls.identity() {
            Some((certificate, key)) => {
                options.add_client_certificate(certificate.to_owned(), key.to_owned())
            }
            None => options,
        };
        match &self.auth {
            Some(auth) => auth.show(options),
            None => options,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        let value = toml::de::ValueDeserializer::parse(text).unwrap();
        Settings::deserialize(value).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn settings_that_cannot_work_are_refused_while_they_are_read() {
        let subject = "subject = \"a\"";
        let servers = "servers = [\"nats://127.0.0.1\", \"tls://nats.example.com:4222\"]";
        assert!(read(&format!("{{ {servers}, {subject} }}")).is_ok());
        for (text, why) in [
            (format!("{{ {servers} }}"), "missing field `subject`"),
            (
                format!("{{ {subject}, servers = [] }}"),
                "there is no server",
            ),
            (
                format!("{{ {subject}, servers = [\"nats://a:hush@b\"] }}"),
                "settings of their own",
            ),
            (
                format!("{{ {subject}, servers = [\"ws://example.com\"] }}"),
                "scheme is not",
            ),
            (
                format!("{{ {subject}, {servers}, tls = {{ ca = \"/nonexistent\" }} }}"),
                "cannot be read",
            ),
        ] {
            let refused = read(&text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
            assert!(!refused.contains("hush"), "{refused}");
        }
    }
}
