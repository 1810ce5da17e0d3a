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

/// The maximum pixels of all photographs of a request, as a multiple of those of one.
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
    asked: Result<Query<ClassifyQuery>, QueryRejection>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let Some(lane) = &app.classifier else {
        return Err(Problem::new(StatusCode::NOT_FOUND, "this server has no classifier"));
    };
    let Query(asked) =
        asked.map_err(|rejection| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, rejection.body_text()))?;
    let classes = lane.meta.classes.len();
    let top_k = asked.top_k.unwrap_or(TOP_K.min(classes));
    if !(1..=classes).contains(&top_k) {
        let expected = format!("expected 1 to {classes}, the number of classes, found {top_k}");
        return Err(Problem::field("top_k", expected));
    }
    let several = is(&request, "multipart/form-data");
    // Checked before anything is read, so that the memory of waiting requests is bounded, too.
    lane.check_accepting()?;
    let _memory = reserve_memory(&request, &app)?;
    let files = read_files(request, &app).await?;
    let room = lane.admit(files.len())?;
    let (mut names, mut inputs, mut invalid) = (Vec::new(), Vec::new(), Vec::new());
    let mut pixels = app.config.max_pixels.saturating_mul(MAX_PIXELS_FACTOR);
    // One at a time, so that files of other requests take turns with them.
    for file in files {
        names.push(file.name);
        match prepare(&app, &lane.meta, file.bytes, &mut pixels).await? {
            Ok(input) => {
                inputs.push(input);
                invalid.push(None);
            }
            Err(reason) if several => invalid.push(Some(reason)),
            Err(reason) => return Err(Problem::field("body", reason)),
        }
    }
    let mut predictions = Vec::new().into_iter();
    if !inputs.is_empty() {
        let (reply, answer) = oneshot::channel();
        lane.send(ClassifyJob { inputs, reply, room })?;
        predictions = answer.await.map_err(|_| worker_died(&lane.name))??.into_iter();
    }
    let result = |(name, invalid): (Option<String>, Option<String>)| {
        let mut result = match invalid {
            Some(reason) => json!({"error": reason}),
            None => json!({"top": predictions.next().map(|p: Prediction| top(&p, top_k))}),
        };
        if let Some(name) = name {
            result["name"] = json!(name);
        }
        result
    };
    let results: Vec<Value> = names.into_iter().zip(invalid).map(result).collect();
    Ok(Json(json!({"model": lane.name, "results": results})))
}

fn top(prediction: &Prediction, k: usize) -> Vec<Value> {
    let candidate = |c: &tiny_cats_export::Candidate| json!({"class": c.class, "label": c.label, "probability": c.probability});
    prediction.top(k).iter().map(candidate).collect()
}

/// True if the body is of the content type `media`.
fn is(request: &Request, media: &str) -> bool {
    let given = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let given = given.and_then(|given| given.split(';').next()).unwrap_or_default().trim();
    given.eq_ignore_ascii_case(media)
}

/// Reads the files in the body: those of a form, or the body itself.
async fn read_files(request: Request, app: &Arc<AppState>) -> Result<Vec<File>, Problem> {
    let media = ["image/jpeg", "image/png", "image/webp"];
    if media.iter().any(|media| is(&request, media)) {
        let bytes = Bytes::from_request(request, app)
            .await
            .map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
        return Ok(vec![File { name: None, bytes }]);
    }
    if !is(&request, "multipart/form-data") {
        let detail =
            format!("expected a body of the content type {} or multipart/form-data", media.join(", "));
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
            return Err(Problem::field("body", format!("expected fields called image, found {printable:?}")));
        }
        if files.len() == app.config.max_count {
            let most = app.config.max_count;
            return Err(Problem::field("image", format!("expected at most {most} of them")));
        }
        let Some(name) = field.file_name() else {
            return Err(Problem::field("image", "expected a file, with a name"));
        };
        let name = Some(name.chars().take(200).collect());
        files.push(File { name, bytes: field.bytes().await.map_err(invalid)? });
    }
    if files.is_empty() {
        return Err(Problem::field("image", "expected at least one"));
    }
    Ok(files)
}

/// Reserves memory for the request's body, from the total for all requests.
fn reserve_memory(request: &Request, app: &AppState) -> Result<OwnedSemaphorePermit, Problem> {
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let announced = announced.and_then(|length| length.parse().ok()).unwrap_or(usize::MAX);
    let kib = u32::try_from(announced.min(app.config.max_body).div_ceil(1024)).unwrap_or(u32::MAX);
    app.memory.clone().try_acquire_many_owned(kib).map_err(|_| {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many photographs are being read already")
            .retry_after(1)
    })
}

/// Decodes an image and preprocesses it for the network, on a thread for blocking work; or returns the reason why it cannot be used. `left`
/// is the number of pixels that the request has left.
async fn prepare(
    app: &AppState,
    meta: &ModelMeta,
    bytes: Bytes,
    left: &mut u64,
) -> Result<Result<Vec<f32>, String>, Problem> {
    let Some(how) = meta.classifier().map(|task| task.preprocessing.clone()) else {
        return Err(Problem::new(StatusCode::NOT_FOUND, "this server has no classifier"));
    };
    let (file, place) = (bytes.clone(), app.decoders.clone().acquire_owned().await);
    let checked = blocking(move || {
        let _place = place;
        decode::check(&file)
    });
    let [width, height] = match checked.await? {
        Ok(size) => size,
        Err(reason) => return Ok(Err(reason)),
    };
    let (pixels, most) = (u64::from(width) * u64::from(height), app.config.max_pixels);
    if pixels > most {
        return Ok(Err(format!("{width} x {height} pixels are too many; expected at most {most}")));
    }
    let Some(rest) = left.checked_sub(pixels) else {
        let most = most.saturating_mul(MAX_PIXELS_FACTOR);
        return Ok(Err(format!("the request's photographs have more than {most} pixels together")));
    };
    *left = rest;
    // A request that waits for the permit for large images does not hold one of the others.
    let large = if pixels > LARGE_PIXELS { app.large.clone().acquire_owned().await.ok() } else { None };
    let place = app.decoders.clone().acquire_owned().await;
    let size = meta.image_size;
    let work = move || {
        // Held while the work runs, even if the client disconnects.
        let _places = (large, place);
        decode::decode_with(&bytes, |upright| how.apply(&upright.picture, size))
    };
    blocking(work).await
}

/// Runs `work` on a thread for blocking work.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "a picture could not be decoded"))
}
