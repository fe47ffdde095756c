//! Owns the catalogue: of every metric its name, type, help, unit, scope and how NVML is read.
//!
//! The exporter renders by it and checks counters files against it; the adapter takes its metric
//! names from it; docs/METRICS.md is written from it. Names are DCGM's where DCGM has one,
//! `podgauge_…` otherwise.

pub mod base_units;
pub mod clock_event;
mod device;
mod families;
mod links;
pub mod markdown;
mod names;
mod profiling;
mod reading;
mod served;
pub mod xid;

pub use families::{OWN, Own, own};
pub use names::{Known, known};
pub use reading::{
    Clock, Codec, Direction, Engine, GpmUnit, LinkError, Memory, MemoryPlace, Pace, PcieLink, PowerLimit,
    Reading, RemapBanks, Text, Threshold,
};
pub use served::{SERVED, served};

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

/// One metric that a counters file can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// DCGM's classic name. A counters file may use another name of the same field.
    pub name: &'static str,
    /// DCGM's field id; `None` for the families that dcgm-exporter itself adds.
    pub field: Option<u16>,
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
