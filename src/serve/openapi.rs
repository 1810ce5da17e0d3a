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
            "summary": "List the models, their classes and their verification",
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
            "summary": "Metrics for Prometheus",
            "responses": responses(config, &[], true, json!({
                "description": "OpenMetrics' text format",
                "content": { "application/openmetrics-text": { "schema": { "type": "string" } } },
            })),
        }}),
    );
    for (path, summary, statuses) in [
        ("/healthz", "Check that the process is alive", &[][..]),
        (
            "/readyz",
            "Check that all models are verified and loaded, and that the server is not shutting down",
            &[503][..],
        ),
    ] {
        paths.insert(
            path.into(),
            json!({ "get": {
                "operationId": path[1..],
                "summary": summary,
                "responses": responses(config, statuses, false, json!({
                    "description": "The check succeeded", "content": { "text/plain": { "schema": { "type": "string" } } },
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
            "summary": "Generates images of cats by breed, and classifies breeds",
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
    let image = json!({ "schema": { "type": "string", "contentMediaType": "image/png" } });
    let ok = json!({
        "description": "The images: as JSON, as one PNG file, or as events with their progress",
        "headers": {
            "X-Seed": {
                "description": "The seed, with PNG files", "schema": { "type": "string", "pattern": "^[0-9]+$" },
            },
        },
        "content": {
            "application/json": { "schema": { "$ref": "#/components/schemas/Pictures" } },
            "image/png": image,
            "text/event-stream": { "schema": {
                "type": "object",
                "description": "Each event: `step` (done and total steps, previews as PNG files in base64), then `done` with the response \
                                that a request without stream gets, or `error` with a problem. A slow client misses steps.",
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
        "summary": "Generate images",
        "description": "Equal seeds and indices give equal images, regardless of other requests, here and on the command line.",
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
    let recommended = meta.generator().map(|task| task.sampler.clone()).unwrap_or_default();
    let guidance = meta.generator().map(|task| task.guidance(None));
    let guided = if meta.generator().is_some_and(|task| task.guided) {
        " This model applies guidance internally: the value is ignored, and 1 is used."
    } else {
        ""
    };
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "breed": {
                "enum": breeds, "default": "all",
                "description": "A class, or all in turn. Case, spaces, _ and - are ignored.",
            },
            "count": { "type": "integer", "minimum": 1, "maximum": config.max_count, "default": 1 },
            "first": {
                "type": "integer", "minimum": 0, "maximum": MAX_SEED, "default": 0,
                "description": "The index of the first image; with the seed it determines the noise.",
            },
            "seed": {
                "type": "integer", "minimum": 0, "maximum": MAX_SEED,
                "description": "Equal seeds give equal images. The default is a random seed.",
            },
            "steps": { "type": "integer", "minimum": 1, "maximum": config.max_steps, "default": recommended.steps.min(config.max_steps) },
            "sampler": { "enum": ["euler", "heun", "midpoint"], "default": recommended.sampler },
            "guidance": {
                "type": "number", "minimum": -MAX_GUIDANCE, "maximum": MAX_GUIDANCE, "default": guidance,
                "description": format!("Weight of classifier-free guidance; 1 disables it.{guided}"),
            },
            "format": {
                "enum": ["json", "png", "grid"], "default": "json",
                "description": "png: a single image; grid: all images in one, with labels.",
            },
            "stream": {
                "type": "boolean", "default": false, "description": "Stream events with the progress; requires format json.",
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
    let image = json!({ "schema": { "type": "string", "format": "binary" } });
    let ok = json!({
        "description": "The classes of each image, in the order of the request",
        "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Results" } } },
    });
    let mut operation = json!({
        "operationId": "classify",
        "summary": "Classify images",
        "description": "PNG, JPEG or WebP, detected from the contents. An image of a form that cannot be decoded has an error as its \
                        result; a single image gives status 422.",
        "parameters": [{
            "name": "top_k", "in": "query", "description": "Number of classes, most probable first",
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
                "image/jpeg": image, "image/png": image, "image/webp": image,
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

/// The responses: `ok`, the errors `statuses`, and the errors of every route.
fn responses(config: &Config, statuses: &[u16], requires_token: bool, ok: Value) -> Value {
    let mut responses_by_status = Map::from_iter([("200".to_owned(), ok)]);
    let token = (requires_token && config.token.is_some()).then_some(401);
    for status in statuses.iter().copied().chain([403, 405, 500]).chain(token) {
        let description = match status {
            400 => "The body cannot be read",
            401 => "The token is missing or invalid",
            403 => "The origin or the host name is not allowed",
            405 => "The route does not support the method",
            413 => "The body is too large",
            415 => "The content type is not supported",
            422 => "A field of the request is invalid",
            429 => "The queue is full",
            503 => "A model is not ready",
            504 => "The request timed out",
            _ => "Internal server error",
        };
        let mut response = json!({
            "description": description,
            "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
        });
        if status == 401 {
            response["headers"] = json!({ "WWW-Authenticate": { "schema": { "const": "Bearer" } } });
        }
        if matches!(status, 429 | 503) {
            response["headers"] = json!({ "Retry-After": {
                "description": "Seconds", "schema": { "type": "string", "pattern": "^[0-9]+$" },
            }});
        }
        responses_by_status.insert(status.to_string(), response);
    }
    Value::Object(responses_by_status)
}

fn schemas(generator: Option<&ModelMeta>, classifier: Option<&ModelMeta>) -> Value {
    let non_negative = json!({ "type": "integer", "minimum": 0 });
    let mut schemas = json!({
        "Problem": {
            "description": "Problem details (RFC 9457)",
            "type": "object",
            "required": ["title", "status", "detail"],
            "properties": {
                "title": { "type": "string" },
                "status": { "type": "integer" },
                "detail": { "type": "string", "description": "What was expected and what was found" },
                "field": { "type": "string", "description": "The invalid field of the request" },
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
                        "description": "verified: the file has a digest, which matches. unchecked: it has none.",
                    },
                    "ready": { "type": "boolean" },
                    "sampler": { "type": "object", "description": "The recommended settings of the sampler, from the file of the model" },
                    "verification": { "type": "object", "description": "The report of the verification: how far the outputs of the runtime differ from those of candle" },
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
                "seed": non_negative, "steps": non_negative,
                "sampler": { "enum": ["euler", "heun", "midpoint"] },
                "guidance": { "type": "number" },
                "seconds": { "type": "number", "minimum": 0 },
                "pictures": { "type": "array", "items": {
                    "type": "object",
                    "required": ["index", "breed", "label", "width", "height", "png"],
                    "properties": {
                        "index": non_negative,
                        "breed": { "enum": meta.classes },
                        "label": non_negative, "width": non_negative, "height": non_negative,
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
                        "name": { "type": "string", "description": "The name of the file, if it was sent" },
                        "error": { "type": "string" },
                        "top": { "type": "array", "items": {
                            "type": "object",
                            "required": ["class", "label", "probability"],
                            "properties": {
                                "class": { "enum": meta.classes },
                                "label": non_negative,
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
