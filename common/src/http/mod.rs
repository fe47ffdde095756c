//! Owns HTTP serving: the accept loop with its limits and drain ([`serve`](mod@serve)), answers
//! ([`respond`]), compression ([`gzip`]), certificate files ([`tls`]).

pub mod gzip;
mod idle;
pub mod respond;
pub mod serve;
mod stall;
pub mod tls;

use bytes::Bytes;
use http_body_util::Full;

/// Every answer is complete before it is sent.
pub type Response = http::Response<Full<Bytes>>;
/// A request whose body has not been read.
pub type Request = http::Request<hyper::body::Incoming>;
