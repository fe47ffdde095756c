//! Owns the errors that clients see: `metav1.Status` objects.

use http::{HeaderValue, StatusCode, header};
use podgauge_common::http::Response;
use serde_json::{Value, json};

use super::respond;

/// An error with its code, reason and text.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    pub code: StatusCode,
    reason: &'static str,
    pub message: String,
    details: Option<Value>,
}

impl Status {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    pub fn forbidden(message: impl Into<String>, details: Value) -> Self {
        let mut status = Self::new(StatusCode::FORBIDDEN, "Forbidden", message);
        status.details = Some(details);
        status
    }

    /// No such path.
    pub fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
    }

    /// `what` names resource, object and selector; `why` is the sentence people put into issues.
    pub fn no_metric(metric: &str, what: &str, why: &str) -> Self {
        let message = format!("the server could not find the metric {metric} for {what}: {why}");
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// More than is answered at once; worth another try in a second.
    pub fn too_many_requests(message: impl Into<String>) -> Self {
        let mut status = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
        status.details = Some(json!({"retryAfterSeconds": 1}));
        status
    }

    /// The head holds more than is read of one.
    pub fn head_too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "BadRequest", message)
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        let message = format!("Internal error occurred: {message}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    pub fn response(&self, pretty: bool) -> Response {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status["code"] = json!(self.code.as_u16());
        let mut response = respond::json(self.code, &status, pretty);
        if self.code == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
