//! Owns the scenario: the YAML file that says what a simulated GPU node is and does.
//!
//! One file drives every part of the simulation. The NVML library reads the GPUs, loads and
//! processes; the simulated kubelet reads which container holds which device; the stand-in API
//! server reads the pods. Loads are functions of the wall clock alone, so separate processes
//! that read the same file agree on the truth.

mod check;
mod claims;
mod mig;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::load::Load;
use crate::pci::PciAddress;
use crate::switching::Requests;

pub use claims::{Claim, DRIVER, ResourceSlices};
pub(crate) use mig::MAX_INSTANCES;
pub use mig::{Held, IdForm, Instance, Mig};

/// Largest scenario file read, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// The value in place of the pids of [`Gpu::passing`]; each slot's is one of those that follow.
pub(crate) const PASSING_PID: u32 = 3_900_000_000;

/// A simulated GPU node.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Name of the Kubernetes node.
    #[serde(default = "default_node")]
    pub node: String,
    /// What the driver says of itself.
    #[serde(default)]
    pub driver: Driver,
    /// In NVML's order: the index is NVML's.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// Pods of this node. Their processes load the GPUs.
    #[serde(default)]
    pub pods: Vec<Pod>,
    /// Processes outside any pod.
    #[serde(default)]
    pub processes: Vec<Process>,
    /// Claims of dynamic resource allocation that pods hold.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// The driver's list of this node's devices in the API server. Absent: none is published.
    pub resource_slices: Option<ResourceSlices>,
    /// Calls that answer an error on every GPU, and system-wide calls: NVML function name, with or
    /// without its version, to the error's name without its NVML_ERROR_ prefix, such as
    /// `nvmlInit_v2: DRIVER_NOT_LOADED`. `all` means every call but those to initialise, to shut
    /// down and for an error's text. `nvmlDeviceGetFieldValues:<id>` fails that one field.
    #[serde(default)]
    pub errors: BTreeMap<String, String>,
    /// Calls that block first: NVML function name to seconds.
    #[serde(default)]
    pub blocks: BTreeMap<String, f64>,
    /// How far the driver's clock is ahead of the wall clock, in seconds; negative: behind it. It
    /// applies to what is sampled from now on; the loads stay functions of the wall clock.
    #[serde(default)]
    pub driver_clock_s: f64,
}

/// What `nvmlSystemGet…` answers. Defaults are those of the recorded H100.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Driver {
    pub version: String,
    pub nvml_version: String,
    /// Such as 13000 for CUDA 13.0.
    pub cuda_version: i32,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Made from the index if absent: `GPU-00000000-0000-0000-0000-<index, 12 digits>`.
    pub uuid: Option<String>,
    /// Number of its device node; its index if absent. A GPU keeps it when one before it is gone.
    pub minor: Option<u32>,
    #[serde(default = "default_model")]
    pub model: String,
    /// NVML's form with an eight-digit domain. Made from the index if absent.
    pub pci_bus_id: Option<String>,
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u64,
    /// How many replicas the device plugin makes of it (time-slicing, MPS). Absent: not shared,
    /// and its device id carries no `::<n>`.
    pub replicas: Option<u32>,
    /// False: the kubelet leaves it out of GetAllocatableResources.
    #[serde(default = "yes")]
    pub healthy: bool,
    /// Load that no listed process makes, in percent of the device.
    pub load: Option<Load>,
    /// Load of processes that each live for one slot, in percent of the device: samples name their
    /// pids, and neither a list nor `/proc` ever shows them.
    pub passing: Option<Load>,
    /// How it is cut into MIG instances. Absent: MIG is off.
    pub mig: Option<Mig>,
    /// Replays a recording of a real GPU in place of any load.
    pub replay: Option<Replay>,
    /// Its NVLinks. Absent: none, and NVLink calls answer NOT_SUPPORTED, as a single H100's do.
    pub nvlink: Option<NvLink>,
    /// Pid of an MPS server through which all its processes run: utilization is credited to it,
    /// while each client's memory is listed under its own pid.
    pub mps_server: Option<u32>,
    /// False: the lists of running processes are empty while utilization still names host pids,
    /// as a caller in another PID namespace sees it.
    #[serde(default = "yes")]
    pub lists_processes: bool,
    /// False: an older GPU, on which NVML has no profiling counters.
    #[serde(default = "yes")]
    pub gpm: bool,
    /// False: ECC is off.
    #[serde(default = "yes")]
    pub ecc: bool,
    /// NVML's number of the brand; 14 (NVIDIA) if absent.
    pub brand: Option<u32>,
    /// Serial number of the board. Made from the index if absent.
    pub serial: Option<String>,
    /// What is wrong with the driver's trace of context switches.
    #[serde(default)]
    pub switch_trace: SwitchTrace,
    /// What some calls answer in place of what follows from the load: NVML function name to
    /// number. `nvmlDeviceGetFieldValues:<id>` is one field, `nvmlGpmMetricsGet:<id>` one GPM
    /// metric, `nvmlDeviceGetMemoryInfo:<part>` one part of the memory, in NVML's units.
    #[serde(default)]
    pub answers: BTreeMap<String, f64>,
    /// XIDs to deliver, each once, as soon as the file names them; to deliver another equal one,
    /// name it once more.
    #[serde(default)]
    pub xids: Vec<u64>,
    /// Calls that answer an error on this GPU, as in [`Scenario::errors`]. `all: GPU_IS_LOST`
    /// makes every call on it fail.
    #[serde(default)]
    pub errors: BTreeMap<String, String>,
    /// Calls that block first on this GPU: NVML function name to seconds.
    #[serde(default)]
    pub blocks: BTreeMap<String, f64>,
}

