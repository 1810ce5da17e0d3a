//! What happens to every request before and after its handler: its number, its time, its permission, its line in the log.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{App, Metrics, Problem};

/// The header that has a request's number: the client's, if it sends one, else ours.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LONGEST_ID: usize = 128;
/// The status of a request whose client has left, as nginx has it.
const LEFT: u16 = 499;

/// Tells the log and the metrics of a request, also of one whose client has left.
struct Account {
    metrics: Arc<Metrics>,
    id: HeaderValue,
    method: Method,
    /// What was asked for, without its query, which is nobody's business.
    path: String,
    /// The route, of which there are few.
    route: String,
    start: Instant,
    status: u16,
}

impl Drop for Account {
    fn drop(&mut self) {
        let time = self.start.elapsed();
        self.metrics.served(&self.route, self.status, time);
        tracing::info!(
            id = self.id.to_str().unwrap_or_default(),
            method = %self.method,
            path = self.path,
            status = self.status,
            ms = (time.as_secs_f64() * 1e5).round() / 100.0,
        );
    }
}

/// Numbers a request, and accounts for it.
pub async fn account(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let path: String = request.uri().path().chars().take(200).collect();
    let route = match request.extensions().get::<MatchedPath>() {
        Some(route) => route.as_str().to_owned(),
        None if app.site.get(request.uri().path()).is_some() => "site".to_owned(),
        None => "unknown".to_owned(),
    };
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let metrics = app.metrics.clone();
    let (method, start) = (request.method().clone(), Instant::now());
    let mut account = Account { metrics, id: id.clone(), method, path, route, start, status: LEFT };
    let mut response = next.run(request).await;
    account.status = response.status().as_u16();
    response.headers_mut().insert(REQUEST_ID, id);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// What the client calls the request, if that can stand in a log; else a number of our own.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let harmless = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=LONGEST_ID).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    if let Some(id) = headers.get(REQUEST_ID).filter(harmless) {
        return id.clone();
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // The process's number, so that those of a server that was begun anew differ.
    let id = format!("{:x}-{number:x}", std::process::id());
    HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("-"))
}

/// Lets those pass who know the token, where there is one.
pub async fn authorise(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(token) = &app.config.token else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| {
        let (scheme, given) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| given.trim())
    });
    // Of equal length, whatever was given, and compared in a time that tells nothing.
    let hash = |text: &str| Sha256::digest(text.as_bytes());
    match given {
        Some(given) if bool::from(hash(given)[..].ct_eq(&hash(token)[..])) => next.run(request).await,
        _ => Problem::new(StatusCode::UNAUTHORIZED, "expected the header Authorization: Bearer TOKEN")
            .into_response(),
    }
}

/// Ends a request whose time is over, and with it its work.
pub async fn in_time(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(app.config.timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => too_slow(&app).into_response(),
    }
}

/// What is said when a request's time is over.
pub fn too_slow(app: &App) -> Problem {
    let detail = format!("not done in {} s", app.config.timeout.as_secs_f64());
    Problem::new(StatusCode::GATEWAY_TIMEOUT, detail)
}

/// A handler that panicked is an error of ours; others are served.
pub fn panicked(what: Box<dyn Any + Send>) -> Response {
    let what = what.downcast_ref::<String>().map(String::as_str);
    tracing::error!("a handler panicked: {}", what.unwrap_or("unknown"));
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "an error of the server").into_response()
}

/// For methods that a route does not know.
pub async fn wrong_method(method: Method) -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not for this address"))
}
