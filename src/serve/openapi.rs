//! The API as OpenAPI 3.1, with the limits and classes of this server.

use serde_json::{Map, Value, json};
use tiny_cats_export::{ModelMeta, sample::MAX_GUIDANCE};

use super::{Config, routes::MAX_SEED};

/// The OpenAPI document. It omits tasks that no model performs.
pub fn document(config: &Config, generator: Option<&ModelMeta>, classifier: Option<&ModelMeta>) -> Value {
    let mut paths = Map::new();
    if let Some(meta) = generator {
        paths.insert("/v1/generate".into(), json!({ "post": generate(config, meta) }));
    }
    if let Some(meta) = classifier {
        paths.insert("/v1/classify".into(), json!({ "post": classify(config, meta) }));
    }
    paths.insert(
        "/v1/models".into(),
        json!({ "get": {
            "operationId": "models",
            "summary": "What is served, what it knows, and how it was verified",
            "responses": responses(config, &[], true, json!({
                "description": "All models",
                "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Models" } } },
            })),
        }}),
    );
    paths.insert(
        "/metrics".into(),
        json!({ "get": {
            "operationId": "metrics",
            "summary": "Figures for Prometheus",
            "responses": responses(config, &[], true, json!({
                "description": "OpenMetrics' text format",
                "content": { "application/openmetrics-text": { "schema": { "type": "string" } } },
            })),
        }}),
    );
    for (path, summary, others) in [
        ("/healthz", "The process is there", &[][..]),
        (
            "/readyz",
            "Requests can be sent: all models are verified and loaded, and the server is not stopping",
            &[503][..],
        ),
    ] {
        paths.insert(
            path.into(),
            json!({ "get": {
                "operationId": path[1..],
                "summary": summary,
                "responses": responses(config, others, false, json!({
                    "description": "Yes", "content": { "text/plain": { "schema": { "type": "string" } } },
                })),
            }}),
        );
    }
    paths.insert("/openapi.json".into(), json!({ "get": {
        "operationId": "openapi",
        "summary": "This document",
        "responses": responses(config, &[], false, json!({
            "description": "OpenAPI 3.1", "content": { "application/json": { "schema": { "type": "object" } } },
        })),
    }}));
    for path in ["/v1/models", "/metrics"] {
        add_security(&mut paths[path]["get"], config);
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tiny-cats",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Draws cats by breed, and tells breeds apart",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas(generator, classifier) },
    });
    if config.token.is_some() {
        document["components"]["securitySchemes"] =
            json!({ "token": { "type": "http", "scheme": "bearer" } });
    }
    document
}

fn generate(config: &Config, meta: &ModelMeta) -> Value {
    let picture = json!({ "schema": { "type": "string", "contentMediaType": "image/png" } });
    let ok = json!({
        "description": "The pictures: as JSON, as one PNG file, or as events while they are drawn",
        "headers": {
            "X-Seed": {
                "description": "The seed, with PNG files", "schema": { "type": "string", "pattern": "^[0-9]+$" },
            },
        },
        "content": {
            "application/json": { "schema": { "$ref": "#/components/schemas/Pictures" } },
            "image/png": picture,
            "text/event-stream": { "schema": {
                "type": "object",
                "description": "Each event: `step` (done and total steps, previews as PNG files in base64), at last `done` with what a \
                                request without stream is answered, or `error` with a problem. A slow reader misses steps.",
                "required": ["event", "data"],
                "properties": {
                    "event": { "enum": ["step", "done", "error"] },
                    "data": { "type": "string", "contentMediaType": "application/json" },
                },
            }},
        },
    });
    let mut operation = json!({
        "operationId": "generate",
        "summary": "Draws pictures",
        "description": "Equal seeds and numbers give equal pictures, whatever else is drawn at the same time, here and on the command \
                        line.",
        "requestBody": {
            "required": true,
            "content": { "application/json": {
                "schema": generate_request_schema(config, meta),
                "example": { "breed": meta.classes[0], "seed": 7 },
            }},
        },
        "responses": responses(config, &[400, 413, 415, 422, 429, 503, 504], true, ok),
    });
    add_security(&mut operation, config);
    operation
}

