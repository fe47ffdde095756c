//! Owns how an answer is written: JSON, always, whatever Accept says; see the HPA's requests, which
//! ask for protobuf first.

use http::{HeaderValue, StatusCode, header};
use podgauge_common::http::{Response, respond};
use serde::Serialize;

/// A JSON answer that nobody on the way may keep.
pub(super) fn json(code: StatusCode, body: &impl Serialize, pretty: bool) -> Response {
    let written = if pretty { serde_json::to_vec_pretty(body) } else { serde_json::to_vec(body) };
    let mut bytes = written.expect("because these types have string keys only");
    bytes.push(b'\n');
    // The answer may wait to be read, and counts with its length.
    bytes.shrink_to_fit();
    let mut response = respond::body(code, "application/json", bytes);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}
