//! The rows with a budget: how they are called, what is allowed, and what others were measured at.

use crate::report::{Budget, Unit};

const fn at_most(
    id: &'static str,
    what: &'static str,
    unit: Unit,
    limit: f64,
    anchor: &'static str,
) -> Budget {
    Budget { id, what, unit, limit, anchor }
}

pub(crate) const EXPORTER_P50: Budget = at_most(
    "exporter-p50",
    "exporter, 8 GPUs: GET /metrics p50",
    Unit::Ms,
    0.15,
    "nvitop-exporter 2.9 ms, all-smi 6.2 ms",
);
pub(crate) const EXPORTER_P99: Budget =
    at_most("exporter-p99", "exporter, 8 GPUs: GET /metrics p99", Unit::Ms, 1.0, "");
pub(crate) const EXPORTER_CPU: Budget =
    at_most("exporter-cpu", "exporter's own code, a scrape a second: CPU", Unit::PercentOfCore, 0.5, "");
pub(crate) const EXPORTER_RSS: Budget = at_most(
    "exporter-rss",
    "exporter: resident memory",
    Unit::Mib,
    10.0,
    "nvitop-exporter 64 MB, all-smi 31 MB",
);
pub(crate) const EXPORTER_GROWTH: Budget =
    at_most("exporter-growth", "exporter: growth over 100,000 scrapes", Unit::Mib, 0.5, "");
pub(crate) const EXPORTER_START: Budget =
    at_most("exporter-start", "exporter: first complete page after start", Unit::Seconds, 0.5, "");
pub(crate) const ADAPTER_LATENCIES: [Budget; 3] = [
    at_most(
        "adapter-p50-100",
        "adapter, 10,000 pods: selector matching 100 pods, p50",
        Unit::Ms,
        0.15,
        "prometheus-adapter with 1,000 pods 29 ms",
    ),
    at_most("adapter-p99-100", "adapter, 10,000 pods: selector matching 100 pods, p99", Unit::Ms, 0.5, ""),
    at_most(
        "adapter-p50-1000",
        "adapter, 10,000 pods: selector matching 1,000 pods, p50",
        Unit::Ms,
        1.0,
        "prometheus-adapter with 1,000 pods 134 ms",
    ),
];
pub(crate) const ADAPTER_RSS: Budget = at_most(
    "adapter-rss",
    "adapter, 10,000 pods and 40,000 series: resident memory",
    Unit::Mib,
    60.0,
    "prometheus-adapter with 1,000 pods 73–106 MiB",
);
pub(crate) const LARGE_LATENCIES: [Budget; 3] = [
    at_most("large-p50-100", "adapter, 100,000 pods: selector matching 100 pods, p50", Unit::Ms, 0.15, ""),
    at_most("large-p99-100", "adapter, 100,000 pods: selector matching 100 pods, p99", Unit::Ms, 0.5, ""),
    at_most("large-p50-1000", "adapter, 100,000 pods: selector matching 1,000 pods, p50", Unit::Ms, 1.0, ""),
];
pub(crate) const LARGE_RSS: Budget =
    at_most("large-rss", "adapter, 100,000 pods and 400,000 series: resident memory", Unit::Mib, 400.0, "");
pub(crate) const SCRAPING_CPU: Budget = at_most(
    "scraping-cpu",
    "adapter: CPU of scraping 5,000 exporters, narrow pages",
    Unit::PercentOfCore,
    25.0,
    "",
);
pub(crate) const SCRAPING_BYTES: Budget =
    at_most("scraping-bytes", "adapter: bytes of a narrow page", Unit::Kib, 4.0, "");
pub(crate) const CHANGE_MEDIAN: Budget = at_most(
    "change-median",
    "load change to first changed value, 1s scrapes: median",
    Unit::Seconds,
    2.0,
    "",
);
pub(crate) const CHANGE_MAX: Budget =
    at_most("change-max", "load change to first changed value, 1s scrapes: longest", Unit::Seconds, 2.5, "");
pub(crate) const CHANGE_DEFAULTS: Budget = at_most(
    "change-defaults",
    "load change to first changed value, defaults: longest",
    Unit::Seconds,
    3.5,
    "",
);
