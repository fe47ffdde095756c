//! Makes small answers: text, and refusals for the moment.

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::Full;

use super::Response;

/// An answer of the given content type. Browsers are told not to guess another one.
pub fn body(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A plain-text answer; a newline is added.
pub fn text(status: StatusCode, text: impl std::fmt::Display) -> Response {
    body(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

/// A 429 that is worth another try in a second.
pub fn busy(reason: impl std::fmt::Display) -> Response {
    let mut response = text(StatusCode::TOO_MANY_REQUESTS, reason);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
