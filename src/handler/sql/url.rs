//! The URL of a database.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use crate::secret::Secret;

/// A URL in the TOML itself, or a reference to a secret. A URL with a password is a secret, and is in the TOML
/// itself only where secrets may be.
#[derive(Clone, Debug)]
pub(super) struct DatabaseUrl(Secret);

impl DatabaseUrl {
    /// The text. The name marks each place that exposes it.
    pub(super) fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UrlOrReference).map(Self)
    }
}

struct UrlOrReference;

impl<'de> de::Visitor<'de> for UrlOrReference {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a URL, or a secret: { env = \"NAME\" } or { file = \"/path\" }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
        if may_hold_a_password(text) {
            return Secret::deserialize(de::value::StrDeserializer::new(text));
        }
        Ok(Secret::derived(text.to_owned()))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Secret, A::Error> {
        Secret::deserialize(de::value::MapAccessDeserializer::new(map))
    }
}

/// Whether a password precedes an `@`, or follows a `password=`. The text need not be a valid URL, so nothing
/// more is assumed.
fn may_hold_a_password(text: &str) -> bool {
    let behind_scheme = text.split_once("://").map_or(text, |(_, rest)| rest);
    let before_host = behind_scheme.rsplit_once('@').map(|(user, _)| user);
    before_host.is_some_and(|user| user.contains(':')) || text.contains("password=")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{Sources, with};

    fn read(text: &str, inline: bool) -> Result<String, String> {
        let sources = Sources {
            env: |_| Some("db://u:hush@host".to_owned()),
            inline,
        };
        let value = toml::de::ValueDeserializer::parse(text).unwrap();
        let address = with(sources, || DatabaseUrl::deserialize(value));
        let address = address.map_err(|error| error.message().to_owned())?;
        assert!(!format!("{address:?}").contains("hush"));
        Ok(address.expose().to_owned())
    }

    #[test]
    fn a_url_with_a_password_is_a_secret() {
        for text in [
            "\"db://u:hush@host\"",
            "\"db://u:hu/sh@host/x\"",
            "\"db://u:hush@one:1,two:2/x\"",
            "\"db://host/x?password=hush\"",
        ] {
            let refused = read(text, false).unwrap_err();
            assert!(refused.contains("on loopback"), "{refused}");
            assert!(!refused.contains("hush"), "{refused}");
            assert!(read(text, true).is_ok(), "{text}");
        }
        let referred = read("{ env = \"URL\" }", false);
        assert_eq!(referred.as_deref(), Ok("db://u:hush@host"));
    }

    #[test]
    fn any_other_url_may_stand_in_the_file() {
        for url in ["db://host:1/x", "db://user@host:1/x", "file:some/where"] {
            assert_eq!(read(&format!("{url:?}"), false).as_deref(), Ok(url));
        }
    }
}
