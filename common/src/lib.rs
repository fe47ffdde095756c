//! What podgauge's exporter and adapter share.
//!
//! | module | owns |
//! |---|---|
//! | [`catalogue`] | the one table of metrics: names, types, units, and the names DCGM knows |
//! | [`exposition`] | Prometheus text 0.0.4, written and read |
//! | [`measurement`] | which numbers can be measurements |
//! | [`quantity`] | Kubernetes quantities |
//! | [`hpa`] | the HorizontalPodAutoscaler's arithmetic |
//! | [`http`] | serving HTTP/1.1 and HTTP/2 with limits, TLS that reloads, and drain |
//! | [`cluster`] | the connection to the API server |
//! | [`contents`] | noticing that files have changed |
//! | [`duration`] | Go's way of writing durations and booleans in flags |
//! | [`logging`], [`readiness`], [`shutdown`] | what their names say |

pub mod catalogue;
pub mod cluster;
pub mod contents;
pub mod duration;
pub mod exposition;
pub mod hpa;
pub mod http;
pub mod logging;
pub mod measurement;
pub mod quantity;
pub mod readiness;
pub mod shutdown;