/// Faults of a GPU's trace of context switches.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SwitchTrace {
    /// Calls that answer a status of the resource manager's, each to its number, such as 27 for
    /// insufficient permissions. Those that are made for no GPU yet go by the first one.
    pub refuses: BTreeMap<SwitchCall, u32>,
    /// The reason that a refusal of `bind` gives.
    pub reason: u32,
    /// Records name no process, as for a reader that may not see them.
    pub hides: bool,
    /// Records name pids that are so much higher than those of NVML's lists.
    pub pids_off: u32,
    /// After so many records three are lost.
    pub loses_after: Option<u32>,
    /// The type of the records, 2 if absent: another driver's are another one's.
    pub record_type: Option<u16>,
    /// How far the records' clock is ahead, seconds.
    pub clock_s: f64,
    /// Records are handed out so late, seconds; 0.03 if absent.
    pub late_s: Option<f64>,
    /// No record is ever handed out.
    pub silent: bool,
}

/// A call on the way to a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchCall {
    /// Allocates a client; for no GPU yet.
    Client,
    Device,
    Subdevice,
    /// Allocates memory; for no GPU yet.
    Memory,
    Ring,
    /// Maps memory; for no GPU yet.
    Map,
    Enable,
    Bind,
    /// Says how far the ring was read.
    Room,
}

/// The NVLinks of a GPU.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NvLink {
    /// How many.
    #[serde(default = "eighteen")]
    pub links: u32,
    /// Received over all of them together, MiB/s.
    #[serde(default)]
    pub rx_mib_s: f64,
    /// Sent over all of them together, MiB/s.
    #[serde(default)]
    pub tx_mib_s: f64,
}

/// A recording of a real GPU, played once: the library has no sample from before its first slot
/// or after its last.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// A JSON file of the shape of h100-utilization.json or h100-processes.json; relative paths
    /// are relative to the scenario file.
    pub file: PathBuf,
    /// Which of its runs: the run's `load`.
    pub run: String,
    /// When it begins, in seconds since the Unix epoch. Absent: when the library first reads a
    /// scenario with this replay.
    pub start: Option<f64>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    #[serde(default = "default_namespace")]
    pub namespace: String,
    pub name: String,
    /// Made from namespace and name if absent.
    pub uid: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    #[serde(default = "yes")]
    pub ready: bool,
    /// Kubernetes' pod phase.
    #[serde(default = "running")]
    pub phase: String,
    /// True: has a deletionTimestamp.
    #[serde(default)]
    pub terminating: bool,
    /// How long ago its containers started, in seconds before the simulation started.
    #[serde(default = "an_hour")]
    pub age_s: f64,
    #[serde(default)]
    pub containers: Vec<Container>,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    #[serde(default = "main_container")]
    pub name: String,
    /// 64 hexadecimal digits. Made from the pod and the name if absent.
    pub id: Option<String>,
    /// Devices the kubelet gave it: a GPU's index, `<index>/gi<id>` for a MIG instance, and
    /// `::<replica>` of a shared one; see [`Held`].
    #[serde(default)]
    pub devices: Vec<String>,
    /// Further ids that the kubelet lists for it, as they stand here: forms of other device plugins.
    #[serde(default)]
    pub device_ids: Vec<String>,
    /// How the device plugin writes the ids of `devices`.
    #[serde(default)]
    pub id_form: IdForm,
    /// The extended resource those devices were asked under.
    #[serde(default = "default_resource")]
    pub resource: String,
    /// Names of the claims that it holds, in the pod's namespace.
    #[serde(default)]
    pub claims: Vec<String>,
    #[serde(default)]
    pub processes: Vec<Process>,
}

