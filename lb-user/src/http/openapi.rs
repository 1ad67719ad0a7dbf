//! `/api/v1/openapi.json`: the description of the API, with schemas of the types that it sends.

use axum::Json;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    api::{Events, Services},
    error::ErrorBody,
    timeline::{Range, Timeline},
};
use crate::{
    event_stream::{CAPACITY, EventRecord},
    status::{ServiceStatus, Status},
};

const BAD_REQUEST: &str = "A parameter is not valid";

pub async fn document() -> Json<Value> {
    Json(describe())
}

fn describe() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schemas = settings
        .with(|settings| {
            settings.meta_schema = None;
            settings.definitions_path = "/components/schemas".into();
        })
        .into_generator();
    let bad_request = [("400", BAD_REQUEST)];
    let service = json!({
        "name": "service",
        "in": "path",
        "required": true,
        "description": "The service's name",
        "example": "web",
        "schema": { "type": "string", "minLength": 1 },
    });
    let timeline = json!([{
        "name": "range",
        "in": "query",
        "description": "The time span until now",
        "schema": with_default(schemas.subschema_for::<Range>(), Range::default()),
    }, {
        "name": "service",
        "in": "query",
        "description": "Only this service; an unknown one has no figures",
        "schema": { "type": "string" },
    }]);
    let limit = json!({
        "name": "limit",
        "in": "query",
        "description": "The maximum number of events; the last ones are sent",
        "schema": { "type": "integer", "minimum": 1, "maximum": CAPACITY, "default": CAPACITY },
    });
    let paths = json!({
        "/api/v1/status": { "get": {
            "operationId": "status",
            "summary": "The whole state of the manager",
            "responses": responses::<Status>(&mut schemas, &[]),
        } },
        "/api/v1/services": { "get": {
            "operationId": "services",
            "summary": "The services with their backends and traffic",
            "responses": responses::<Services>(&mut schemas, &[]),
        } },
        "/api/v1/services/{service}": { "get": {
            "operationId": "service",
            "summary": "One service",
            "parameters": [service],
            "responses": responses::<ServiceStatus>(&mut schemas, &[("404", "There is no such service")]),
        } },
        "/api/v1/timeline": { "get": {
            "operationId": "timeline",
            "summary": "Memory, connections, refusals and bytes of every backend over time",
            "parameters": timeline,
            "responses": responses::<Timeline>(&mut schemas, &bad_request),
        } },
        "/api/v1/events": { "get": {
            "operationId": "events",
            "summary": "The last events, the oldest first",
            "parameters": [after(), limit],
            "responses": responses::<Events>(&mut schemas, &bad_request),
        } },
        "/api/v1/events/stream": { "get": {
            "operationId": "stream",
            "summary": "Each event as it happens, as Server-Sent Events",
            "description": "The data of each is an EventRecord. A client that is too slow gets, in \
                place of the lost events, one of type `lost`, with their number in `events`.",
            "parameters": [after(), {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "Sent by browsers that reconnect; overrides `after`",
                "schema": { "type": "string" },
            }],
            "responses": stream_responses(&mut schemas),
        } },
        "/api/v1/openapi.json": { "get": {
            "operationId": "openapi",
            "summary": "This document",
            "responses": {
                "200": {
                    "description": "An OpenAPI document",
                    "content": { "application/json": { "schema": { "type": "object" } } },
                },
                "default": refused(&mut schemas, "No answer"),
            },
        } },
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "memlb",
            "version": "1",
            "description": "The state of a memlb manager, read-only. Within version 1, fields are \
                added, but none goes away or changes its meaning.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas.take_definitions(true) },
    })
}

fn responses<T: JsonSchema>(schemas: &mut SchemaGenerator, refusals: &[(&str, &str)]) -> Value {
    let mut responses = json!({
        "200": {
            "description": "The answer",
            "content": { "application/json": { "schema": schemas.subschema_for::<T>() } },
        },
        "503": refused(schemas, "The manager cannot answer now"),
        "default": refused(schemas, "No answer"),
    });
    for (status, description) in refusals {
        responses[*status] = refused(schemas, description);
    }
    responses
}

fn stream_responses(schemas: &mut SchemaGenerator) -> Value {
    // The response schema of the event stream does not refer to it.
    schemas.subschema_for::<EventRecord>();
    json!({
        "200": {
            "description": "The stream, which does not end by itself",
            "content": { "text/event-stream": { "schema": { "type": "string" } } },
        },
        "400": refused(schemas, BAD_REQUEST),
        "503": refused(schemas, "The server has the maximum number of listeners"),
        "default": refused(schemas, "No answer"),
    })
}

fn refused(schemas: &mut SchemaGenerator, description: &str) -> Value {
    json!({
        "description": description,
        "content": { "application/json": { "schema": schemas.subschema_for::<ErrorBody>() } },
    })
}

fn with_default(schema: Schema, default: impl Serialize) -> Value {
    json!({ "allOf": [schema], "default": default })
}

fn after() -> Value {
    json!({
        "name": "after",
        "in": "query",
        "description": "Only events later than the one with this id",
        "schema": { "type": "integer", "minimum": 0, "maximum": u64::MAX },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` of `value` must lead somewhere.
    fn check_references(value: &Value, document: &Value) {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        let inner: Vec<&Value> = match value {
            Value::Object(fields) => fields.values().collect(),
            Value::Array(items) => items.iter().collect(),
            _ => Vec::new(),
        };
        inner
            .into_iter()
            .for_each(|value| check_references(value, document));
    }

    #[test]
    fn describes_every_type_it_mentions() {
        let document = describe();
        check_references(&document, &document);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        assert!(schemas.contains_key("Status"), "{schemas:?}");
        assert!(schemas.contains_key("EventRecord"), "{schemas:?}");
    }
}