/// The schema of a request to generate images.
fn generate_request_schema(config: &Config, meta: &ModelMeta) -> Value {
    let breeds: Vec<&str> = meta.classes.iter().map(String::as_str).chain(["all"]).collect();
    let advised = meta.generator().map(|task| task.sampler.clone()).unwrap_or_default();
    let guidance = meta.generator().map(|task| task.guidance(None));
    let guided = if meta.generator().is_some_and(|task| task.guided) {
        " This model applies guidance itself: 1 is used, whatever is asked for."
    } else {
        ""
    };
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "breed": {
                "enum": breeds, "default": "all",
                "description": "A class, or all in turn. Case, spaces, _ and - do not matter.",
            },
            "count": { "type": "integer", "minimum": 1, "maximum": config.max_count, "default": 1 },
            "first": {
                "type": "integer", "minimum": 0, "maximum": MAX_SEED, "default": 0,
                "description": "The number of the first picture; with the seed it chooses the noise.",
            },
            "seed": {
                "type": "integer", "minimum": 0, "maximum": MAX_SEED,
                "description": "Equal seeds give equal pictures. Without one, any is taken.",
            },
            "steps": { "type": "integer", "minimum": 1, "maximum": config.max_steps, "default": advised.steps.min(config.max_steps) },
            "sampler": { "enum": ["euler", "heun", "midpoint"], "default": advised.sampler },
            "guidance": {
                "type": "number", "minimum": -MAX_GUIDANCE, "maximum": MAX_GUIDANCE, "default": guidance,
                "description": format!("Weight of classifier-free guidance; 1 is none.{guided}"),
            },
            "format": {
                "enum": ["json", "png", "grid"], "default": "json",
                "description": "png is for one picture, grid puts all in one with labels.",
            },
            "stream": {
                "type": "boolean", "default": false, "description": "Events while they are drawn, with format json.",
            },
        },
        // A stream is JSON, and a PNG file holds one image.
        "anyOf": [
            { "properties": { "format": { "const": "json" } } },
            { "properties": { "format": { "const": "grid" }, "stream": { "const": false } } },
            { "properties": { "format": { "const": "png" }, "stream": { "const": false }, "count": { "const": 1 } } },
        ],
    })
}

fn classify(config: &Config, meta: &ModelMeta) -> Value {
    let picture = json!({ "schema": { "type": "string", "format": "binary" } });
    let ok = json!({
        "description": "The classes of each picture, in the order in which they were sent",
        "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Results" } } },
    });
    let mut operation = json!({
        "operationId": "classify",
        "summary": "Tells the classes of pictures",
        "description": "PNG, JPEG or WebP; what they are is seen by their contents. Of a form, a picture that cannot be read has an \
                        error in its place; a single one is answered 422.",
        "parameters": [{
            "name": "top_k", "in": "query", "description": "How many classes, the most probable first",
            "schema": { "type": "integer", "minimum": 1, "maximum": meta.classes.len(), "default": 3.min(meta.classes.len()) },
        }],
        "requestBody": {
            "required": true,
            "content": {
                "multipart/form-data": { "schema": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["image"],
                    "properties": { "image": {
                        "type": "array", "minItems": 1, "maxItems": config.max_count,
                        "items": { "type": "string", "format": "binary" },
                    }},
                }},
                "image/jpeg": picture, "image/png": picture, "image/webp": picture,
            },
        },
        "responses": responses(config, &[400, 413, 415, 422, 429, 503, 504], true, ok),
    });
    add_security(&mut operation, config);
    operation
}

fn add_security(operation: &mut Value, config: &Config) {
    if config.token.is_some() {
        operation["security"] = json!([{ "token": [] }]);
    }
}

