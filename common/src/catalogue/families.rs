//! The table itself: the DCGM metrics that are served ([`SERVED`]) and podgauge's own ([`OWN`]).

use super::{Clock, Codec, Engine, Kind, Memory, Metric, Reading, Scope};

macro_rules! metrics {
    ($($name:literal $field:literal $kind:ident $scope:ident $unit:literal $reading:expr => $help:literal)*) => {
        &[$(Metric {
            name: $name, field: $field, kind: Kind::$kind, scope: Scope::$scope,
            unit: $unit, reading: $reading, help: $help,
        }),*]
    };
}

/// DCGM's metrics that this version reads from NVML, by field id.
pub const SERVED: &[Metric] = metrics! {
    "DCGM_FI_DRIVER_VERSION" 1 Label Node "" Reading::DriverVersion
        => "Version of the NVIDIA driver."
    "DCGM_FI_DEV_SM_CLOCK" 100 Gauge Gpu "MHz" Reading::Clock(Clock::Sm)
        => "Clock of the streaming multiprocessors (in MHz)."
    "DCGM_FI_DEV_MEM_CLOCK" 101 Gauge Gpu "MHz" Reading::Clock(Clock::Memory)
        => "Clock of the device memory (in MHz)."
    "DCGM_FI_DEV_MEMORY_TEMP" 140 Gauge Gpu "°C" Reading::Field { id: 82, max: 200 }
        => "Temperature of the device memory (in °C)."
    "DCGM_FI_DEV_GPU_TEMP" 150 Gauge Gpu "°C" Reading::GpuTemperature
        => "Temperature of the GPU (in °C)."
    "DCGM_FI_DEV_POWER_USAGE" 155 Gauge Gpu "W" Reading::PowerUsage
        => "Power drawn by the board (in W)."
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION" 156 Counter Gpu "mJ" Reading::Field { id: 83, max: u64::MAX }
        => "Energy used since the driver was loaded (in mJ)."
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER" 202 Counter Gpu "" Reading::PcieReplays
        => "PCIe packets sent again."
    "DCGM_FI_DEV_GPU_UTIL" 203 Gauge Instance "%" Reading::Utilization(Engine::Gpu)
        => "Time with at least one kernel running, mean over the utilization window (in %)."
    "DCGM_FI_DEV_MEM_COPY_UTIL" 204 Gauge Gpu "%" Reading::Utilization(Engine::Memory)
        => "Time in which device memory was read or written, mean over the utilization window (in %)."
    "DCGM_FI_DEV_ENC_UTIL" 206 Gauge Gpu "%" Reading::Codec(Codec::Encoder)
        => "Use of the video encoders (in %)."
    "DCGM_FI_DEV_DEC_UTIL" 207 Gauge Gpu "%" Reading::Codec(Codec::Decoder)
        => "Use of the video decoders (in %)."
    "DCGM_FI_DEV_XID_ERRORS" 230 Gauge Instance "" Reading::Xid
        => "Last XID error since the exporter started, 0 if none."
    "DCGM_FI_DEV_FB_FREE" 251 Gauge Instance "MiB" Reading::Memory(Memory::Free)
        => "Device memory that is free (in MiB)."
    "DCGM_FI_DEV_FB_USED" 252 Gauge Instance "MiB" Reading::Memory(Memory::Used)
        => "Device memory that is used, without the driver's reserve (in MiB)."
    "DCGM_FI_DEV_FB_RESERVED" 253 Gauge Instance "MiB" Reading::Memory(Memory::Reserved)
        => "Device memory that driver and firmware reserve (in MiB)."
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS" 393 Counter Gpu "" Reading::Field { id: 143, max: u64::MAX }
        => "Memory rows remapped because of uncorrectable errors."
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS" 394 Counter Gpu "" Reading::Field { id: 142, max: u64::MAX }
        => "Memory rows remapped because of correctable errors."
    "DCGM_FI_DEV_ROW_REMAP_FAILURE" 395 Gauge Gpu "" Reading::Field { id: 145, max: u64::MAX }
        => "1 if remapping a memory row has failed."
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL" 449 Gauge Gpu "MB/s" Reading::NvlinkBandwidth
        => "Data over all NVLinks, both directions (in MB/s)."
    "DCGM_FI_DEV_VGPU_LICENSE_STATUS" 526 Gauge Gpu "" Reading::VgpuLicense
        => "1 if a vGPU feature is licensed."
};

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
    own::ATTRIBUTION_UNAVAILABLE,
];

/// podgauge's own families.
pub mod own {
    use super::{Kind, Own};

    pub const UP: Own = Own {
        name: "podgauge_gpu_up",
        kind: Kind::Gauge,
        unit: "",
        help: "1 if the GPU answers, 0 if it is lost.",
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
        help: "Part of the device that the kubelet gave to the container: 1, or its replicas divided by the device's.",
    };
    pub const ATTRIBUTION_UNAVAILABLE: Own = Own {
        name: "podgauge_attribution_unavailable",
        kind: Kind::Gauge,
        unit: "",
        help: "1 while the device's use cannot be attributed to pods, for the reason in the label.",
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::known;

    #[test]
    fn served_metrics_have_dcgms_names_and_ids_in_order() {
        for metric in SERVED {
            assert_eq!(
                known(metric.name).and_then(|known| known.field),
                Some(metric.field),
                "{}",
                metric.name
            );
        }
        assert!(SERVED.is_sorted_by_key(|metric| metric.field));
    }

    #[test]
    fn own_families_have_our_prefix_and_counters_end_in_total() {
        for own in OWN {
            assert!(own.name.starts_with("podgauge_"));
            assert_eq!(own.kind == Kind::Counter, own.name.ends_with("_total"), "{}", own.name);
        }
    }
}
