//! The settings of a `redis` handler.

use std::{fs, io, num::NonZeroU64, time::Duration};

use redis::{
    Client, ClientTlsConfig, ConnectionInfo, IntoConnectionInfo, RedisError, TlsCertificates,
};
use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    cleartext::CleartextWarning,
    client_tls::ClientTls,
    handler::{self, BuildContext, broker::url, message::Format},
    quantity,
    secret::Secret,
};

/// Adds each event to a Redis stream.
///
/// An event is delivered when the server has replied to `XADD`, and when `wait` is fulfilled.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::handler) struct Settings {
    /// The URL of the server, with the number of the database. `rediss` uses TLS, `redis` does not.
    #[schemars(with = "String")]
    url: ServerUrl,
    /// The name of an ACL user. The default is the user `default`.
    username: Option<String>,
    /// The password.
    password: Option<Secret>,
    /// The CA bundle and the client certificate.
    #[serde(default)]
    tls: ClientTls,
    /// The key of the stream.
    #[schemars(with = "String")]
    pub(super) stream: Stream,
    /// About how many entries the stream keeps. Without it, the stream grows for ever.
    pub(super) maxlen: Option<NonZeroU64>,
    /// The form of the entry: `structured` is a CloudEvent as JSON, `binary` is its data with the
    /// attributes as fields, `raw` is the provider's own body.
    #[serde(default)]
    pub(super) format: Format,
    /// What must have an entry, besides the memory of the server, before the entry counts as delivered:
    /// `replicas` of them, and with `fsync = true` (from Redis 7.2) the disks as well, within `timeout`.
    pub(super) wait: Option<Wait>,
    /// The time limit for a new connection, within `timeout`.
    #[serde(default = "handler::connect_timeout", with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub(super) connect_timeout: Duration,
}

/// The URL of a server, with the number of a database.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
struct ServerUrl(Url, ConnectionInfo);

/// How to get TLS.
const TLS: &str = "begin `url` with \"rediss://\"";

impl ServerUrl {
    fn is_tls(&self) -> bool {
        self.0.scheme() == "rediss"
    }
}

impl TryFrom<String> for ServerUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let example = "rediss://redis.example.com:6379/0";
        let url: Url = url::read(&text, &["rediss", "redis"], example)?;
        let info = url.clone().into_connection_info().map_err(|error| {
            let problem = error.to_string();
            format!("the URL cannot be used: {problem}; it looks like {example:?}")
        })?;
        Ok(Self(url, info))
    }
}

/// The key of a stream.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Stream(pub(super) String);

impl TryFrom<String> for Stream {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        match name.is_empty() {
            true => Err("the stream's name is empty; name it, such as \"telephony\""),
            false => Ok(Self(name)),
        }
    }
}

/// What must have an entry before the entry counts as delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "WaitTable")]
pub(super) struct Wait {
    pub(super) replicas: u32,
    pub(super) fsync: bool,
    pub(super) timeout: Duration,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WaitTable {
    /// The number of replicas.
    #[serde(default)]
    replicas: u32,
    /// Whether the disks of the server and of the replicas must have the entry, from Redis 7.2.
    #[serde(default)]
    fsync: bool,
    /// The time limit. An entry that is not confirmed by then is added again.
    #[serde(default = "wait_timeout", with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    timeout: Duration,
}

const fn wait_timeout() -> Duration {
    Duration::from_secs(1)
}

impl TryFrom<WaitTable> for Wait {
    type Error = &'static str;

    fn try_from(table: WaitTable) -> Result<Self, Self::Error> {
        let WaitTable {
            replicas,
            fsync,
            timeout,
        } = table;
        if replicas == 0 && !fsync {
            return Err("there is nothing to wait for; set `replicas`, or `fsync = true`");
        }
        if timeout.as_millis() == 0 {
            return Err("`timeout` is less than a millisecond, which the server takes for ever");
        }
        Ok(Self {
            replicas,
            fsync,
            timeout,
        })
    }
}

impl Settings {
    /// The client of the server.
    ///
    /// # Errors
    ///
    /// When the settings of TLS contradict each other, or their files can no longer be read.
    pub(super) fn client(&self) -> Result<Client, String> {
        let ServerUrl(_, info) = self.url.clone();
        let mut redis = info.redis_settings().clone();
        if let Some(username) = &self.username {
            redis = redis.set_username(username);
        }
        if let Some(password) = &self.password {
            redis = redis.set_password(password.expose());
        }
        let info = info.set_redis_settings(redis);
        let client = if self.url.is_tls() {
            certificates(&self.tls)
                .map_err(RedisError::from)
                .and_then(|certificates| Client::build_with_tls(info, certificates))
        } else {
            self.tls.require_unset(TLS)?;
            Client::open(info)
        };
        client.map_err(|error| error.category().to_owned())
    }

