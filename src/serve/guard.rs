//! Middleware for every request: ID, log line, metrics, access checks, and timeout.

use std::{
    any::Any,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    body::{Body, Bytes},
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body::{Body as _, Frame, SizeHint};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{AppState, Config, Metrics, Problem, connections::ActiveRequest};

/// The header with the ID of a request: the client's, or a generated one if it sends none.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Maximum bytes of a client's request ID.
const MAX_ID_LEN: usize = 128;
/// The status for a client disconnect, as nginx uses it.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Logs a request and records its metrics on drop: after its response has been sent, or at a client disconnect.
struct RequestLog {
    metrics: Arc<Metrics>,
    id: HeaderValue,
    method: String,
    /// The path without its query, which may be private.
    path: String,
    /// The matched route, or `site` or `unknown`: the metrics have a label for each, so their number must be small.
    route: String,
    start: Instant,
    status: u16,
    /// Marks the connection as active.
    _active: Option<ActiveRequest>,
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let time = self.start.elapsed();
        self.metrics.record_request(&self.route, self.status, time);
        tracing::info!(
            id = self.id.to_str().unwrap_or_default(),
            method = self.method,
            path = self.path,
            status = self.status,
            ms = (time.as_secs_f64() * 1e5).round() / 100.0,
        );
    }
}

/// Assigns an ID to a request, and records it in the log and the metrics.
pub async fn log_request(State(app): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let truncate = |text: &str, max_chars| text.chars().take(max_chars).collect::<String>();
    let (path, method) = (truncate(request.uri().path(), 200), truncate(request.method().as_str(), 32));
    let route = match request.extensions().get::<MatchedPath>() {
        Some(route) => route.as_str().to_owned(),
        None if app.site.get(request.uri().path()).is_some() => "site".to_owned(),
        None => "unknown".to_owned(),
    };
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let metrics = app.metrics.clone();
    let start = Instant::now();
    let head = request.method() == Method::HEAD;
    let _active = request.extensions_mut().remove();
    let mut log = RequestLog {
        metrics,
        id: id.clone(),
        method,
        path,
        route,
        start,
        status: CLIENT_CLOSED_REQUEST,
        _active,
    };
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    response.headers_mut().insert(REQUEST_ID, id);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if head || response.body().is_end_stream() {
        log.status = status;
        return response;
    }
    response.map(|body| Body::new(LoggedBody { body, log, status }))
}

/// A response body that logs its request when it has been sent.
struct LoggedBody {
    body: Body,
    log: RequestLog,
    /// The status of the response, which is logged after the whole body has been sent.
    status: u16,
}

impl http_body::Body for LoggedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.log.status = self.status;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Refuses a body whose declared length exceeds `max` bytes before it is read. The length of other bodies is limited as they are read.
pub async fn limit_declared_length(State(max): State<usize>, request: Request, next: Next) -> Response {
    let declared_length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    match declared_length.and_then(|length| length.parse::<u64>().ok()).filter(|length| *length > max as u64)
    {
        Some(length) => {
            let detail = format!("the body: expected at most {max} bytes, found {length}");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).into_response()
        }
        None => next.run(request).await,
    }
}

/// Refuses cross-origin requests from browsers. Browsers send forms and files to other origins without a preflight request; and with DNS
/// rebinding, a page of any host name that resolves to this machine is same-origin, so the host name is checked, too.
pub async fn reject_cross_origin(State(app): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let host = match host(&request) {
        Ok(host) => host,
        Err(error) => {
            return Problem::new(StatusCode::BAD_REQUEST, format!("the header Host: {error}"))
                .into_response();
        }
    };
    match cross_origin_reason(&app.config, &host, &request) {
        Some(detail) => Problem::new(StatusCode::FORBIDDEN, detail).into_response(),
        None => next.run(request).await,
    }
}

