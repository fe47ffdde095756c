//! Owns the catalogue: of every metric its name, type, help, unit, scope and how NVML is read.
//!
//! The exporter renders by it and checks counters files against it; the adapter takes its metric
//! names from it. Names are DCGM's where DCGM has one, `podgauge_…` otherwise.

mod families;
mod names;
pub mod xid;

pub use families::{OWN, Own, SERVED, own};
pub use names::{Known, known};

/// A Prometheus metric type, or DCGM's `label`, which is printed as a label of every sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gauge,
    Counter,
    Label,
}

/// What a sample speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The GPU; a MIG instance has its parent's value.
    Gpu,
    /// The GPU, or the MIG instance with a value of its own.
    Instance,
    /// The node.
    Node,
}

/// How a value is read from NVML, with the conversion to the unit it is exported in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// `nvmlSystemGetDriverVersion`.
    DriverVersion,
    /// `nvmlDeviceGetClockInfo`, MHz.
    Clock(Clock),
    /// `nvmlDeviceGetTemperature` of the GPU, °C; above 200 is no measurement.
    GpuTemperature,
    /// `nvmlDeviceGetPowerUsage`, mW ÷ 1000.
    PowerUsage,
    /// `nvmlDeviceGetPcieReplayCounter`.
    PcieReplays,
    /// The mean of the drained sample rings over the utilization window, percent.
    Utilization(Engine),
    /// `nvmlDeviceGetEncoderUtilization` or `…Decoder…`, percent.
    Codec(Codec),
    /// Last XID that the event set delivered; 0 until the first.
    Xid,
    /// `nvmlDeviceGetMemoryInfo_v2`, bytes ÷ 1048576, truncated.
    Memory(Memory),
    /// One field of `nvmlDeviceGetFieldValues`, printed as it is.
    Field { id: u32, max: u64 },
    /// Fields 138 + 139 over all links, KiB: difference ÷ seconds ÷ 1000, truncated.
    NvlinkBandwidth,
    /// `nvmlDeviceGetGridLicensableFeatures_v4`: 1 if a feature is licensed, 0 if none is or the
    /// GPU has no licensable features.
    VgpuLicense,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    Sm,
    Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Time with at least one kernel running.
    Gpu,
    /// Time in which device memory was read or written.
    Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Encoder,
    Decoder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    Free,
    Used,
    Reserved,
}

/// One metric that a counters file can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    /// DCGM's field id.
    pub field: u16,
    pub kind: Kind,
    /// In our words; a counters file's own help text is printed in its place.
    pub help: &'static str,
    pub unit: &'static str,
    pub scope: Scope,
    pub reading: Reading,
}

impl Kind {
    /// As the TYPE line and counters files write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Label => "label",
        }
    }
}

/// The metric of that exact name, if this version serves it.
pub fn served(name: &str) -> Option<&'static Metric> {
    SERVED.iter().find(|metric| metric.name == name)
}
