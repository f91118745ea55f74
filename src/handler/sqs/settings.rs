//! The settings of an `sqs` handler.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    credentials::Keys,
    queue::{Queue, Region},
};
use crate::{
    client_tls::ClientTls,
    handler::{self, message::Format, text_or_secret::TextOrSecret},
    quantity,
    secret::Secret,
};

/// Sends each event to a queue of Amazon SQS.
///
/// An event is delivered when SQS has answered with the id of the message. In a FIFO queue, the partition
/// key is the message group, and duplicates are dropped, except replays.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::handler) struct Settings {
    /// The URL of the queue. The name of a FIFO queue ends in `.fifo`. `https` uses TLS, `http` does not.
    #[schemars(with = "String")]
    pub(super) queue_url: Queue,
    /// The region. Required where the URL does not name it.
    #[schemars(with = "Option<String>")]
    region: Option<Region>,
    /// The access key. Without it, the credentials come from where AWS's own tools find them: the
    /// environment, a profile, a pod's web identity, a container's agent, an EC2 instance's metadata.
    access_key_id: Option<TextOrSecret>,
    /// The secret of the access key.
    secret_access_key: Option<Secret>,
    /// The session token of temporary credentials.
    session_token: Option<Secret>,
    /// The CA bundle and the client certificate.
    #[serde(default)]
    tls: ClientTls,
    /// The form of the message: `structured` is a CloudEvent as JSON, `raw` is the provider's own body.
    /// A message has too few attributes for `binary`.
    #[serde(default)]
    #[schemars(with = "String", extend("enum" = ["structured", "raw"], "default" = "structured"))]
    pub(super) format: Form,
    /// The time limit for a new connection, within `timeout`.
    #[serde(default = "handler::connect_timeout", with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub(super) connect_timeout: Duration,
}

/// A [`Format`] that fits into a message.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "Format")]
pub(super) struct Form(pub(super) Format);

impl TryFrom<Format> for Form {
    type Error = &'static str;

    fn try_from(format: Format) -> Result<Self, Self::Error> {
        match format {
            Format::Structured | Format::Raw => Ok(Self(format)),
            Format::Binary => Err(
                "a message has room for ten attributes, which are fewer than a CloudEvent has; use \
                 \"structured\" or \"raw\"",
            ),
        }
    }
}

impl Settings {
    /// The region for signatures.
    ///
    /// # Errors
    ///
    /// When neither the URL nor the setting names a region, or they name different ones.
    pub(super) fn region(&self) -> Result<String, String> {
        match (self.queue_url.region(), &self.region) {
            (Some(named), Some(region)) if named != region.0 => Err(format!(
                "`region` is {:?}, and the queue's URL is in {named:?}; leave `region` out",
                region.0
            )),
            (_, Some(region)) => Ok(region.0.clone()),
            (Some(named), None) => Ok(named.to_owned()),
            (None, None) => Err(
                "the queue's URL does not say which region it is in; add `region`, such as \
                 \"eu-west-1\""
                    .to_owned(),
            ),
        }
    }

    /// The keys, if the settings have any.
    ///
    /// # Errors
    ///
    /// When only some of the keys are set.
    pub(super) fn keys(&self) -> Result<Option<Keys>, String> {
        let (given, missing) = match (&self.access_key_id, &self.secret_access_key) {
            (Some(id), Some(secret)) => {
                return Ok(Some(Keys {
                    id: id.clone(),
                    secret: secret.clone(),
                    token: self.session_token.clone(),
                }));
            }
            (None, None) if self.session_token.is_none() => return Ok(None),
            (None, None) => ("session_token", "access_key_id"),
            (Some(_), None) => ("access_key_id", "secret_access_key"),
            (None, Some(_)) => ("secret_access_key", "access_key_id"),
        };
        Err(format!(
            "`{given}` is given without `{missing}`; they come together, or not at all"
        ))
    }

    /// The setting `tls`.
    ///
    /// # Errors
    ///
    /// When `tls` is set and the URL uses no TLS.
    pub(super) fn tls(&self) -> Result<&ClientTls, String> {
        if !self.queue_url.is_tls() {
            self.tls
                .require_unset("begin `queue_url` with \"https://\"")?;
        }
        Ok(&self.tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        handler::{HandlerKind, sample},
        secret::{self, Sources},
    };

    /// Settings for a queue at `scheme`, with `more`.
    fn settings(scheme: &str, more: &str) -> Settings {
        let sources = Sources {
            env: |_| Some("hush".to_owned()),
            inline: false,
        };
        let text = format!("queue_url = '{scheme}://sqs.eu-west-1.amazonaws.com/1/q'\n{more}");
        let table = toml::Deserializer::parse(&text).unwrap();
        secret::with(sources, || Settings::deserialize(table)).unwrap()
    }

    #[test]
    fn secrets_are_not_shown() {
        let keys = "access_key_id = { env = 'A' }\nsecret_access_key = { env = 'A' }\n\
                    session_token = { env = 'A' }";
        let settings = settings("http", keys);
        assert!(!format!("{settings:?}").contains("hush"), "{settings:?}");
        let handler = settings.build(&mut sample::build_context());
        assert!(!format!("{handler:?}").contains("hush"), "{handler:?}");
    }
}
