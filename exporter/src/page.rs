//! Owns the finished page: bytes that requests are answered with, compressed at most once.

use std::sync::OnceLock;

use bytes::Bytes;
use podgauge_common::http::gzip;

/// A page that has been rendered.
#[derive(Debug, Default)]
pub(crate) struct Page {
    plain: Bytes,
    gzip: OnceLock<Bytes>,
}

impl Page {
    pub(crate) fn new(text: String) -> Self {
        Self { plain: Bytes::from(text), gzip: OnceLock::new() }
    }

    pub(crate) fn plain(&self) -> Bytes {
        self.plain.clone()
    }

    /// Compressed at the first request that wants it so, not at every tick.
    pub(crate) fn compressed(&self) -> Bytes {
        self.gzip.get_or_init(|| gzip::compress(&self.plain)).clone()
    }
}
