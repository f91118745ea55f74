//! The JSON Schema of the configuration, made of the types that the configuration is read into.
//!
//! The schema is of draft 7, which the TOML extensions of editors know. It checks the keys and the types
//! of their values. What only a reader can find, such as a file that is missing, is for `check`.

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::Log;
use crate::{admin, dispatch, event, handler, http, provider, store};

/// The schema of a configuration with these kinds of handlers.
pub fn schema(kinds: &[handler::Kind]) -> Value {
    let mut generator = SchemaSettings::draft07().into_generator();
    let mut stores = Vec::new();
    for kind in store::ENGINES {
        let own = (kind.schema)(&mut generator);
        stores.push(Table::of(own).tagged("kind", json!({ "const": kind.kind })));
    }
    let mut endpoints = Vec::new();
    for kind in provider::PROVIDERS {
        let families = event::families().filter(|family| family.provider() == kind.kind);
        let families: Vec<_> = families.map(|family| family.name).collect();
        let path = json!({
            "description": "The path that the provider posts to, after the host.",
            "type": "string",
            "pattern": "^/",
        });
        let own = Table::of((kind.schema)(&mut generator)).tagged("path", path);
        endpoints.push(own.tagged("family", json!({ "enum": families })));
    }
    let mut handlers = Vec::new();
    for kind in kinds {
        let common = Table::of(dispatch::Settings::json_schema(&mut generator));
        handlers.push(handler(kind, common, &mut generator));
    }
    let mut section = |schema: fn(&mut SchemaGenerator) -> Schema| schema(&mut generator);
    let mut root = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "The configuration of hookswitch",
        "type": "object",
        "properties": {
            "log": section(Log::json_schema),
            "server": section(http::Settings::json_schema),
            "admin": section(admin::Settings::json_schema),
            "store": one_of(stores),
            "endpoints": named(&one_of(endpoints), 1),
            "handlers": named(&one_of(handlers), 0),
        },
        "required": ["store", "endpoints"],
        "additionalProperties": false,
        "definitions": generator.take_definitions(true),
    });
    drop_null(&mut root);
    root
}

/// The table of one kind of handler. A program that embeds hookswitch need not describe its own kinds.
fn handler(kind: &handler::Kind, common: Table, generator: &mut SchemaGenerator) -> Table {
    let mut common = common;
    if let Some(Value::Object(concurrency)) = common.properties.get_mut("concurrency") {
        concurrency.insert("default".to_owned(), kind.concurrency.get().into());
    }
    let table = match kind.schema {
        Some(own) => Table::of(own(generator)).with(common),
        None => Table {
            is_open: true,
            ..common
        },
    };
    table.tagged("kind", json!({ "const": kind.kind }))
}

/// The schema of a table.
struct Table {
    description: Value,
    properties: Map<String, Value>,
    required: Vec<Value>,
    /// Whether the table can have other keys.
    is_open: bool,
}

impl Table {
    fn of(mut schema: Schema) -> Self {
        let mut take = |key: &str| schema.remove(key).unwrap_or_default();
        Self {
            description: take("description"),
            properties: match take("properties") {
                Value::Object(properties) => properties,
                _ => Map::new(),
            },
            required: match take("required") {
                Value::Array(required) => required,
                _ => Vec::new(),
            },
            is_open: false,
        }
    }

    /// This table with the keys of `other` as well.
    fn with(mut self, other: Self) -> Self {
        self.properties.extend(other.properties);
        self.required.extend(other.required);
        self
    }

    /// This table with a required key `key` as well.
    fn tagged(mut self, key: &str, schema: Value) -> Self {
        self.properties.insert(key.to_owned(), schema);
        self.required.push(key.into());
        self
    }
}

/// A table of one of these kinds.
fn one_of(tables: Vec<Table>) -> Value {
    let tables = tables.into_iter().map(|table| {
        json!({
            "description": table.description,
            "type": "object",
            "properties": table.properties,
            "required": table.required,
            "additionalProperties": table.is_open,
        })
    });
    json!({ "oneOf": tables.collect::<Vec<_>>() })
}

/// A section of at least `least` tables, each with a name of the user's.
fn named(table: &Value, least: usize) -> Value {
    json!({
        "type": "object",
        "propertyNames": { "pattern": "^[a-z0-9-]{1,64}$" },
        "minProperties": least,
        "additionalProperties": table,
    })
}

/// Drops `null` from `schema`, since TOML has none.
fn drop_null(schema: &mut Value) {
    let Value::Object(object) = schema else {
        if let Value::Array(items) = schema {
            items.iter_mut().for_each(drop_null);
        }
        return;
    };
    object.retain(|_, value| !value.is_null());
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = &types[..] {
            let only = only.clone();
            object.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
        if let [only] = &choices[..] {
            let only = only.clone();
            object.remove("anyOf");
            // Beside a reference, draft 7 ignores all other keys.
            object.insert("allOf".to_owned(), json!([only]));
        }
    }
    object.values_mut().for_each(drop_null);
}
