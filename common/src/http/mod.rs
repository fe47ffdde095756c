//! Serves HTTP: the accept loop with its limits and drain ([`serve`](mod@serve)), listen addresses
//! ([`listen`]), answers ([`respond`]), compression ([`gzip`]), certificate files ([`tls`]).
//!
//! ```text
//! listen ─► serve ─► places: who stays when there are too many
//!             └────► connection: TLS, HTTP ─► Handler ─► answer: held until it is written
//!                       stall, streams: clients that do not read
//! ```

mod answer;
pub mod bucket;
mod connection;
pub mod gzip;
mod idle;
pub mod limited;
pub mod listen;
pub mod network;
mod places;
mod plain;
pub mod respond;
pub mod serve;
mod stall;
mod streams;
pub mod suites;
pub mod tls;

use bytes::Bytes;
use http_body_util::Full;

/// Every answer is complete before it is sent.
pub type Response = http::Response<Full<Bytes>>;
/// A request whose body has not been read.
pub type Request = http::Request<hyper::body::Incoming>;
