//! Owns the exporter's metrics about itself, `podgauge_exporter_…`, in the official client's registry.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use podgauge_common::exposition::registry;
use podgauge_common::exposition::write::{LabelText, PageWriter, Value};
use podgauge_common::http::limited::Limited;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::gpu::account;
use crate::render::Rendered;
use crate::snapshot::{DeviceSnapshot, Divided, Snapshot};

/// Bounds of the kubelet's answer times, seconds. A call ends after 5.
const KUBELET_BOUNDS: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0];

type Seconds = Gauge<f64, AtomicU64>;

/// Handles to the metrics; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct SelfMetrics {
    registry: Arc<Mutex<Registry>>,
    nvml_seconds: Counter<f64, AtomicU64>,
    nvml_unseen: Seconds,
    /// Of the newest readings; `None`: there are none, and no sample.
    readings_age: Arc<Mutex<Option<Duration>>>,
    kubelet_polls: Family<PollResult, Counter>,
    kubelet_errors: Family<PollError, Counter>,
    kubelet_seconds: Histogram,
    pages: Counter,
    page_bytes: Gauge,
    page_series: Gauge,
    page_rendered: Seconds,
    render_seconds: Counter<f64, AtomicU64>,
    dropped_series: Family<Dropped, Counter>,
    devices_allocated: Gauge,
    devices_labelled: Gauge,
    device_ids_unmatched: Gauge,
    claimed_devices_unknown: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PollResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PollError {
    error: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Dropped {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

const NOT_FINITE: Dropped = Dropped { reason: "not_finite" };

// === impl SelfMetrics ===

impl SelfMetrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("podgauge_exporter");
        let build: Family<Build, Gauge> = Family::default();
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "1, with the version of podgauge-exporter", build);
        let metrics = Self {
            nvml_seconds: Counter::default(),
            nvml_unseen: Gauge::default(),
            readings_age: Arc::default(),
            kubelet_polls: Family::default(),
            kubelet_errors: Family::default(),
            kubelet_seconds: Histogram::new(KUBELET_BOUNDS),
            pages: Counter::default(),
            page_bytes: Gauge::default(),
            page_series: Gauge::default(),
            page_rendered: Gauge::default(),
            render_seconds: Counter::default(),
            dropped_series: Family::default(),
            devices_allocated: Gauge::default(),
            devices_labelled: Gauge::default(),
            device_ids_unmatched: Gauge::default(),
            claimed_devices_unknown: Gauge::default(),
            registry: Arc::default(),
        };
        // From the start, so that its first increase is seen.
        drop(metrics.dropped_series.get_or_create(&NOT_FINITE));
        metrics.register(&mut registry);
        *metrics.registry.lock() = registry;
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        let nvml_seconds = self.nvml_seconds.clone();
        registry.register("nvml_seconds", "Time spent inside NVML, event waits excluded", nvml_seconds);
        registry.register(
            "nvml_unseen_seconds",
            "Time for which the oldest NVML call under way has not returned; a call that hangs makes it grow",
            self.nvml_unseen.clone(),
        );
        registry.register(
            "kubelet_polls",
            "Lists asked of the kubelet, by result",
            self.kubelet_polls.clone(),
        );
        registry.register(
            "kubelet_errors",
            "Lists not got of the kubelet, by error",
            self.kubelet_errors.clone(),
        );
        registry.register(
            "kubelet_poll_seconds",
            "Time until the kubelet had answered or failed",
            self.kubelet_seconds.clone(),
        );
        registry.register("pages", "Pages rendered", self.pages.clone());
        registry.register("page_bytes", "Size of the last page", self.page_bytes.clone());
        registry.register("page_series", "Samples in the last page, without these", self.page_series.clone());
        registry.register(
            "page_rendered_timestamp_seconds",
            "When the last page was rendered, in seconds since the epoch",
            self.page_rendered.clone(),
        );
        registry.register("render_seconds", "Time spent rendering pages", self.render_seconds.clone());
        registry.register(
            "dropped_series",
            "Samples left out of pages, by reason",
            self.dropped_series.clone(),
        );
        registry.register(
            "devices_allocated",
            "Devices that the kubelet gave to a container",
            self.devices_allocated.clone(),
        );
        registry.register(
            "devices_labelled",
            "Devices whose samples carry a pod",
            self.devices_labelled.clone(),
        );
        registry.register(
            "device_ids_unmatched",
            "Device ids in the kubelet's list that match no GPU or MIG instance of this node",
            self.device_ids_unmatched.clone(),
        );
        registry.register(
            "claimed_devices_unknown",
            "Devices held by claims of which it is not known which they are",
            self.claimed_devices_unknown.clone(),
        );
    }

    /// Adds what the limits of the HTTP server took effect on.
    pub(crate) fn watch_server(&self, limited: &Arc<Limited>) {
        limited.register(&mut self.registry.lock());
    }

    /// So many devices that are held by claims could not be told.
    pub(crate) fn claims_learned(&self, unknown: usize) {
        self.claimed_devices_unknown.set(whole(unknown));
    }

    /// The kubelet was asked; `error` is what became of it in one word.
    pub(crate) fn kubelet_polled(&self, time: Duration, error: Option<&'static str>) {
        let result = if error.is_none() { "success" } else { "failure" };
        self.kubelet_polls.get_or_create(&PollResult { result }).inc();
        self.kubelet_seconds.observe(time.as_secs_f64());
        if let Some(error) = error {
            self.kubelet_errors.get_or_create(&PollError { error }).inc();
        }
    }

    pub(crate) fn rendered(&self, page: &Rendered, time: Duration) {
        self.pages.inc();
        self.page_bytes.set(whole(page.text.len()));
        self.page_series.set(whole(page.series));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.page_rendered.set((now.as_secs_f64() * 1000.0).round() / 1000.0);
        self.render_seconds.inc_by(time.as_secs_f64());
        self.dropped_series.get_or_create(&NOT_FINITE).inc_by(page.dropped as u64);
        // Calls are booked where they are made; the counter is brought up to their sum.
        let spent = account::spent().as_secs_f64();
        self.nvml_seconds.inc_by((spent - self.nvml_seconds.get()).max(0.0));
    }

    /// Counts whose devices are known to be whose.
    pub(crate) fn covered(&self, snapshot: &Snapshot) {
        let devices = &snapshot.devices;
        self.devices_allocated.set(whole(devices.iter().filter(|d| !d.allocations.is_empty()).count()));
        // A shared device's use is divided among its pods, though no family carries one pod alone.
        let is_labelled = |device: &&DeviceSnapshot| {
            device.owner.is_some() || matches!(device.utilization, Divided::Parts(_))
        };
        self.devices_labelled.set(whole(devices.iter().filter(is_labelled).count()));
    }

    /// So many ids of the kubelet's list match no device.
    pub(crate) fn unmatched(&self, ids: usize) {
        self.device_ids_unmatched.set(whole(ids));
    }

    /// `readings`: how old the newest are; `None` if there are none.
    pub(crate) fn aged(&self, readings: Option<Duration>) {
        self.nvml_unseen.set(account::unreturned().map_or(0.0, |call| call.time.as_secs_f64()));
        *self.readings_age.lock() = readings;
    }

    /// The metrics as Prometheus text.
    pub(crate) fn text(&self) -> String {
        let mut page = PageWriter::default();
        page.append(&registry::text(&self.registry.lock()));
        page.family(
            "podgauge_exporter_readings_age_seconds",
            "gauge",
            "Age of the GPU readings that the page is made from.",
        );
        if let Some(age) = *self.readings_age.lock() {
            page.sample(&LabelText::default(), Value::F64(age.as_secs_f64()));
        }
        let account = account::account();
        let labels = |call: &str| LabelText::default().with("call", call);
        page.family("podgauge_exporter_nvml_calls_total", "counter", "NVML calls made.");
        for (call, calls) in &account.calls {
            page.sample(&labels(call), Value::U64(calls.count));
        }
        page.family(
            "podgauge_exporter_nvml_call_seconds_total",
            "counter",
            "Time spent in NVML calls; nvmlEventSetWait_v2 waits in it.",
        );
        for (call, calls) in &account.calls {
            page.sample(&labels(call), Value::F64(calls.time.as_secs_f64()));
        }
        page.family(
            "podgauge_exporter_nvml_errors_total",
            "counter",
            "NVML calls that returned an error, by NVML's name of it; NOT_FOUND of samples: nothing newer.",
        );
        for ((call, code), count) in &account.errors {
            page.sample(&labels(call).with("code", code), Value::U64(*count));
        }
        page.finish()
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
