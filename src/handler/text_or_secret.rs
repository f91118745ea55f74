//! A setting that may be a secret, or may as well stand in the TOML as it is.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use crate::secret::Secret;

/// A text in the TOML itself, or a reference to a secret. Either way it is treated as a secret
/// from then on, and it holds no NUL, which neither a header nor an environment can hold.
#[derive(Clone, Debug)]
pub(super) struct Text {
    secret: Secret,
    is_reference: bool,
}

impl Text {
    /// Whether it was given as a reference to a secret.
    pub(super) const fn is_reference(&self) -> bool {
        self.is_reference
    }

    /// The text. Named so that a reader sees each place where it gets out.
    pub(super) fn expose(&self) -> &str {
        self.secret.expose()
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_any(PlainOrReference)?;
        if text.expose().contains('\0') {
            return Err(de::Error::custom("the text holds a NUL character"));
        }
        Ok(text)
    }
}

struct PlainOrReference;

impl<'de> de::Visitor<'de> for PlainOrReference {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, or a secret: { env = \"NAME\" } or { file = \"/path\" }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
        Ok(Text {
            secret: Secret::derived(text.to_owned()),
            is_reference: false,
        })
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Text, A::Error> {
        let secret = Secret::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(Text {
            secret,
            is_reference: true,
        })
    }
}
