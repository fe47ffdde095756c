//! A GPU node without a GPU: everything around the simulated NVML library of `podgauge-sim-nvml`.
//!
//! The kubelet's pod-resources socket, a stand-in API server with the aggregation layer's proxy,
//! the HorizontalPodAutoscaler's arithmetic, the certificates between them, and the demo made of
//! all that. Used by the command line (`podgauge-sim`) and, as a library, by the tests of the
//! whole programs.

pub mod aggregator;
pub mod apiserver;
pub mod certs;
pub mod demo;
pub mod kubelet;
pub mod scenario_file;
mod serving;

pub use podgauge_common::hpa;
pub use serving::{Port, free_address};
