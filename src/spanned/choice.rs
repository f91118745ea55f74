//! The variants of enums.

use serde::de;
use toml::de::DeValue;

use super::{Deserializer, Error, Found, Key, Kind, read};

/// The name of the type of a choice.
pub(crate) const TEXT_OR_TABLE: &str = "a text in quotes or a table";

/// The variant of an enum, by its name alone or with its content.
#[derive(Debug)]
pub(super) struct Choice<'de> {
    name: Key<'de>,
    content: Option<Deserializer<'de>>,
}

impl<'de> Choice<'de> {
    /// The choice that a text makes, or the only key of a table.
    pub(super) fn of(value: &Deserializer<'de>) -> Result<Self, Error> {
        let wrong = match value.value.get_ref() {
            DeValue::String(name) => {
                let (place, content) = (value.place(), None);
                let name = Key { name, place };
                return Ok(Self { name, content });
            }
            DeValue::Table(table) => {
                let mut entries = value.entries(table).rest;
                let length = entries.len();
                if let (1, Some((name, content))) = (length, entries.next()) {
                    let content = Some(content);
                    return Ok(Self { name, content });
                }
                let expected = "a table with one key".to_owned();
                Kind::InvalidLength { length, expected }
            }
            other => Kind::InvalidType {
                found: other.into(),
                expected: TEXT_OR_TABLE.to_owned(),
            },
        };
        Err(Error::new(wrong))
    }
}

impl<'de> de::EnumAccess<'de> for Choice<'de> {
    type Error = Error;
    type Variant = Content<'de>;

    fn variant_seed<S: de::DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Content<'de>), Error> {
        let content = Content {
            variant: self.name.name,
            content: self.content,
        };
        Ok((self.name.read(seed)?, content))
    }
}

/// The content of a variant.
#[derive(Debug)]
pub(super) struct Content<'de> {
    variant: &'de str,
    content: Option<Deserializer<'de>>,
}

impl<'de> Content<'de> {
    fn required(self) -> Result<Deserializer<'de>, Error> {
        let variant = self.variant;
        self.content.ok_or_else(|| {
            Error::new(Kind::InvalidType {
                found: Found::Text(variant.to_owned()),
                expected: format!("a table such as {{ {variant} = ... }}"),
            })
        })
    }
}

impl<'de> de::VariantAccess<'de> for Content<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        let Some(content) = self.content else {
            return Ok(());
        };
        match content.value.get_ref() {
            DeValue::Table(table) if table.is_empty() => Ok(()),
            other => {
                let expected = "an empty table".to_owned();
                let found = other.into();
                let error = Error::new(Kind::InvalidType { found, expected });
                Err(error.at(content.place()))
            }
        }
    }

    fn newtype_variant_seed<S: de::DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        read(self.required()?, seed)
    }

    fn tuple_variant<V: de::Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        de::Deserializer::deserialize_any(self.required()?, visitor)
    }

    // An enum need not refuse unknown fields by itself.
    fn struct_variant<V: de::Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let content = self.required()?;
        if let DeValue::Table(table) = content.value.get_ref() {
            let mut keys = content.entries(table).rest.map(|(key, _)| key);
            if let Some(key) = keys.find(|key| !fields.contains(&key.name)) {
                let error: Error = de::Error::unknown_field(key.name, fields);
                return Err(error.at(key.place));
            }
        }
        de::Deserializer::deserialize_any(content, visitor)
    }
}
