//! Owns the adapter's metrics about itself.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use podgauge_common::exposition::registry;
use podgauge_common::http::limited::Limited;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::cluster::PodIndex;
use crate::evaluate::Omission;
use crate::source::page::Limit;
use crate::source::set::ExporterSet;

/// Upper bounds of the latency histogram, seconds.
const BUCKETS: [f64; 10] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    resource: &'static str,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LatencyLabels {
    verb: &'static str,
    resource: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    method: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ScrapeLabels {
    exporter: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    exporter: String,
    limit: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabels {
    certificate: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ApiServiceLabels {
    api_service: String,
    result: &'static str,
}

/// Counts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SelfMetrics {
    registry: Arc<RwLock<Registry>>,
    requests: Family<RequestLabels, Counter>,
    latency: Family<LatencyLabels, Histogram>,
    authentications: Family<OutcomeLabels, Counter>,
    authorizations: Family<OutcomeLabels, Counter>,
    scrapes: Family<ScrapeLabels, Counter>,
    page_bytes: Counter,
    cuts: Family<LimitLabels, Counter>,
    dropped: Counter,
    omissions: Family<ReasonLabels, Counter>,
    expiries: Family<CertificateLabels, Gauge>,
    ca_bundles: Family<ApiServiceLabels, Counter>,
}

impl Default for SelfMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("podgauge_adapter");
        let latency = Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        let made = Self {
            registry: Arc::default(),
            requests: Family::default(),
            latency,
            authentications: Family::default(),
            authorizations: Family::default(),
            scrapes: Family::default(),
            page_bytes: Counter::default(),
            cuts: Family::default(),
            dropped: Counter::default(),
            omissions: Family::default(),
            expiries: Family::default(),
            ca_bundles: Family::default(),
        };
        registry.register("requests", "Requests answered", made.requests.clone());
        registry.register(
            "request_duration_seconds",
            "Time from a request's head to its answer",
            made.latency.clone(),
        );
        registry.register(
            "authentications",
            "Requests by how their user was found out",
            made.authentications.clone(),
        );
        registry.register(
            "authorizations",
            "Requests by who decided that they are allowed",
            made.authorizations.clone(),
        );
        registry.register("scrapes", "Scrapes by exporter", made.scrapes.clone());
        registry.register("page_bytes", "Bytes of exporters' pages as received", made.page_bytes.clone());
        registry.register(
            "pages_cut",
            "Pages of exporters that had more than is kept, by the first limit reached",
            made.cuts.clone(),
        );
        registry.register(
            "samples_dropped",
            "Samples of exporters that a limit kept out or that were no numbers",
            made.dropped.clone(),
        );
        registry.register("omissions", "Pods left out of answers, by reason", made.omissions.clone());
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When a certificate of this adapter expires, as Unix time",
            made.expiries.clone(),
        );
        registry.register(
            "ca_bundle_applies",
            "Times that the caBundle of an APIService was set",
            made.ca_bundles.clone(),
        );
        *made.registry.write() = registry;
        made
    }
}

impl SelfMetrics {
    /// Adds the sizes of what is kept, read when the page is asked for.
    pub fn watch(&self, pods: PodIndex, exporters: Arc<ExporterSet>) {
        self.registry.write().register_collector(Box::new(Sizes { pods, exporters }));
    }

    /// Adds what the limits of the HTTP server took effect on.
    pub fn watch_server(&self, limited: &Arc<Limited>) {
        limited.register(&mut self.registry.write());
    }

    pub fn request(&self, verb: &'static str, resource: &'static str, code: u16, took: Duration) {
        self.requests.get_or_create(&RequestLabels { verb, resource, code }).inc();
        self.latency.get_or_create(&LatencyLabels { verb, resource }).observe(took.as_secs_f64());
    }

    pub fn authentication(&self, method: &'static str, result: &'static str) {
        self.authentications.get_or_create(&OutcomeLabels { method, result }).inc();
    }

    pub fn authorization(&self, method: &'static str, result: &'static str) {
        self.authorizations.get_or_create(&OutcomeLabels { method, result }).inc();
    }

    pub fn scraped(&self, exporter: &str, answered: bool) {
        let result = if answered { "success" } else { "failure" };
        self.scrapes.get_or_create(&ScrapeLabels { exporter: exporter.to_owned(), result }).inc();
    }

    /// An exporter is gone for good, and with it what was counted of it.
    pub fn exporter_gone(&self, exporter: &str) {
        for result in ["success", "failure"] {
            self.scrapes.remove(&ScrapeLabels { exporter: exporter.to_owned(), result });
        }
        for limit in Limit::ALL {
            self.cuts.remove(&LimitLabels { exporter: exporter.to_owned(), limit: limit.label() });
        }
    }

    /// Bytes of a page as they came.
    pub fn page_bytes(&self, count: usize) {
        self.page_bytes.inc_by(count as u64);
    }

    /// A page had more than is kept.
    pub fn page_cut(&self, exporter: &str, limit: Limit) {
        self.cuts.get_or_create(&LimitLabels { exporter: exporter.to_owned(), limit: limit.label() }).inc();
    }

    pub fn samples_dropped(&self, count: u64) {
        self.dropped.inc_by(count);
    }

    pub fn omitted(&self, omission: &Omission) {
        self.omissions.get_or_create(&ReasonLabels { reason: omission.reason().as_str() }).inc();
    }

    /// `certificate`: `serving` or `ca`.
    pub fn certificate_expires(&self, certificate: &'static str, at: jiff::Timestamp) {
        self.expiries.get_or_create(&CertificateLabels { certificate }).set(at.as_second());
    }

    pub fn ca_bundle_applied(&self, api_service: &str, result: &'static str) {
        let api_service = api_service.to_owned();
        self.ca_bundles.get_or_create(&ApiServiceLabels { api_service, result }).inc();
    }

    /// As OpenMetrics text.
    pub fn open_metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry.read()).expect("because a String takes every write");
        text
    }

    /// As Prometheus text 0.0.4, in which a counter's family is called as its samples are.
    pub fn prometheus_text(&self) -> String {
        registry::text(&self.registry.read())
    }
}

/// Sizes of what is kept.
#[derive(Debug)]
struct Sizes {
    pods: PodIndex,
    exporters: Arc<ExporterSet>,
}

impl Collector for Sizes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let exporters = self.exporters.current();
        let budget = self.exporters.budget();
        let series: usize = exporters.all().map(|exporter| exporter.state.read().series()).sum();
        for (name, help, value) in [
            ("pods", "Pods in the index.", self.pods.len()),
            ("exporters", "Exporters that are scraped.", exporters.all().count()),
            ("series", "Series kept of exporters.", series),
            (
                "series_used",
                "What counts against --max-series: at least four for each container on a device.",
                budget.used_series(),
            ),
            ("series_max", "--max-series.", budget.max_series()),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_text_form_names_counters_as_their_samples() {
        let metrics = SelfMetrics::default();
        metrics.scraped("gpu-1", true);
        let text = metrics.prometheus_text();
        assert!(text.contains("# TYPE podgauge_adapter_scrapes_total counter\n"), "{text}");
        assert!(text.contains("podgauge_adapter_scrapes_total{exporter=\"gpu-1\",result=\"success\"} 1\n"));
        assert!(!text.contains("# EOF"));
        assert!(metrics.open_metrics().contains("# TYPE podgauge_adapter_scrapes counter\n"));
    }
}