/// The responses: `ok`, the errors `statuses`, and the errors that every route has.
fn responses(config: &Config, statuses: &[u16], guarded: bool, ok: Value) -> Value {
    let mut all = Map::from_iter([("200".to_owned(), ok)]);
    let token = (guarded && config.token.is_some()).then_some(401);
    for status in statuses.iter().copied().chain([403, 405, 500]).chain(token) {
        let description = match status {
            400 => "The body cannot be read",
            401 => "The token is missing or wrong",
            403 => "Sent by a page of another origin, or to another name of this machine",
            405 => "Another method",
            413 => "The body is too large",
            415 => "A body of another content type",
            422 => "Something in the request makes no sense",
            429 => "Too much is waiting already",
            503 => "A model is not ready",
            504 => "It took too long",
            _ => "An error of the server",
        };
        let mut answer = json!({
            "description": description,
            "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
        });
        if status == 401 {
            answer["headers"] = json!({ "WWW-Authenticate": { "schema": { "const": "Bearer" } } });
        }
        if matches!(status, 429 | 503) {
            answer["headers"] = json!({ "Retry-After": {
                "description": "Seconds", "schema": { "type": "string", "pattern": "^[0-9]+$" },
            }});
        }
        all.insert(status.to_string(), answer);
    }
    Value::Object(all)
}

fn schemas(generator: Option<&ModelMeta>, classifier: Option<&ModelMeta>) -> Value {
    let whole = json!({ "type": "integer", "minimum": 0 });
    let mut schemas = json!({
        "Problem": {
            "description": "RFC 9457's problem details",
            "type": "object",
            "required": ["title", "status", "detail"],
            "properties": {
                "title": { "type": "string" },
                "status": { "type": "integer" },
                "detail": { "type": "string", "description": "What was expected and what was found" },
                "field": { "type": "string", "description": "The part of the request that is wrong" },
            },
        },
        "Models": {
            "type": "object",
            "required": ["models"],
            "properties": { "models": { "type": "array", "items": {
                "type": "object",
                "required": ["name", "kind", "classes", "image_size", "runtime", "integrity", "ready"],
                "properties": {
                    "name": { "type": "string" },
                    "kind": { "enum": ["generator", "classifier"] },
                    "classes": { "type": "array", "items": { "type": "string" } },
                    "image_size": { "type": "integer", "minimum": 1 },
                    "runtime": { "type": "string" },
                    "integrity": {
                        "enum": ["verified", "unchecked"],
                        "description": "verified: the file carries a digest, which it matches. unchecked: it carries none.",
                    },
                    "ready": { "type": "boolean" },
                    "sampler": { "type": "object", "description": "How to sample, as the model's file advises" },
                    "verification": { "type": "object", "description": "How far the runtime is from the definition" },
                },
            }}},
        },
    });
    if let Some(meta) = generator {
        schemas["Pictures"] = json!({
            "type": "object",
            "required": ["model", "seed", "steps", "sampler", "guidance", "seconds", "pictures"],
            "properties": {
                "model": { "type": "string" },
                "seed": whole, "steps": whole,
                "sampler": { "enum": ["euler", "heun", "midpoint"] },
                "guidance": { "type": "number" },
                "seconds": { "type": "number", "minimum": 0 },
                "pictures": { "type": "array", "items": {
                    "type": "object",
                    "required": ["index", "breed", "label", "width", "height", "png"],
                    "properties": {
                        "index": whole,
                        "breed": { "enum": meta.classes },
                        "label": whole, "width": whole, "height": whole,
                        "png": { "type": "string", "contentEncoding": "base64", "contentMediaType": "image/png" },
                    },
                }},
            },
        });
    }
    if let Some(meta) = classifier {
        schemas["Results"] = json!({
            "type": "object",
            "required": ["model", "results"],
            "properties": {
                "model": { "type": "string" },
                "results": { "type": "array", "items": {
                    "type": "object",
                    "oneOf": [{ "required": ["top"] }, { "required": ["error"] }],
                    "properties": {
                        "name": { "type": "string", "description": "The file's name, where it was sent with one" },
                        "error": { "type": "string" },
                        "top": { "type": "array", "items": {
                            "type": "object",
                            "required": ["class", "label", "probability"],
                            "properties": {
                                "class": { "enum": meta.classes },
                                "label": whole,
                                "probability": { "type": "number", "minimum": 0, "maximum": 1 },
                            },
                        }},
                    },
                }},
            },
        });
    }
    schemas
}
