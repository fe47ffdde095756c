//! The GPUs: one thread reads NVML every second and sends [`Readings`]; another waits for XIDs.
//! Nothing else in the program calls NVML, and both call it through [`driver`].
//!
//! ```text
//! supervise ─ load library ─► session ─┬─ sampler ── Readings ──► channel
//!     ▲                                └─ xid thread ─► EventLog ─► (read by the sampler)
//!     └──────── lost driver, changed GPUs ◄─┘
//! ```

pub(crate) mod account;
mod calls;
mod census;
mod device;
mod direct;
mod driver;
mod end;
mod events;
mod fault;
mod field_values;
mod fields;
mod gpm;
mod gpm_calls;
mod library;
mod mig;
mod plan;
mod process_calls;
mod processes;
mod raw;
mod rhythm;
mod ring;
mod rings;
pub(crate) mod sample_match;
mod sampler;
mod selection;
mod trace;
mod unopened;
mod xid;

use std::sync::Arc;
use std::time::Instant;

use podgauge_common::exposition::write::Value;

use crate::attribution::{Processes, Whose};

pub(crate) use events::{EventCounts, EventWindows};
pub(crate) use library::check as check_library;
pub(crate) use plan::Plan;
pub(crate) use processes::ProcessWatch;
pub(crate) use ring::Slot;
pub(crate) use sampler::start;
pub(crate) use selection::DeviceSelection;
pub(crate) use trace::{DividedBy, ProcessSource, Sharing, TraceSettings};

/// What does not change about a GPU while the driver is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    /// NVML's index. It changes when NVML stops counting a GPU before it.
    pub(crate) index: u32,
    /// Number of its device node, `/dev/nvidia<minor>`; `None` if the driver does not tell it.
    pub(crate) minor: Option<u32>,
    /// Empty only of a GPU that could not be opened.
    pub(crate) uuid: String,
    /// With an eight-digit domain, as NVML writes it; empty of a GPU that is on no PCI bus.
    pub(crate) pci_bus_id: String,
    /// Empty if the driver does not tell it.
    pub(crate) model: String,
    /// The MIG instance that is meant; `None` for the whole GPU.
    pub(crate) instance: Option<MigInstance>,
}

/// A GPU instance of MIG: the part of a GPU that has its own memory and engines.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct MigInstance {
    /// NVML's id of it, used again after another partition.
    pub(crate) gi: u32,
    /// Such as `1g.10gb`; empty if the driver does not say.
    pub(crate) profile: String,
    /// Usually one. By them the kubelet gives it to containers.
    pub(crate) compute: Vec<ComputeInstance>,
    /// GPU, id and profile: what its series are told by.
    key: String,
}

/// A compute instance of a GPU instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ComputeInstance {
    pub(crate) ci: u32,
    /// `MIG-…`.
    pub(crate) uuid: String,
    /// Its slices and those of the GPU instance, if the driver tells them.
    pub(crate) slices: Option<(u32, u32)>,
}

/// Why the use of a device is not read at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unmeasured {
    /// A MIG instance has no utilization but GPM's, and this GPU has none.
    MigWithoutGpm,
    /// GPM of MIG instances is refused to this process.
    MigNotPermitted,
    /// The GPU could not be opened.
    NotOpened,
}

#[cfg(test)]
impl Identity {
    pub(crate) fn of_test(uuid: &str) -> Self {
        Self {
            index: 0,
            minor: None,
            uuid: uuid.into(),
            pci_bus_id: String::new(),
            model: String::new(),
            instance: None,
        }
    }
}

#[cfg(test)]
impl MigInstance {
    pub(crate) fn of_test(gi: u32, compute: Vec<ComputeInstance>) -> Self {
        Self { gi, profile: "3g.40gb".into(), compute, key: format!("test/{gi}") }
    }
}

impl Identity {
    /// What a device's accounts are kept under: as its label set, the same for as long as it is.
    pub(crate) fn key(&self) -> &str {
        self.instance.as_ref().map_or(&self.uuid, |instance| &instance.key)
    }
}

/// What one tick learned of one GPU.
#[derive(Debug, Clone)]
pub(crate) struct DeviceReading {
    pub(crate) identity: Arc<Identity>,
    /// `None`: it answers. Else why it is taken not to.
    pub(crate) lost: Option<String>,
    /// In the order of the plan's metrics; `None` is not known.
    pub(crate) values: Vec<Option<Value>>,
    /// In the order of the plan's texts; `None` is not known.
    pub(crate) texts: Arc<[Option<String>]>,
    pub(crate) events: EventCounts,
    /// Bytes over all NVLinks since the driver was loaded, sent and received.
    pub(crate) nvlink_bytes: Option<[u64; 2]>,
    /// New stretches of known GPU utilization, and who used them.
    pub(crate) gpu_slots: Vec<(Slot, Credit)>,
    /// Process samples that belong to no slot, because the ring gives none.
    pub(crate) loose_samples: Vec<LooseSample>,
    /// Why no utilization is to be expected.
    pub(crate) unmeasured: Option<Unmeasured>,
    /// New stretches of known memory utilization.
    pub(crate) memory_slots: Vec<Slot>,
    pub(crate) processes: Processes,
    /// How its use is divided; `None` while nobody shares it.
    pub(crate) sharing: Option<Sharing>,
}

/// Who used a slot, by the driver's samples of processes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Credit {
    /// Processes were not sampled in it: the GPU had one owner at most.
    Unsampled,
    /// The GPU was not used in it.
    Idle,
    /// The driver names this process.
    Of(Whose),
    /// By the trace: each with its part of one.
    Divided(Vec<(Whose, f64)>),
    /// It was used, and its sample was not seen. It belongs to one of these; empty: to anybody.
    Missed(Vec<Whose>),
}

/// A process's sample that belongs to no slot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LooseSample {
    /// When it was read.
    pub(crate) at: Instant,
    /// Time times utilization, in seconds.
    pub(crate) active_s: f64,
    pub(crate) whose: Whose,
}

/// What one tick learned.
#[derive(Debug, Clone)]
pub(crate) struct Readings {
    /// [`Plan::generation`] of the plan by which values were read.
    pub(crate) generation: u64,
    pub(crate) taken_at: Instant,
    pub(crate) devices: Vec<DeviceReading>,
}

/// The state of the library, for readiness and self metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// NVML answers for this many GPUs, of so many that it counts.
    Serving { gpus: usize, of: usize },
    /// It does not, and why.
    Failing(String),
    /// It has not answered for 60 s, and a new container can help; the observation, and the advice.
    GiveUp(String),
    /// What was asked for cannot be served on this node.
    Refused(String),
}

/// What the GPU side sends.
#[derive(Debug)]
pub(crate) enum Message {
    Readings(Readings),
    Report(Report),
}
