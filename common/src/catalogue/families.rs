//! Owns the table of podgauge's own families ([`OWN`]).

use super::Kind;

/// One of podgauge's own families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub unit: &'static str,
}

/// podgauge's own families, by the names in [`own`].
pub const OWN: &[Own] = &[
    own::UP,
    own::ACTIVE_SECONDS,
    own::OBSERVED_SECONDS,
    own::DEVICE_ACTIVE_SECONDS,
    own::UTILIZATION,
    own::OWNERS,
    own::ALLOCATION,
    own::PART_UNKNOWN,
    own::RECENT_ACTIVE_SECONDS,
    own::RECENT_OBSERVED_SECONDS,
    own::RECENT_DEVICE_ACTIVE_SECONDS,
    own::RECENT_DEVICE_OBSERVED_SECONDS,
    own::ATTRIBUTION_ESTIMATED,
    own::PROCESS_SOURCE,
    own::SWITCH_RECORDS,
    own::SWITCH_RECORDS_LOST,
    own::SHARE_RESIDUAL,
    own::ATTRIBUTION_UNAVAILABLE,
    own::NVLINK_BYTES,
    own::XID_ERRORS,
    own::START_TIME,
];

/// podgauge's own families.
pub mod own {
    use super::{Kind, Own};

    pub const UP: Own = Own {
        name: "podgauge_gpu_up",
        kind: Kind::Gauge,
        unit: "",
        help: "1 if the GPU answers, 0 if it does not.",
    };
    pub const ACTIVE_SECONDS: Own = Own {
        name: "podgauge_gpu_active_seconds_total",
        kind: Kind::Counter,
        unit: "s",
        help: "Time times utilization that the owner used of the device.",
    };
    pub const OBSERVED_SECONDS: Own = Own {
        name: "podgauge_gpu_observed_seconds_total",
        kind: Kind::Counter,
        unit: "s",
        help: "Time for which the device's utilization was known while it had this owner.",
    };
    pub const DEVICE_ACTIVE_SECONDS: Own = Own {
        name: "podgauge_gpu_device_active_seconds_total",
        kind: Kind::Counter,
        unit: "s",
        help: "Time times utilization of the whole device, whoever used it.",
    };
    pub const UTILIZATION: Own = Own {
        name: "podgauge_gpu_utilization",
        kind: Kind::Gauge,
        unit: "%",
        help: "Utilization of the whole device, mean over the utilization window (in %).",
    };
    pub const OWNERS: Own = Own {
        name: "podgauge_gpu_owners",
        kind: Kind::Gauge,
        unit: "",
        help: "How many containers own the device or a part of it.",
    };
    pub const ALLOCATION: Own = Own {
        name: "podgauge_gpu_allocation",
        kind: Kind::Gauge,
        unit: "",
        help: "Part of the device that the container was given: 1, or its replicas, MIG slices or consumed capacity divided by the device's; pods that share a claim have equal parts of it.",
    };
    pub const PART_UNKNOWN: Own = Own {
        name: "podgauge_gpu_part_unknown",
        kind: Kind::Gauge,
        unit: "",
        help: "1 for a container that was given a part of the device whose size is not known.",
    };
    pub const RECENT_ACTIVE_SECONDS: Own = Own {
        name: "podgauge_gpu_recent_active_seconds",
        kind: Kind::Gauge,
        unit: "s",
        help: "Increase of podgauge_gpu_active_seconds_total over the time in the label window.",
    };
    pub const RECENT_OBSERVED_SECONDS: Own = Own {
        name: "podgauge_gpu_recent_observed_seconds",
        kind: Kind::Gauge,
        unit: "s",
        help: "Increase of podgauge_gpu_observed_seconds_total over the time in the label window.",
    };
    pub const RECENT_DEVICE_ACTIVE_SECONDS: Own = Own {
        name: "podgauge_gpu_recent_device_active_seconds",
        kind: Kind::Gauge,
        unit: "s",
        help: "Increase of podgauge_gpu_device_active_seconds_total over the time in the label window.",
    };
    pub const RECENT_DEVICE_OBSERVED_SECONDS: Own = Own {
        name: "podgauge_gpu_recent_device_observed_seconds",
        kind: Kind::Gauge,
        unit: "s",
        help: "Time for which the whole device's utilization was known, of the time in the label window.",
    };
    pub const ATTRIBUTION_UNAVAILABLE: Own = Own {
        name: "podgauge_attribution_unavailable",
        kind: Kind::Gauge,
        unit: "",
        help: "1 while the device's use cannot be attributed to pods, for the reason in the label.",
    };
    pub const ATTRIBUTION_ESTIMATED: Own = Own {
        name: "podgauge_attribution_estimated",
        kind: Kind::Gauge,
        unit: "",
        help: "1 while the use of a shared device is divided by the driver's samples of processes, which name one process for each 200 ms: an estimate.",
    };
    pub const PROCESS_SOURCE: Own = Own {
        name: "podgauge_exporter_process_source",
        kind: Kind::Gauge,
        unit: "",
        help: "1 for the source that tells who uses a shared device: context-switches, nvml, or none.",
    };
    pub const SWITCH_RECORDS: Own = Own {
        name: "podgauge_exporter_context_switch_records_total",
        kind: Kind::Counter,
        unit: "",
        help: "Records read of the trace of context switches.",
    };
    pub const SWITCH_RECORDS_LOST: Own = Own {
        name: "podgauge_exporter_context_switch_records_lost_total",
        kind: Kind::Counter,
        unit: "",
        help: "Records of the trace of context switches that were missing.",
    };
    pub const SHARE_RESIDUAL: Own = Own {
        name: "podgauge_exporter_share_residual",
        kind: Kind::Gauge,
        unit: "",
        help: "Root mean square of the busy time that the last fit of the trace leaves unexplained, as a part of a slot.",
    };
    pub const NVLINK_BYTES: Own = Own {
        name: "podgauge_gpu_nvlink_bytes_total",
        kind: Kind::Counter,
        unit: "B",
        help: "Data over all NVLinks of the GPU since the driver was loaded, by direction.",
    };
    pub const XID_ERRORS: Own = Own {
        name: "podgauge_gpu_xid_errors_total",
        kind: Kind::Counter,
        unit: "",
        help: "XID errors of the GPU since the exporter started, by number.",
    };
    pub const START_TIME: Own = Own {
        name: "podgauge_start_time_seconds",
        kind: Kind::Gauge,
        unit: "s",
        help: "When the exporter started, since 1970: podgauge's counters begin there.",
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_families_have_our_prefix_and_counters_end_in_total() {
        for own in OWN {
            assert!(own.name.starts_with("podgauge_"));
            assert_eq!(own.kind == Kind::Counter, own.name.ends_with("_total"), "{}", own.name);
        }
    }
}
