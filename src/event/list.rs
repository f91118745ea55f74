//! A list, however it is written.
//!
//! For `#[serde(deserialize_with = "list::read")]` with `#[schemars(schema_with = "list::schema::<T>")]`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error},
};
use serde_json::Value;

/// Reads an array without its nulls, a null as an empty one, and one value alone as an array of
/// itself.
pub(super) fn read<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let items = match Value::deserialize(deserializer)? {
        Value::Array(items) => items,
        item => vec![item],
    };
    items
        .into_iter()
        .filter(|item| !item.is_null())
        .map(|item| T::deserialize(item).map_err(Error::custom))
        .collect()
}

/// What [`read`] accepts.
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
