//! `POST /v1/generate`: generates images.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tiny_cats_export::{
    GeneratedImage, ModelMeta, Request, Sampler, contact_sheet,
    sample::{MAX_GUIDANCE, SamplingSettings},
};
use tokio::sync::{mpsc, oneshot};

use super::{png, to_short_json};
use crate::serve::{
    AppState, Problem,
    generate_worker::{GenerateJob, StepUpdate},
    guard::timeout_problem,
    model_queue::worker_died,
};

/// The largest integer that every JSON reader reads exactly.
pub const MAX_SEED: u64 = (1 << 53) - 1;
/// Maximum bytes of a request body; valid ones are much smaller.
pub const MAX_BODY_BYTES: usize = 1 << 16;
/// Maximum progress updates that wait for a client; further ones are dropped.
const STEP_BUFFER: usize = 4;

/// The format of the response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// JSON with all settings, and each image as a PNG file in base64.
    #[default]
    Json,
    /// A single image as a PNG file.
    Png,
    /// All images as one labeled grid.
    Grid,
}

/// The body of a request; missing fields default to the recommended settings of the model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default = "default_breed")]
    breed: String,
    #[serde(default = "default_count")]
    count: usize,
    #[serde(default)]
    first: u64,
    seed: Option<u64>,
    steps: Option<usize>,
    sampler: Option<Sampler>,
    guidance: Option<f32>,
    #[serde(default)]
    format: Format,
    #[serde(default)]
    stream: bool,
}

fn default_breed() -> String {
    "all".into()
}

fn default_count() -> usize {
    1
}

/// A validated request.
struct ValidRequest {
    request: Request,
    settings: SamplingSettings,
    labels: Vec<usize>,
    first: u64,
    format: Format,
    stream: bool,
}

/// `POST /v1/generate`: generates images.
pub async fn generate(
    State(app): State<Arc<AppState>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let start = Instant::now();
    let Some(queue) = &app.generator else {
        return Err(Problem::new(StatusCode::NOT_FOUND, "this server has no generator"));
    };
    let body = body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let valid = ValidRequest::new(&parse(&headers, &body)?, &queue.meta, &app)?;
    let permits = queue.admit(valid.labels.len())?;
    let (reply, result) = oneshot::channel();
    let (steps, updates) = if valid.stream {
        let (sender, receiver) = mpsc::channel(STEP_BUFFER);
        (Some(sender), Some(receiver))
    } else {
        (None, None)
    };
    let ValidRequest { request, settings, labels, first, format, .. } = valid;
    let model = queue.name.clone();
    let meta = ResponseMeta { model, settings, start };
    let deadline = start + app.config.timeout;
    queue.send(GenerateJob { request, labels, first_index: first, deadline, reply, steps, permits })?;
    if let Some(updates) = updates {
        return Ok(events(app.clone(), updates, result, meta));
    }
    let images = result.await.map_err(|_| worker_died(&meta.model))??;
    match format {
        Format::Json => Ok(Json(meta.to_json(&images)?).into_response()),
        Format::Png | Format::Grid => {
            let image = match &images[..] {
                [image] if format == Format::Png => png(&image.image)?,
                images => png(&contact_sheet(images))?,
            };
            let seed = meta.settings.seed.to_string();
            Ok(([(header::CONTENT_TYPE, "image/png"), (SEED, &seed)], image).into_response())
        }
    }
}

/// The header with the seed of images that are sent without JSON.
pub const SEED: header::HeaderName = header::HeaderName::from_static("x-seed");

fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Body, Problem> {
    let media_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        let detail = "expected a body of the content type application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let detail = |error: &serde_json::Error| format!("the body: {error}");
    // Parsed as a map first: a struct would accept an array, and would treat null as a missing field.
    let mut fields: Map<String, Value> = serde_json::from_slice(body).map_err(|error| {
        let status = if error.is_data() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
        Problem::new(status, detail(&error))
    })?;
    if let Some((name, _)) = fields.iter().find(|(_, value)| value.is_null()) {
        return Err(Problem::invalid_field(name, "expected a value, found null"));
    }
    fields.values_mut().for_each(normalize_integer);
    Body::deserialize(Value::Object(fields))
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail(&error)))
}

/// Converts a number with an integer value to an integer: 2.0 and 2e0 become 2.
fn normalize_integer(value: &mut Value) {
    if let Some(number) = value.as_f64()
        && !value.is_u64()
        && number.fract() == 0.0
        && (0.0..=MAX_SEED as f64).contains(&number)
    {
        *value = json!(number as u64);
    }
}

