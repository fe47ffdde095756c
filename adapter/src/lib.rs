//! podgauge-adapter: answers HorizontalPodAutoscalers with what pods do on their GPUs.
//!
//! ```text
//! exporters' pages ─► source ──┐
//! API server watch ─► cluster ─┼─► evaluate ─► apiserver ─► MetricValueList
//! trust, TLS files ─► auth ────┘
//! ```
//! Nothing flows back: a request reads what is already there.

pub mod apiserver;
pub mod args;
pub mod auth;
pub mod certificates;
pub mod cluster;
pub mod evaluate;
pub mod explain;
mod map;
pub mod metric;
mod open_files;
pub mod run;
pub mod self_metrics;
pub mod source;
pub mod uid;
