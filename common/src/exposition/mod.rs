//! Owns the Prometheus text format 0.0.4: [`write`](mod@write) makes the exporter's page,
//! [`parse`] reads any exporter's, [`registry`] prints what the official client counted.

pub mod parse;
pub mod registry;
pub mod write;

/// The Content-Type of a page. Prometheus 3 refuses a page without one.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
