//! The API's routes, one module for each task.

mod classify;
mod generate;

use std::sync::{Arc, atomic::Ordering};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tiny_cats_export::ModelMeta;

pub use classify::classify;
pub use generate::{MAX_BODY_BYTES, MAX_SEED, SEED, generate};

use super::{AppState, Problem, model_queue};

/// `GET /v1/models`: the models and their states.
pub async fn models(State(app): State<Arc<AppState>>) -> Json<Value> {
    let (mut models, states) = (Vec::new(), app.states());
    let generator =
        app.generator.iter().map(|queue| (&queue.name, &queue.meta, queue.runtime, queue.integrity));
    let classifier =
        app.classifier.iter().map(|queue| (&queue.name, &queue.meta, queue.runtime, queue.integrity));
    for ((name, meta, runtime, integrity), (_, state)) in generator.chain(classifier).zip(states) {
        let mut model = model_json(name, meta);
        model["runtime"] = json!(runtime.name());
        model["integrity"] = json!(integrity);
        model["ready"] = json!(matches!(state, model_queue::ModelState::Ready(_)));
        if let model_queue::ModelState::Ready(report) = state {
            model["verification"] = to_short_json(&*report);
        }
        models.push(model);
    }
    Json(json!({ "models": models }))
}

fn model_json(name: &str, meta: &ModelMeta) -> Value {
    let mut model = json!({
        "name": name,
        "kind": "classifier",
        "classes": meta.classes,
        "image_size": meta.image_size,
    });
    if let Some(task) = meta.generator() {
        model["kind"] = json!("generator");
        model["sampler"] = to_short_json(&task.sampler);
    }
    model
}

/// Converts `value` to JSON with the shortest decimal of each f32: 0.1, where `json!` writes 0.10000000149011612.
fn to_short_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_string(value).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// `GET /healthz`: answers while the process is alive.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: succeeds if all models are served and the server is not shutting down.
pub async fn readyz(State(app): State<Arc<AppState>>) -> Result<&'static str, Problem> {
    if app.stopping.load(Ordering::Relaxed) {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down"));
    }
    for (name, state) in app.states() {
        let detail = match state {
            model_queue::ModelState::Ready(_) => continue,
            model_queue::ModelState::Loading => format!("{name} is being verified and loaded"),
            model_queue::ModelState::Failed(reason) => format!("{name}: {reason}"),
        };
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).with_retry_after(1));
    }
    Ok("ready\n")
}

/// `GET /metrics`: the metrics for Prometheus.
pub async fn metrics(State(app): State<Arc<AppState>>) -> Response {
    let generator = app.generator.iter().map(|queue| (queue.name.as_str(), queue.waiting()));
    let classifier = app.classifier.iter().map(|queue| (queue.name.as_str(), queue.waiting()));
    let text = app.metrics.text(&generator.chain(classifier).collect::<Vec<_>>());
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

/// `GET /openapi.json`: the description of the API.
pub async fn openapi(State(app): State<Arc<AppState>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], app.openapi.clone()).into_response()
}

/// Encodes an image as a PNG file.
fn png(image: &image::RgbImage) -> Result<Vec<u8>, Problem> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("an image could not be encoded: {error}"))
    })?;
    Ok(bytes.into_inner())
}
