//! A setting that may be a secret, or may as well stand in the TOML as it is.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use crate::secret::Secret;

/// A text in the TOML itself, or a reference to a secret. Either way it is treated as a secret
/// from then on, and it holds no NUL, which neither a header nor an environment can hold.
#[derive(Clone, Debug)]
pub(super) struct Text(Secret);

impl Text {
    /// The text. Named so that a reader sees each place where it gets out.
    pub(super) fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secret = deserializer.deserialize_any(PlainOrReference)?;
        if secret.expose().contains('\0') {
            return Err(de::Error::custom("the text holds a NUL character"));
        }
        Ok(Self(secret))
    }
}

struct PlainOrReference;

impl<'de> de::Visitor<'de> for PlainOrReference {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, or a secret: { env = \"NAME\" } or { file = \"/path\" }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
        Ok(Secret::derived(text.to_owned()))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Secret, A::Error> {
        Secret::deserialize(de::value::MapAccessDeserializer::new(map))
    }
}