/// A process on a GPU.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    pub pid: u32,
    /// Index of the GPU.
    pub gpu: usize,
    /// Id of the GPU instance on which it runs, if that GPU is cut into instances.
    pub gi: Option<u32>,
    /// Id of the compute instance.
    #[serde(default)]
    pub ci: u32,
    /// Its use of the device, in percent of the GPU or the instance.
    pub load: Option<Load>,
    #[serde(default = "default_process_memory_mib")]
    pub memory_mib: u64,
    /// True: NVML cannot say how much memory it uses.
    #[serde(default)]
    pub memory_unavailable: bool,
    /// Name of its program.
    #[serde(default = "default_comm")]
    pub comm: String,
}

/// Why a scenario could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("cannot read scenario {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("scenario {path}: {message}")]
    Invalid { path: PathBuf, message: String },
}

// === impl Scenario ===

impl Scenario {
    /// Reads the file and checks that what it names exists. A replay's file is resolved against
    /// the scenario's folder and read too.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let failed = |source| ScenarioError::Read { path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > MAX_BYTES {
            let message = format!("{size} bytes, the limit is {MAX_BYTES}");
            return Err(ScenarioError::Invalid { path: path.to_owned(), message });
        }
        let invalid = |message| ScenarioError::Invalid { path: path.to_owned(), message };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let mut scenario = Self::parse(&text).map_err(invalid)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for replay in scenario.gpus.iter_mut().filter_map(|gpu| gpu.replay.as_mut()) {
            replay.file = folder.join(&replay.file);
            crate::recording::Recording::read(&replay.file, &replay.run).map_err(invalid)?;
        }
        Ok(scenario)
    }

    /// Parses YAML text; the error says where and why. Replays keep the paths the text has.
    pub fn parse(yaml: &str) -> Result<Self, String> {
        if yaml.trim().is_empty() {
            // A file caught between truncation and writing must not read as a node without GPUs.
            return Err("the file is empty".into());
        }
        let scenario: Self = serde_saphyr::from_str(yaml).map_err(|error| error.to_string())?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Every process of the node, with the pod and container it runs in.
    pub fn all_processes(&self) -> impl Iterator<Item = (Option<(&Pod, &Container)>, &Process)> {
        let inside = self.pods.iter().flat_map(|pod| {
            pod.containers.iter().flat_map(move |container| {
                container.processes.iter().map(move |p| (Some((pod, container)), p))
            })
        });
        inside.chain(self.processes.iter().map(|process| (None, process)))
    }

    /// The processes that take turns on a GPU by their requests; none if they do not.
    pub fn services(&self, gpu: usize) -> Vec<(u32, Requests)> {
        crate::model::services(&self.loads(gpu)).unwrap_or_default()
    }

    /// The loads of a GPU, each with the pid that makes it. What an instance does counts by its
    /// part of the GPU.
    pub(crate) fn loads(&self, gpu: usize) -> Vec<(Option<u32>, Load)> {
        let Some(device) = self.gpus.get(gpu) else { return Vec::new() };
        let unlisted = device.load.iter().map(|load| (None, load.clone()));
        let passing = device.passing.iter().map(|load| (Some(PASSING_PID), load.clone()));
        let listed = self
            .all_processes()
            .filter(|(_, process)| process.gpu == gpu && process.gi.is_none())
            .filter_map(|(_, process)| Some((Some(process.pid), process.load.clone()?)));
        let instances = device.instances().iter().flat_map(|instance| {
            self.instance_loads(gpu, instance).map(|(pid, load)| (pid, load.scaled(instance.part())))
        });
        unlisted.chain(passing).chain(listed).chain(instances).collect()
    }

    /// The mean load of a GPU over a span of wall-clock time, in percent, capped at 100 at every
    /// moment as a device is. `None` for a replayed GPU, whose truth is its recording.
    pub fn mean_load(&self, gpu: usize, from_s: f64, to_s: f64) -> Option<f64> {
        let device = self.gpus.get(gpu)?;
        if device.replay.is_some() {
            return None;
        }
        let loads = self.loads(gpu);
        let loads: Vec<&Load> = loads.iter().map(|(_, load)| load).collect();
        Some(crate::load::mean_of_sum(&loads, from_s, to_s))
    }
}

