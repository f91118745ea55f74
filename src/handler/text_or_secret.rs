//! A setting that is a text in the TOML itself or refers to a secret.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::secret::{self, Secret};

/// A text in the TOML itself, or a reference to a secret. Either way it is treated as a secret
/// from then on, and it holds no NUL, which neither a header nor an environment can hold.
#[derive(Clone, Debug)]
pub(super) struct TextOrSecret {
    secret: Secret,
    is_reference: bool,
}

impl TextOrSecret {
    /// Whether it was given as a reference to a secret.
    pub(super) const fn is_reference(&self) -> bool {
        self.is_reference
    }

    /// The text. The name marks each place that exposes it.
    pub(super) fn expose(&self) -> &str {
        self.secret.expose()
    }
}

impl JsonSchema for TextOrSecret {
    fn schema_name() -> Cow<'static, str> {
        "TextOrSecret".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let secret = generator.subschema_for::<Secret>();
        json_schema!({ "anyOf": [{ "type": "string" }, secret] })
    }
}

impl<'de> Deserialize<'de> for TextOrSecret {
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
    type Value = TextOrSecret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, or a secret: { env = \"NAME\" } or { file = \"/path\" }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<TextOrSecret, E> {
        secret::refuse_unexpanded(text)?;
        Ok(TextOrSecret {
            secret: Secret::derived(text.to_owned()),
            is_reference: false,
        })
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<TextOrSecret, A::Error> {
        let secret = Secret::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(TextOrSecret {
            secret,
            is_reference: true,
        })
    }
}
