//! The settings of a PostgreSQL store.

use std::{fmt, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use crate::{
    cleartext::CleartextWarning,
    client_tls::ClientTls,
    postgres_url::{self, beyond, split_ssl_mode},
    quantity,
    secret::Secret,
};

/// The limit for connecting to one of the hosts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a peer may leave sent bytes unacknowledged, and the idle time before a keep-alive
/// probe: a primary that vanishes silently must be noticed.
const SILENCE: Duration = Duration::from_secs(5);

/// The settings of a PostgreSQL store.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The database and the credentials.
    #[schemars(with = "Secret")]
    pub url: DatabaseUrl,
    /// The CA bundle and the client certificate.
    #[serde(default)]
    pub tls: ClientTls,
    /// The most connections for claims, settlements and maintenance: 2 to 100, half of them for
    /// claims. Each replica has five more connections, for appends, notifications and maintenance.
    #[serde(default = "default_connections", deserialize_with = "connections")]
    pub connections: usize,
    /// The limit of one statement: 1 second to 1 minute.
    #[serde(
        default = "default_statement_timeout",
        deserialize_with = "statement_timeout",
        serialize_with = "quantity::duration::serialize"
    )]
    #[schemars(with = "quantity::Time")]
    pub statement_timeout: Duration,
    /// The term of a claim: 5 seconds to 1 hour. A claim is renewed while its replica lives.
    #[serde(
        default = "default_lease",
        deserialize_with = "lease",
        serialize_with = "quantity::duration::serialize"
    )]
    #[schemars(with = "quantity::Time")]
    pub lease: Duration,
    /// How long events are kept after their last delivery is finished. Duplicates are recognized
    /// for as long.
    #[serde(default = "crate::store::default_retain", with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub retain: Duration,
    /// How long after the last replica named a handler the handler's open deliveries are parked: at
    /// least 1 minute.
    #[serde(
        default = "default_abandon_after",
        deserialize_with = "abandon_after",
        serialize_with = "quantity::duration::serialize"
    )]
    #[schemars(with = "quantity::Time")]
    pub abandon_after: Duration,
}

impl Settings {
    /// The setting `tls`.
    ///
    /// # Errors
    ///
    /// When the URL disables TLS or verification, and `tls` asks for it.
    pub(super) fn tls(&self) -> Result<&ClientTls, String> {
        match self.url.tls {
            Tls::Disable => self.tls.require_unset(postgres_url::TLS)?,
            Tls::Require if self.tls.ca().is_some() => {
                let cure = postgres_url::TLS;
                return Err(format!(
                    "`tls.ca` is given, but with the URL's sslmode whoever answers is believed; \
                     {cure}"
                ));
            }
            Tls::Require | Tls::VerifyFull => {}
        }
        Ok(&self.tls)
    }
}

const fn default_connections() -> usize {
    8
}

const fn default_statement_timeout() -> Duration {
    Duration::from_secs(5)
}

const fn default_lease() -> Duration {
    Duration::from_secs(30)
}

const fn default_abandon_after() -> Duration {
    Duration::from_mins(10)
}

fn connections<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let connections = usize::deserialize(deserializer)?;
    if (2..=100).contains(&connections) {
        return Ok(connections);
    }
    Err(de::Error::custom(format!(
        "{connections} connections are out of range; there can be 2 to 100"
    )))
}

fn statement_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    between(deserializer, 1, 60, "a statement may take 1s to 1m")
}

fn lease<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    between(deserializer, 5, 3600, "a lease lasts 5s to 1h")
}

fn abandon_after<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let most = 100 * 365 * 24 * 3600;
    between(deserializer, 60, most, "a handler is missed for 1m or more")
}

/// Reads a duration from `least` to `most` seconds.
fn between<'de, D: Deserializer<'de>>(
    deserializer: D,
    least: u64,
    most: u64,
    rule: &str,
) -> Result<Duration, D::Error> {
    let time = quantity::duration::deserialize(deserializer)?;
    if (Duration::from_secs(least)..=Duration::from_secs(most)).contains(&time) {
        return Ok(time);
    }
    Err(de::Error::custom(format!(
        "the time is out of range; {rule}"
    )))
}

/// What TLS must prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    /// No TLS.
    Disable,
    /// The connection is encrypted. The server's identity is not verified.
    Require,
    /// The connection is encrypted, and the server's certificate is verified.
    VerifyFull,
}

/// A `postgres://` URL, which contains a password. It may name several hosts; the one that accepts
/// writes is used.
#[derive(Clone)]
pub struct DatabaseUrl {
    pub(super) config: tokio_postgres::Config,
    pub(super) tls: Tls,
}

