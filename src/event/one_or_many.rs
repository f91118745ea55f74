//! A list that a provider may send as an array, as one value, or as null.
//!
//! A field takes `#[serde(deserialize_with = "one_or_many::deserialize")]` and
//! `#[schemars(schema_with = "one_or_many::schema::<T>")]`.

use std::{fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{Error, IntoDeserializer, MapAccess, SeqAccess, Visitor, value},
};

/// Deserializes an array without its nulls, null as an empty list, and any other value as a list of that
/// value.
pub(super) fn deserialize<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_any(OneOrMany(PhantomData))
}

struct OneOrMany<T>(PhantomData<T>);

impl<T> OneOrMany<T> {
    /// A list of the one value of `deserializer`.
    fn one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        T: Deserialize<'de>,
    {
        Ok(vec![T::deserialize(deserializer)?])
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array, or one value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Option<T>>()? {
            list.extend(item);
        }
        Ok(list)
    }

    fn visit_unit<E: Error>(self) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Vec<T>, E> {
        Self::one(value::BorrowedStrDeserializer::new(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
        Self::one(text.into_deserializer())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Vec<T>, E> {
        Self::one(value.into_deserializer())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Vec<T>, E> {
        Self::one(value.into_deserializer())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Vec<T>, E> {
        Self::one(value.into_deserializer())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Vec<T>, E> {
        Self::one(value.into_deserializer())
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Vec<T>, A::Error> {
        Self::one(value::MapAccessDeserializer::new(members))
    }
}

/// The schema of what [`deserialize`] accepts.
pub(super) fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<T>();
    json_schema!({
        "anyOf": [
            { "type": "array", "items": { "anyOf": [item, { "type": "null" }] } },
            item,
            { "type": "null" },
        ],
    })
}
