//! `POST /v1/classify`: classifies images.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, Multipart, Query, Request, State, rejection::QueryRejection},
    http::{StatusCode, header},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tiny_cats_export::{ModelMeta, Prediction, decode};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::super::{AppState, Problem, classify_worker::ClassifyJob, model_queue::worker_died};

/// Maximum total pixels of the photographs of a request, as a multiple of the maximum of one.
const MAX_PIXELS_FACTOR: u64 = 4;
/// Images with more pixels are decoded one at a time.
const LARGE_PIXELS: u64 = 8_000_000;
/// The default number of classes in the response for each image.
const TOP_K: usize = 3;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifyQuery {
    top_k: Option<usize>,
}

/// A file in the request.
struct File {
    name: Option<String>,
    bytes: Bytes,
}

/// `POST /v1/classify`: classifies images.
pub async fn classify(
    State(app): State<Arc<AppState>>,
    query: Result<Query<ClassifyQuery>, QueryRejection>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let Some(queue) = &app.classifier else {
        return Err(Problem::new(StatusCode::NOT_FOUND, "this server has no classifier"));
    };
    let Query(query) =
        query.map_err(|rejection| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, rejection.body_text()))?;
    let classes = queue.meta.classes.len();
    let top_k = query.top_k.unwrap_or(TOP_K.min(classes));
    if !(1..=classes).contains(&top_k) {
        let expected = format!("expected 1 to {classes}, the number of classes, found {top_k}");
        return Err(Problem::invalid_field("top_k", expected));
    }
    let is_form = has_content_type(&request, "multipart/form-data");
    // Checked before the body is read, so that the memory of waiting requests is bounded, too.
    queue.check_accepting()?;
    let _memory = reserve_memory(&request, &app)?;
    let files = read_files(request, &app).await?;
    let permits = queue.admit(files.len())?;
    let (mut names, mut inputs, mut invalid) = (Vec::new(), Vec::new(), Vec::new());
    let mut pixels = app.config.max_pixels.saturating_mul(MAX_PIXELS_FACTOR);
    // Prepared one at a time, so that files of other requests are decoded in between.
    for file in files {
        names.push(file.name);
        match prepare(&app, &queue.meta, file.bytes, &mut pixels).await? {
            Ok(input) => {
                inputs.push(input);
                invalid.push(None);
            }
            Err(reason) if is_form => invalid.push(Some(reason)),
            Err(reason) => return Err(Problem::invalid_field("body", reason)),
        }
    }
    let mut predictions = Vec::new().into_iter();
    if !inputs.is_empty() {
        let (reply, receiver) = oneshot::channel();
        queue.send(ClassifyJob { inputs, reply, permits })?;
        predictions = receiver.await.map_err(|_| worker_died(&queue.name))??.into_iter();
    }
    let result = |(name, invalid): (Option<String>, Option<String>)| {
        let mut result = match invalid {
            Some(reason) => json!({"error": reason}),
            None => json!({"top": predictions.next().map(|p: Prediction| top_json(&p, top_k))}),
        };
        if let Some(name) = name {
            result["name"] = json!(name);
        }
        result
    };
    let results: Vec<Value> = names.into_iter().zip(invalid).map(result).collect();
    Ok(Json(json!({"model": queue.name, "results": results})))
}

fn top_json(prediction: &Prediction, k: usize) -> Vec<Value> {
    let candidate = |c: &tiny_cats_export::Candidate| json!({"class": c.class, "label": c.label, "probability": c.probability});
    prediction.top(k).iter().map(candidate).collect()
}

/// True if the body is of the content type `media_type`.
fn has_content_type(request: &Request, media_type: &str) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type =
        content_type.and_then(|content_type| content_type.split(';').next()).unwrap_or_default().trim();
    content_type.eq_ignore_ascii_case(media_type)
}

