//! Owns the exporter's metrics about itself, `podgauge_exporter_…`, in the official client's registry.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use podgauge_common::exposition::registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::gpu::CallTimes;

/// Handles to the metrics; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct SelfMetrics {
    registry: Arc<Mutex<Registry>>,
    nvml_seconds: Counter<f64, AtomicU64>,
    kubelet_polls: Family<PollResult, Counter>,
    pages: Counter,
    page_bytes: Gauge,
    render_seconds: Counter<f64, AtomicU64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PollResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

// === impl SelfMetrics ===

impl SelfMetrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("podgauge_exporter");
        let build: Family<Build, Gauge> = Family::default();
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "1, with the version of podgauge-exporter", build);
        let metrics = Self {
            nvml_seconds: Counter::default(),
            kubelet_polls: Family::default(),
            pages: Counter::default(),
            page_bytes: Gauge::default(),
            render_seconds: Counter::default(),
            registry: Arc::default(),
        };
        registry.register(
            "nvml_seconds",
            "Time spent inside NVML, event waits excluded",
            metrics.nvml_seconds.clone(),
        );
        registry.register(
            "kubelet_polls",
            "Lists asked of the kubelet, by result",
            metrics.kubelet_polls.clone(),
        );
        registry.register("pages", "Pages rendered", metrics.pages.clone());
        registry.register("page_bytes", "Size of the last page", metrics.page_bytes.clone());
        registry.register("render_seconds", "Time spent rendering pages", metrics.render_seconds.clone());
        *metrics.registry.lock() = registry;
        metrics
    }

    pub(crate) fn kubelet_polled(&self, answered: bool) {
        let result = if answered { "success" } else { "failure" };
        self.kubelet_polls.get_or_create(&PollResult { result }).inc();
    }

    pub(crate) fn rendered(&self, bytes: usize, time: Duration, calls: &CallTimes) {
        self.pages.inc();
        self.page_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.render_seconds.inc_by(time.as_secs_f64());
        // The NVML thread counts on its own; the counter is brought up to its sum.
        self.nvml_seconds.inc_by((calls.seconds() - self.nvml_seconds.get()).max(0.0));
    }

    /// The metrics as Prometheus text.
    pub(crate) fn text(&self) -> String {
        registry::text(&self.registry.lock())
    }
}