// === impl Gpu ===

impl Gpu {
    /// Its UUID, given its index.
    pub fn uuid(&self, index: usize) -> String {
        self.uuid.clone().unwrap_or_else(|| format!("GPU-00000000-0000-0000-0000-{index:012}"))
    }

    /// Its PCI bus id, given its index.
    pub fn pci_bus_id(&self, index: usize) -> String {
        self.pci_bus_id.clone().unwrap_or_else(|| format!("00000000:{:02X}:00.0", 0x17 + index))
    }

    /// Domain, bus and slot of its PCI address, given its index.
    pub fn place(&self, index: usize) -> Option<(u32, u16, u16)> {
        let address = PciAddress::parse(&self.pci_bus_id(index))?;
        Some((address.domain, address.bus.into(), address.device.into()))
    }

    /// The number of its device node, given its index.
    pub fn minor(&self, index: usize) -> u32 {
        self.minor.unwrap_or(index as u32)
    }

    /// Its serial number, given its index.
    pub fn serial(&self, index: usize) -> String {
        self.serial.clone().unwrap_or_else(|| format!("16500230{index:05}"))
    }
}

// === impl Pod ===

impl Pod {
    /// Its UID: the file's, or one made from namespace and name.
    pub fn uid(&self) -> String {
        self.uid.clone().unwrap_or_else(|| {
            let hex = made_hex(&format!("{}/{}", self.namespace, self.name), 32);
            format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
        })
    }
}

// === impl Container ===

impl Container {
    /// Its container id: the file's, or one made from the pod's UID and the name.
    pub fn id(&self, pod: &Pod) -> String {
        self.id.clone().unwrap_or_else(|| made_hex(&format!("{}/{}", pod.uid(), self.name), 64))
    }

    /// The ids that the kubelet lists for it, in the form of its device plugin, and those that the
    /// file gives as they are.
    pub fn device_ids(&self, scenario: &Scenario) -> Vec<String> {
        self.devices
            .iter()
            .filter_map(|device| Held::parse(device)?.id(scenario, self.id_form))
            .chain(self.device_ids.iter().cloned())
            .collect()
    }
}

// === impl Process ===

impl Process {
    /// Whether it runs on this instance of this GPU.
    pub(crate) fn is_on(&self, gpu: usize, instance: &Instance) -> bool {
        self.gpu == gpu && self.gi == Some(instance.gi) && self.ci == instance.ci
    }
}

/// Deterministic hexadecimal digits (FNV-1a, stretched): names in, ids out, the same everywhere.
fn made_hex(text: &str, digits: usize) -> String {
    let mut out = String::with_capacity(digits + 16);
    let mut round = 0u8;
    while out.len() < digits {
        let hash = text.bytes().chain([round]).fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        out.push_str(&format!("{hash:016x}"));
        round += 1;
    }
    out.truncate(digits);
    out
}

impl Default for Driver {
    fn default() -> Self {
        Self { version: "580.159.04".into(), nvml_version: "13.580.159.04".into(), cuda_version: 13000 }
    }
}

fn default_node() -> String {
    "gpu-node-0".into()
}
fn default_model() -> String {
    "NVIDIA H100 80GB HBM3".into()
}
fn default_memory_mib() -> u64 {
    81559
}
fn default_process_memory_mib() -> u64 {
    512
}
fn default_comm() -> String {
    "python3".into()
}
fn eighteen() -> u32 {
    18
}
fn default_namespace() -> String {
    "demo".into()
}
fn default_resource() -> String {
    "nvidia.com/gpu".into()
}
fn main_container() -> String {
    "main".into()
}
fn running() -> String {
    "Running".into()
}
fn yes() -> bool {
    true
}
fn an_hour() -> f64 {
    3600.0
}