impl DatabaseUrl {
    /// The warning about a password that is sent without TLS.
    pub(super) fn cleartext_warning(&self) -> Option<CleartextWarning> {
        let is_exposed = self.tls == Tls::Disable && self.config.get_password().is_some();
        is_exposed.then(|| postgres_url::cleartext_warning(&self.config))?
    }

    /// The configurations of the connections: one for each host, in the order of the URL.
    pub(super) fn hosts(&self) -> Vec<tokio_postgres::Config> {
        let all = &self.config;
        let ports = all.get_ports();
        let each = all.get_hosts().iter().enumerate().map(|(number, host)| {
            let mut one = tokio_postgres::Config::new();
            match host {
                Host::Tcp(name) => one.host(name),
                #[cfg(unix)]
                Host::Unix(path) => one.host_path(path),
            };
            if let Some(address) = all.get_hostaddrs().get(number) {
                one.hostaddr(*address);
            }
            if let Some(port) = ports.get(number).or(ports.first()) {
                one.port(*port);
            }
            if let Some(password) = all.get_password() {
                one.password(password);
            }
            if let Some(options) = all.get_options() {
                one.options(options);
            }
            one.user(all.get_user().unwrap_or_default());
            one.dbname(all.get_dbname().unwrap_or_default());
            one.application_name(all.get_application_name().unwrap_or("hookswitch"));
            one.channel_binding(all.get_channel_binding());
            complete(&mut one, self.tls);
            one
        });
        each.collect()
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DatabaseUrl")
            .field(&self.config.get_hosts())
            .finish()
    }
}

impl fmt::Display for DatabaseUrl {
    /// The hosts and the database, without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.config.get_hosts().iter().map(host_name);
        let database = self.config.get_dbname().unwrap_or_default();
        write!(f, "{}/{database}", hosts.collect::<Vec<_>>().join(","))
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secret = Secret::deserialize(deserializer)?;
        secret.expose().parse().map_err(de::Error::custom)
    }
}

/// Why a text is not a database URL. The error contains nothing of the text.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseUrlError {
    /// The text is something else.
    #[error(
        "the text is not a URL of a database; one looks like \
         \"postgres://user:password@db.example.com:5432/hookswitch\""
    )]
    NotUrl,
    /// A part is missing.
    #[error(
        "the URL names no {0}; a whole one looks like \
         \"postgres://user:password@db.example.com:5432/hookswitch\""
    )]
    Lacks(&'static str),
    /// The value of `sslmode` is unknown.
    #[error(
        "the URL's sslmode is not known here; it can be \"disable\", \"require\" (encrypted, but \
         whoever answers is believed) or \"verify-full\", which holds where nothing is said, but \
         for hosts on this machine"
    )]
    SslMode,
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<Self, DatabaseUrlError> {
        if !["postgres://", "postgresql://"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
        {
            return Err(DatabaseUrlError::NotUrl);
        }
        let (text, mode) = split_ssl_mode(text);
        let config: tokio_postgres::Config = text.parse().map_err(|_| DatabaseUrlError::NotUrl)?;
        if config.get_hosts().is_empty() {
            return Err(DatabaseUrlError::Lacks("host"));
        }
        if config.get_user().is_none_or(str::is_empty) {
            return Err(DatabaseUrlError::Lacks("user"));
        }
        if config.get_dbname().is_none_or(str::is_empty) {
            return Err(DatabaseUrlError::Lacks("database"));
        }
        let tls = match mode {
            Some("disable") => Tls::Disable,
            Some("require") => Tls::Require,
            Some("verify-full") => Tls::VerifyFull,
            Some(_) => return Err(DatabaseUrlError::SslMode),
            None if beyond(&config).is_empty() => Tls::Disable,
            None => Tls::VerifyFull,
        };
        Ok(Self { config, tls })
    }
}

/// Sets the options that do not come from the URL.
fn complete(config: &mut tokio_postgres::Config, tls: Tls) {
    config.ssl_mode(match tls {
        Tls::Disable => SslMode::Disable,
        Tls::Require | Tls::VerifyFull => SslMode::Require,
    });
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    config.connect_timeout(CONNECT_TIMEOUT);
    config.tcp_user_timeout(SILENCE);
    config.keepalives_idle(SILENCE);
    config.keepalives_interval(SILENCE / 2);
    config.keepalives_retries(2);
}

fn host_name(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        #[cfg(unix)]
        Host::Unix(path) => path.display().to_string(),
    }
}
