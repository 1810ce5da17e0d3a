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

/// The header for a request's ID: the client's, if it sends one, else a generated one.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_ID_LEN: usize = 128;
/// The status of a request whose client disconnected, the same as nginx's.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Logs a request and records its metrics when its response has been sent, or its client has disconnected.
struct RequestLog {
    metrics: Arc<Metrics>,
    id: HeaderValue,
    method: String,
    /// The requested path without its query, which may be private.
    path: String,
    /// The route, of which there are few.
    route: String,
    start: Instant,
    status: u16,
    /// Keeps the request's connection from counting as idle.
    _busy: Option<ActiveRequest>,
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

/// Gives a request an ID, and records it in the log and the metrics.
pub async fn account(State(app): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let cut = |text: &str, most| text.chars().take(most).collect::<String>();
    let (path, method) = (cut(request.uri().path(), 200), cut(request.method().as_str(), 32));
    let route = match request.extensions().get::<MatchedPath>() {
        Some(route) => route.as_str().to_owned(),
        None if app.site.get(request.uri().path()).is_some() => "site".to_owned(),
        None => "unknown".to_owned(),
    };
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let metrics = app.metrics.clone();
    let start = Instant::now();
    let head = request.method() == Method::HEAD;
    let _busy = request.extensions_mut().remove();
    let mut account = RequestLog {
        metrics,
        id: id.clone(),
        method,
        path,
        route,
        start,
        status: CLIENT_CLOSED_REQUEST,
        _busy,
    };
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    response.headers_mut().insert(REQUEST_ID, id);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if head || response.body().is_end_stream() {
        account.status = status;
        return response;
    }
    response.map(|body| Body::new(LoggedBody { body, account, status }))
}

/// The body of a response, which is logged when it has been sent.
struct LoggedBody {
    body: Body,
    account: RequestLog,
    /// The response's status; the log gets it when everything is sent.
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
            self.account.status = self.status;
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

/// Refuses a body whose declared length is more than `most` bytes, before any of it is read. A body of undeclared length is read up to
/// that.
pub async fn declared(State(most): State<usize>, request: Request, next: Next) -> Response {
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    match declared.and_then(|length| length.parse::<u64>().ok()).filter(|length| *length > most as u64) {
        Some(length) => {
            let detail = format!("the body: expected at most {most} bytes, found {length}");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).into_response()
        }
        None => next.run(request).await,
    }
}

/// Refuses requests that a page of another origin makes a browser send. Forms and files need no permission to be sent, and a name that
/// resolves to this machine makes any page same-origin.
pub async fn reject_cross_origin(State(app): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let host = match host(&request) {
        Ok(host) => host,
        Err(wrong) => {
            return Problem::new(StatusCode::BAD_REQUEST, format!("the header Host: {wrong}"))
                .into_response();
        }
    };
    match cross_origin_reason(&app.config, &host, &request) {
        Some(detail) => Problem::new(StatusCode::FORBIDDEN, detail).into_response(),
        None => next.run(request).await,
    }
}

/// The host that the request names, in lower case. Only HTTP/1.0 may leave it out (RFC 9112, section 3.2).
fn host(request: &Request) -> Result<String, &'static str> {
    let mut all = request.headers().get_all(header::HOST).iter();
    let Some(host) = all.next() else {
        return if request.version() == Version::HTTP_10 { Ok(String::new()) } else { Err("missing") };
    };
    if all.next().is_some() {
        return Err("expected one, found several");
    }
    let host = host.to_str().map_err(|_| "expected ASCII")?;
    if host.parse::<Authority>().is_err() || host.contains('@') {
        return Err("expected a name or an address, with or without a port");
    }
    Ok(host.to_ascii_lowercase())
}

/// The reason to refuse a request to `host`; `None` if it comes from a page of this server or from a program.
fn cross_origin_reason(config: &Config, host: &str, request: &Request) -> Option<String> {
    let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let shown = |text: &str| text.chars().take(100).collect::<String>();
    if config.address.ip().is_loopback() && !host.is_empty() && !is_allowed_host(host, &config.hosts) {
        let host = shown(host);
        return Some(format!("this server is not called {host:?}: --allow-host lets clients call it so"));
    }
    let origin = text(header::ORIGIN).filter(|_| request.method() == Method::POST)?;
    let own = origin.split_once("://").is_some_and(|(_, named)| named.eq_ignore_ascii_case(host));
    let known = own || config.origins.iter().any(|known| known == origin);
    let origin = shown(origin);
    (!known).then(|| format!("pages of {origin:?} may not use this server: --cors-origin lets them"))
}

/// True if `host`, with or without a port, is a local name of this machine, or one of `others`.
fn is_allowed_host(host: &str, others: &[String]) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || address.is_ok() || others.iter().any(|other| other.eq_ignore_ascii_case(name))
}

/// The client's ID of the request, if it is safe to log; else a generated one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let harmless = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=MAX_ID_LEN).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    if let Some(id) = headers.get(REQUEST_ID).filter(harmless) {
        return id.clone();
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // The process ID makes the IDs of a restarted server differ.
    let id = format!("{:x}-{number:x}", std::process::id());
    HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("-"))
}

/// Refuses requests without the token, if there is one.
pub async fn authenticate(State(app): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let Some(token) = &app.config.token else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| {
        let (scheme, given) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| given.trim())
    });
    // Hashes have equal length and are compared in constant time, so that timing reveals nothing about the token.
    let hash = |text: &str| Sha256::digest(text.as_bytes());
    match given {
        Some(given) if bool::from(hash(given)[..].ct_eq(&hash(token)[..])) => next.run(request).await,
        _ => Problem::new(StatusCode::UNAUTHORIZED, "expected the header Authorization: Bearer TOKEN")
            .into_response(),
    }
}

/// Ends a request at its timeout, which cancels its work.
pub async fn enforce_timeout(State(app): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(app.config.timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => timeout_problem(&app).into_response(),
    }
}

/// The problem to report at a request's timeout.
pub fn timeout_problem(app: &AppState) -> Problem {
    let detail = format!("not done in {} s", app.config.timeout.as_secs_f64());
    Problem::new(StatusCode::GATEWAY_TIMEOUT, detail)
}

/// The response if a handler panics; other requests are still served.
pub fn panicked(what: Box<dyn Any + Send>) -> Response {
    let what = what.downcast_ref::<String>().map(String::as_str).or(what.downcast_ref::<&str>().copied());
    tracing::error!("a handler panicked: {}", what.unwrap_or("unknown"));
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "an error of the server").into_response()
}

/// The problem to report for methods that a route does not support.
pub async fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this method is not for this address")
}

#[cfg(test)]
mod tests {
    use super::is_allowed_host;

    #[test]
    fn names_of_this_machine_are_known_and_others_must_be_named() {
        let others = ["cats.example".to_owned()];
        for host in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:80", "[::1]", "cats.example:443"] {
            assert!(is_allowed_host(host, &others), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "cats.example.evil"]
        {
            assert!(!is_allowed_host(host, &others), "{host}");
        }
    }
}