    /// Names the server to `context`.
    pub(super) fn name_server(&self, context: &mut BuildContext) {
        let url = &self.url.0;
        if let Some(host) = url.host_str() {
            context.connects_to(host, url.port().unwrap_or(6379));
        }
    }

    /// The warning about a password that is sent without TLS.
    pub(super) fn cleartext_warning(&self) -> Option<CleartextWarning> {
        if self.password.is_none() || self.url.is_tls() {
            return None;
        }
        CleartextWarning::new("url", "its password", self.url.0.host_str(), TLS)
    }

    /// The contradiction between settings, if there is one.
    pub(super) fn contradiction(&self, timeout: Duration) -> Option<&'static str> {
        if self.username.is_some() && self.password.is_none() {
            return Some("`username` is there without `password`; add it, or take both away");
        }
        if self.wait.is_some_and(|wait| wait.timeout >= timeout) {
            return Some("`wait.timeout` is not shorter than `timeout`; make it so");
        }
        None
    }
}

/// The contents of the files of `tls`.
fn certificates(tls: &ClientTls) -> io::Result<TlsCertificates> {
    let identity = tls.identity().map(|(certificate, key)| {
        io::Result::Ok(ClientTlsConfig {
            client_cert: fs::read(certificate)?,
            client_key: fs::read(key)?,
        })
    });
    Ok(TlsCertificates {
        client_tls: identity.transpose()?,
        root_cert: tls.ca().map(fs::read).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{self, Sources};

    fn read(more: &str) -> Result<Settings, String> {
        let sources = Sources {
            env: |_| Some("hush".to_owned()),
            inline: false,
        };
        let text = match more.contains("url = ") {
            true => format!("{{ stream = \"a\", {more} }}"),
            false => format!("{{ stream = \"a\", url = \"redis://localhost\", {more} }}"),
        };
        let value = toml::de::ValueDeserializer::parse(&text).unwrap();
        secret::with(sources, || Settings::deserialize(value))
            .map_err(|error| error.message().to_owned())
    }

    #[test]
    fn settings_that_cannot_work_are_refused_while_they_are_read() {
        for more in ["", "url = \"rediss://[::1]:6380/5\"", "maxlen = 1"] {
            assert!(read(more).is_ok(), "{more}");
        }
        for (more, why) in [
            ("url = \"redis://:hush@a\"", "settings of their own"),
            ("url = \"rediss://a#insecure\"", "more than where"),
            ("url = \"redis://a/first\"", "Invalid database number"),
            ("url = \"http://a\"", "scheme is not"),
            ("maxlen = 0", "nonzero"),
            (
                "password = \"hush\"",
                "only while every listener is on loopback",
            ),
            ("wait = {}", "nothing to wait for"),
            ("wait = { replicas = 1, timeout = \"0s\" }", "for ever"),
            ("wait = { disks = 1 }", "unknown field"),
        ] {
            let refused = read(more).map(|_| ()).unwrap_err();
            assert!(refused.contains(why), "{more}: {refused}");
            assert!(!refused.contains("hush"), "{refused}");
        }
    }

    #[test]
    fn settings_that_contradict_each_other_are_reported() {
        for (more, why) in [
            ("username = \"a\"", Some("without `password`")),
            ("username = \"a\", password = { env = \"A\" }", None),
            ("password = { env = \"A\" }", None),
            (
                "wait = { replicas = 1, timeout = \"10s\" }",
                Some("not shorter"),
            ),
            ("wait = { fsync = true, timeout = \"9s\" }", None),
        ] {
            let problem = read(more).unwrap().contradiction(Duration::from_secs(10));
            assert_eq!(problem.is_some(), why.is_some(), "{more}: {problem:?}");
            assert!(
                problem
                    .unwrap_or_default()
                    .contains(why.unwrap_or_default())
            );
        }
    }

    #[test]
    fn what_is_said_of_tls_is_refused_without_it() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let setting = |name: &str, pem: String| {
            let path = folder.path().join(name);
            fs::write(&path, pem).unwrap();
            format!("{name} = {path:?}")
        };
        let ca = setting("tls.ca", made.cert.pem());
        let certificate = setting("tls.certificate", made.cert.pem());
        let key = setting("tls.key", made.signing_key.serialize_pem());
        for more in [ca, format!("{certificate}, {key}")] {
            let refused = read(&more).unwrap().client().err().unwrap();
            assert!(refused.contains("with \"rediss://\""), "{refused}");
            let secure = format!("{more}, url = \"rediss://a\"");
            assert!(read(&secure).unwrap().client().is_ok());
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let settings = read("password = { env = \"A\" }").unwrap();
        assert!(!format!("{settings:?}").contains("hush"), "{settings:?}");
    }
}