/// The host in the request, in lower case. Only HTTP/1.0 may omit it (RFC 9112, section 3.2).
///
/// # Errors
/// If the header is missing, repeated or invalid.
fn host(request: &Request) -> Result<String, &'static str> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let Some(host) = hosts.next() else {
        return if request.version() == Version::HTTP_10 { Ok(String::new()) } else { Err("missing") };
    };
    if hosts.next().is_some() {
        return Err("expected one value, found several");
    }
    let host = host.to_str().map_err(|_| "expected ASCII")?;
    if host.parse::<Authority>().is_err() || host.contains('@') {
        return Err("expected a name or an address, with or without a port");
    }
    Ok(host.to_ascii_lowercase())
}

/// The reason to refuse a request to `host`; `None` if it comes from a page of this server, an allowed origin, or a program.
fn cross_origin_reason(config: &Config, host: &str, request: &Request) -> Option<String> {
    let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let shorten = |text: &str| text.chars().take(100).collect::<String>();
    if config.address.ip().is_loopback() && !host.is_empty() && !is_allowed_host(host, &config.hosts) {
        let host = shorten(host);
        return Some(format!(
            "the host name {host:?} is not allowed; start the server with --allow-host to allow it"
        ));
    }
    let origin = text(header::ORIGIN).filter(|_| request.method() == Method::POST)?;
    let is_same_origin =
        origin.split_once("://").is_some_and(|(_, origin_host)| origin_host.eq_ignore_ascii_case(host));
    let is_known = is_same_origin || config.origins.iter().any(|allowed| allowed == origin);
    let origin = shorten(origin);
    (!is_known).then(|| {
        format!("the origin {origin:?} is not allowed; start the server with --cors-origin to allow it")
    })
}

/// True if `host`, with or without a port, is `localhost`, an IP address, or one of `allowed`.
fn is_allowed_host(host: &str, allowed: &[String]) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost"
        || address.is_ok()
        || allowed.iter().any(|allowed_host| allowed_host.eq_ignore_ascii_case(name))
}

/// The client's ID for the request if it is safe to log, or a generated one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let is_safe = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=MAX_ID_LEN).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    if let Some(id) = headers.get(REQUEST_ID).filter(is_safe) {
        return id.clone();
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // The process ID makes the IDs of a restarted server differ.
    let id = format!("{:x}-{number:x}", std::process::id());
    HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("-"))
}

/// Refuses requests without the token, if one is configured.
pub async fn authenticate(State(app): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let Some(token) = &app.config.token else { return next.run(request).await };
    let client_token = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let client_token = client_token.and_then(|value| {
        let (scheme, client_token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| client_token.trim())
    });
    // Hashes have equal lengths and are compared in constant time, so that timing reveals nothing about the token.
    let hash = |text: &str| Sha256::digest(text.as_bytes());
    match client_token {
        Some(client_token) if bool::from(hash(client_token)[..].ct_eq(&hash(token)[..])) => {
            next.run(request).await
        }
        _ => Problem::new(StatusCode::UNAUTHORIZED, "expected the header Authorization: Bearer TOKEN")
            .into_response(),
    }
}

/// Cancels a request at its timeout.
pub async fn enforce_timeout(State(app): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(app.config.timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => timeout_problem(&app).into_response(),
    }
}

/// The problem to report at a request's timeout.
pub fn timeout_problem(app: &AppState) -> Problem {
    let detail = format!("the request timed out after {} s", app.config.timeout.as_secs_f64());
    Problem::new(StatusCode::GATEWAY_TIMEOUT, detail)
}

/// The response if a handler panics; other requests are still served.
pub fn panic_response(payload: Box<dyn Any + Send>) -> Response {
    let payload =
        payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    tracing::error!("a handler panicked: {}", payload.unwrap_or("unknown"));
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal server error").into_response()
}

/// The problem to report for methods that a route does not support.
pub async fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "the route does not support this method")
}

#[cfg(test)]
mod tests {
    use super::is_allowed_host;

    #[test]
    fn local_host_names_are_allowed_and_others_must_be_listed() {
        let allowed = ["cats.example".to_owned()];
        for host in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:80", "[::1]", "cats.example:443"] {
            assert!(is_allowed_host(host, &allowed), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "cats.example.evil"]
        {
            assert!(!is_allowed_host(host, &allowed), "{host}");
        }
    }
}
