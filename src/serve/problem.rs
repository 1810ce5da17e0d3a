//! Errors as clients receive them: problem details (RFC 9457).

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tiny_cats_export::{Error, excerpt};

/// The error response to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    /// The invalid field of the request, if one field is to blame.
    field: Option<String>,
    detail: String,
    /// The time after which a retry may succeed, in seconds.
    retry_after: Option<u64>,
}

impl Problem {
    /// A problem with this status and detail; the detail is shortened to an excerpt.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, field: None, detail: excerpt(&detail.into()).into_owned(), retry_after: None }
    }

    /// A problem with a field of the request: status 422.
    pub fn invalid_field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail) }
    }

    /// Adds the header `Retry-After`.
    pub fn with_retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Converts the problem to JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let title = self.status.canonical_reason().unwrap_or("error");
        let mut json = json!({"title": title, "status": self.status.as_u16(), "detail": self.detail});
        if let Some(field) = &self.field {
            json["field"] = json!(field);
        }
        json
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Request { field, message } => Self::invalid_field(field, message),
            error => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = self.to_json().to_string();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