/// Reads the files of a form, or the body as a single file.
async fn read_files(request: Request, app: &Arc<AppState>) -> Result<Vec<File>, Problem> {
    let media_types = ["image/jpeg", "image/png", "image/webp"];
    if media_types.iter().any(|media_type| has_content_type(&request, media_type)) {
        let bytes = Bytes::from_request(request, app)
            .await
            .map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
        return Ok(vec![File { name: None, bytes }]);
    }
    if !has_content_type(&request, "multipart/form-data") {
        let detail =
            format!("expected a body of the content type {} or multipart/form-data", media_types.join(", "));
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let mut form = Multipart::from_request(request, app)
        .await
        .map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let invalid = |error: axum::extract::multipart::MultipartError| {
        Problem::new(error.status(), format!("the body: {}", error.body_text()))
    };
    let mut files = Vec::new();
    while let Some(field) = form.next_field().await.map_err(invalid)? {
        let name = field.name().unwrap_or_default();
        if name != "image" {
            let printable: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
            return Err(Problem::invalid_field(
                "body",
                format!("expected fields called image, found {printable:?}"),
            ));
        }
        if files.len() == app.config.max_count {
            let max = app.config.max_count;
            return Err(Problem::invalid_field("image", format!("expected at most {max} files")));
        }
        let Some(name) = field.file_name() else {
            return Err(Problem::invalid_field("image", "expected a file with a name"));
        };
        let name = Some(name.chars().take(200).collect());
        files.push(File { name, bytes: field.bytes().await.map_err(invalid)? });
    }
    if files.is_empty() {
        return Err(Problem::invalid_field("image", "expected at least one file"));
    }
    Ok(files)
}

/// Reserves memory for the body of a request, from the total of all requests.
///
/// # Errors
/// 429 if too little memory is free.
fn reserve_memory(request: &Request, app: &AppState) -> Result<OwnedSemaphorePermit, Problem> {
    let declared_length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let declared_length = declared_length.and_then(|length| length.parse().ok()).unwrap_or(usize::MAX);
    let kib = u32::try_from(declared_length.min(app.config.max_body).div_ceil(1024)).unwrap_or(u32::MAX);
    app.body_memory.clone().try_acquire_many_owned(kib).map_err(|_| {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many photographs are being read").with_retry_after(1)
    })
}

/// Decodes an image and preprocesses it for the network, on a thread for blocking work. Subtracts its pixels from
/// `pixels_left`, those that the request may still use. The inner error is the reason why the image cannot be used.
async fn prepare(
    app: &AppState,
    meta: &ModelMeta,
    bytes: Bytes,
    pixels_left: &mut u64,
) -> Result<Result<Vec<f32>, String>, Problem> {
    let Some(preprocessing) = meta.classifier().map(|task| task.preprocessing.clone()) else {
        return Err(Problem::new(StatusCode::NOT_FOUND, "this server has no classifier"));
    };
    let (file, permit) = (bytes.clone(), app.decoders.clone().acquire_owned().await);
    let checked = blocking(move || {
        let _permit = permit;
        decode::check(&file)
    });
    let [width, height] = match checked.await? {
        Ok(size) => size,
        Err(reason) => return Ok(Err(reason)),
    };
    let (pixels, max) = (u64::from(width) * u64::from(height), app.config.max_pixels);
    if pixels > max {
        return Ok(Err(format!("{width} x {height} pixels are too many; expected at most {max}")));
    }
    let Some(rest) = pixels_left.checked_sub(pixels) else {
        let max = max.saturating_mul(MAX_PIXELS_FACTOR);
        return Ok(Err(format!("expected at most {max} pixels in all photographs of the request")));
    };
    *pixels_left = rest;
    // A request that waits for the permit for large images does not hold one of the others.
    let large_permit =
        if pixels > LARGE_PIXELS { app.large_decoder.clone().acquire_owned().await.ok() } else { None };
    let permit = app.decoders.clone().acquire_owned().await;
    let size = meta.image_size;
    let work = move || {
        // Held until the work is done, even after a client disconnect.
        let _permits = (large_permit, permit);
        decode::decode_with(&bytes, |upright| preprocessing.apply(&upright.image, size))
    };
    blocking(work).await
}

/// Runs `work` on a thread for blocking work.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "an image could not be decoded"))
}
