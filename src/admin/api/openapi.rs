//! The OpenAPI document of the API, made from the table of operations.

use schemars::{Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    PREFIX,
    operation::{Answer, Operation},
    problem::Problem,
};
use crate::event;

/// The document.
pub(super) fn document(operations: &[Operation]) -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let problem = generator.subschema_for::<Problem>();
    let mut paths = Map::new();
    for operation in operations {
        let described = describe(operation, &mut generator, &problem);
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        let method = operation.method.as_str().to_ascii_lowercase();
        if let Some(methods) = path.as_object_mut() {
            methods.insert(method, described);
        }
    }
    // The families' own types are called alike.
    let families = event::families();
    let families =
        families.map(|family| (family.name.to_owned(), family.subschema(&mut generator)));
    let families: Vec<_> = families
        .map(|(name, schema)| (name, schema.to_value()))
        .collect();
    let mut schemas = generator.take_definitions(true);
    schemas.extend(families);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "hookswitch",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What a running service does, and what became of each event.",
            "license": { "name": env!("CARGO_PKG_LICENSE") },
        },
        "servers": [{ "url": PREFIX }],
        "security": [{}, { "token": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn describe(operation: &Operation, generator: &mut SchemaGenerator, problem: &Schema) -> Value {
    let content = match operation.answer {
        Answer::Json(schema) => json!({ "application/json": { "schema": schema(generator) } }),
        Answer::Bytes(media_type) => json!({ media_type: {} }),
    };
    let failed = |what: &str| {
        let content = json!({ "application/problem+json": { "schema": problem } });
        json!({ "description": what, "content": content })
    };
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "description": format!("Takes the role `{}`.", operation.role.as_str()),
        "parameters": parameters(operation, generator),
        "responses": {
            "200": { "description": operation.summary, "content": content },
            "400": failed("The request is not as this document says."),
            "401": failed("A token is required, or wrong."),
            "403": failed("The token does not allow this."),
            "404": failed("There is no such thing."),
            "503": failed("The service or its store cannot answer."),
        },
    });
    if let (Some(body), Some(described)) = (operation.body, described.as_object_mut()) {
        let content = json!({ "application/json": { "schema": body(generator) } });
        let body = json!({ "required": true, "content": content });
        described.insert("requestBody".to_owned(), body);
    }
    described
}

/// The members of the parameters' schema, one by one.
fn parameters(operation: &Operation, generator: &mut SchemaGenerator) -> Vec<Value> {
    let schema = (operation.parameters)(generator);
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return Vec::new();
    };
    let required = schema.get("required").and_then(Value::as_array);
    let parameter = |(name, schema): (&String, &Value)| {
        let in_path = operation.path.contains(&format!("{{{name}}}"));
        let is_required = required.is_some_and(|names| names.contains(&json!(name)));
        let description = schema.get("description").cloned().unwrap_or_default();
        json!({
            "name": name,
            "in": if in_path { "path" } else { "query" },
            "required": in_path || is_required,
            "description": description,
            "schema": schema,
        })
    };
    properties.iter().map(parameter).collect()
}