impl ValidRequest {
    fn new(body: &Body, meta: &ModelMeta, app: &AppState) -> Result<Self, Problem> {
        let check_range = |field: &'static str, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                return Ok(value);
            }
            Err(Problem::invalid_field(field, format!("expected {min} to {max}, found {value}")))
        };
        let count = check_range("count", body.count as u64, 1, app.config.max_count as u64)? as usize;
        let first = check_range("first", body.first, 0, MAX_SEED)?;
        let seed = match body.seed {
            Some(seed) => check_range("seed", seed, 0, MAX_SEED)?,
            None => random_seed(),
        };
        let Some(task) = meta.generator() else {
            return Err(Problem::new(StatusCode::NOT_FOUND, "this server has no generator"));
        };
        let steps = match body.steps {
            Some(steps) => check_range("steps", steps as u64, 1, app.config.max_steps as u64)? as usize,
            None => task.sampler.steps.min(app.config.max_steps),
        };
        if let Some(guidance) = body.guidance
            && (guidance.is_nan() || guidance.abs() > MAX_GUIDANCE)
        {
            let expected = format!("expected -{MAX_GUIDANCE} to {MAX_GUIDANCE}, found {guidance}");
            return Err(Problem::invalid_field("guidance", expected));
        }
        let classes = meta.classes.len();
        let label =
            if body.breed.eq_ignore_ascii_case("all") { None } else { Some(meta.label(&body.breed)?) };
        let label_of = |index: u64| label.unwrap_or((index % classes as u64) as usize);
        let labels = (first..first + count as u64).map(label_of).collect();
        if body.format == Format::Png && count > 1 {
            return Err(Problem::invalid_field(
                "format",
                "expected json or grid for several images, found png",
            ));
        }
        if body.stream && body.format != Format::Json {
            return Err(Problem::invalid_field("format", "expected json for a stream"));
        }
        let (sampler, guidance) = (body.sampler, body.guidance);
        let request = Request { count, seed, steps: Some(steps), sampler, guidance, ..Request::default() };
        let settings = SamplingSettings::new(task, &request);
        Ok(Self { request, settings, labels, first, format: body.format, stream: body.stream })
    }
}

/// A random seed. The keys of the standard hasher come from the random number generator of the operating system.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() & MAX_SEED
}

/// The part of the response that all images share.
struct ResponseMeta {
    model: String,
    settings: SamplingSettings,
    start: Instant,
}

impl ResponseMeta {
    fn to_json(&self, images: &[GeneratedImage]) -> Result<Value, Problem> {
        let image_json = |p: &GeneratedImage| {
            let (width, height) = p.image.dimensions();
            Ok(json!({
                "index": p.index, "breed": p.class, "label": p.label, "width": width, "height": height,
                "png": BASE64_STANDARD.encode(png(&p.image)?),
            }))
        };
        let SamplingSettings { seed, steps, sampler, guidance, .. } = &self.settings;
        Ok(json!({
            "model": self.model, "seed": seed, "steps": steps, "sampler": sampler, "guidance": to_short_json(guidance),
            "seconds": self.start.elapsed().as_secs_f64(),
            "pictures": images.iter().map(image_json).collect::<Result<Vec<Value>, Problem>>()?,
        }))
    }
}

/// The state of an event stream. A client disconnect drops it, which cancels the job.
struct EventStream {
    app: Arc<AppState>,
    updates: mpsc::Receiver<StepUpdate>,
    result: oneshot::Receiver<Result<Vec<GeneratedImage>, Problem>>,
    meta: ResponseMeta,
}

/// Streams server-sent events: `step` with previews, then `done` with the response of a request without stream, or `error`.
fn events(
    app: Arc<AppState>,
    updates: mpsc::Receiver<StepUpdate>,
    result: oneshot::Receiver<Result<Vec<GeneratedImage>, Problem>>,
    meta: ResponseMeta,
) -> Response {
    let state = EventStream { app, updates, result, meta };
    let stream = stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        let deadline = state.meta.start + state.app.config.timeout;
        let next = tokio::select! {
            biased;
            () = tokio::time::sleep_until(deadline.into()) => Err(timeout_problem(&state.app)),
            Some(step) = state.updates.recv() => progress_json(&step).map(|json| ("step", json)),
            result = &mut state.result => match result {
                Ok(Ok(images)) => state.meta.to_json(&images).map(|json| ("done", json)),
                Ok(Err(problem)) => Err(problem),
                Err(_) => Err(worker_died(&state.meta.model)),
            },
        };
        let (name, json) = next.unwrap_or_else(|problem| ("error", problem.to_json()));
        let event = Event::default().event(name).data(json.to_string());
        Some((Ok::<_, Infallible>(event), (name == "step").then_some(state)))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(10))).into_response()
}

fn progress_json(step: &StepUpdate) -> Result<Value, Problem> {
    let preview = |(index, image): &(u64, image::RgbImage)| {
        Ok(json!({"index": index, "png": BASE64_STANDARD.encode(png(image)?)}))
    };
    let previews = step.previews.iter().map(preview).collect::<Result<Vec<Value>, Problem>>()?;
    Ok(json!({"done": step.done, "total": step.total, "previews": previews}))
}
