//! Owns one GPU during a session: its rings, its values, and whether it is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    nvmlSamplingType_enum_NVML_GPU_UTILIZATION_SAMPLES as GPU_SAMPLES,
    nvmlSamplingType_enum_NVML_MEMORY_UTILIZATION_SAMPLES as MEMORY_SAMPLES,
};
use podgauge_common::exposition::write::Value;

use super::account::timed;
use super::events::EventLog;
use super::fields::{Fault, Memo};
use super::gpm::Gpm;
use super::mig::Partition;
use super::processes::{Credited, DeviceProcesses, NewSlots, ProcessWatch};
use super::ring::{RingClock, Slot};
use super::sampler::Plan;
use super::{Credit, DeviceReading, DeviceSelection, Identity, MigInstance, calls, direct, raw};

/// A ring that gives nothing new for so long is replaced by the rates.
const DRY_AFTER: Duration = Duration::from_secs(1);
/// The memory ring is drained at every second tick: it has no counter that a pod is paid by, and
/// each drain costs 2 ms of the driver's time.
const MEMORY_EVERY: u32 = 2;

/// How often a lost GPU is asked whether it is back.
const LOST_RETRY: Duration = Duration::from_secs(5);

/// The rings of a GPU. They outlive a session, so that nothing counts twice after a reload.
#[derive(Debug)]
pub(super) struct Rings {
    gpu: Ring,
    memory: Ring,
}

#[derive(Debug)]
struct Ring {
    clock: RingClock,
    /// How long it may give nothing before it is dry.
    patience: Duration,
    unsupported: bool,
    slots: Vec<Slot>,
}

/// One GPU during a session.
#[derive(Debug)]
pub(super) struct SampledDevice<'nvml> {
    device: Device<'nvml>,
    pub(super) identity: Arc<Identity>,
    pub(super) rings: Rings,
    processes: DeviceProcesses,
    /// New slots with their users, until they are taken.
    credited: Credited,
    partition: Partition<'nvml>,
    memo: Memo,
    gpm: Gpm<'nvml>,
    /// Of the plan that `memo`, `values` and `texts` are in the order of.
    generation: u64,
    values: Vec<Option<Value>>,
    /// In the order of the plan's texts, read once.
    texts: Option<Arc<[Option<String>]>>,
    values_at: Option<Instant>,
    /// Means between two readings are still missing, for lack of a second one.
    settling: bool,
    lost: Option<Lost>,
    ticks: u32,
}

#[derive(Debug)]
struct Lost {
    reason: String,
    asked_at: Instant,
}

// === impl SampledDevice ===

impl<'nvml> SampledDevice<'nvml> {
    pub(super) fn open(nvml: &'nvml Nvml, index: u32) -> Result<Self, NvmlError> {
        let device = timed("nvmlDeviceGetHandleByIndex_v2", || nvml.device_by_index(index))?;
        let identity = Identity {
            index,
            uuid: device.uuid()?,
            pci_bus_id: device.pci_info()?.bus_id,
            model: device.name()?,
            instance: None,
        };
        Ok(Self {
            device,
            identity: Arc::new(identity),
            rings: Rings::default(),
            processes: DeviceProcesses::default(),
            credited: Credited::default(),
            partition: Partition::default(),
            memo: Memo::default(),
            gpm: Gpm::default(),
            generation: 0,
            values: Vec::new(),
            texts: None,
            values_at: None,
            settling: false,
            lost: None,
            ticks: 0,
        })
    }

    /// Drains the rings and, if they are due, reads the other values. An error asks for a reload.
    pub(super) fn tick(
        &mut self,
        plan: &Plan,
        events: &EventLog,
        watch: Option<&mut ProcessWatch>,
    ) -> Result<(), NvmlError> {
        if let Some(lost) = &mut self.lost {
            let now = Instant::now();
            if now.saturating_duration_since(lost.asked_at) < LOST_RETRY {
                return Ok(());
            }
            lost.asked_at = now;
            if timed("nvmlDeviceGetUUID", || self.device.uuid()).is_err() {
                return Ok(());
            }
            tracing::info!("GPU {} ({}) answers again", self.identity.index, self.identity.uuid);
            self.lost = None;
        }
        let read = self.read_all(plan, events, watch);
        self.keep_or_lose(read)
    }

    /// Reads the utilization rates in place of rings that are dry.
    pub(super) fn read_rates_if_dry(&mut self, plan: &Plan) -> Result<(), NvmlError> {
        if !self.is_dry(plan) {
            return Ok(());
        }
        let read = self.read_rates(plan);
        self.keep_or_lose(read)
    }

    /// Reads what processes used since the last time, if that is due.
    pub(super) fn poll_processes(&mut self, watch: &mut ProcessWatch, now: Instant) -> Result<(), NvmlError> {
        if self.processes_due().is_none_or(|due| due > now) {
            return Ok(());
        }
        let read = self.processes.poll(&self.device, watch);
        self.keep_or_lose(read)
    }

    /// When what processes use is to be read; `None` while nobody shares the GPU.
    pub(super) fn processes_due(&self) -> Option<Instant> {
        self.processes.due().filter(|_| self.lost.is_none())
    }

    /// Whether a second reading soon would complete the page.
    pub(super) fn is_settling(&self) -> bool {
        self.lost.is_none() && self.settling
    }

    /// Whether a ring that the plan needs gives nothing.
    pub(super) fn is_dry(&self, plan: &Plan) -> bool {
        let now = Instant::now();
        self.lost.is_none()
            && !self.partition.is_enabled()
            && (self.rings.gpu.is_dry(now) || (plan.memory_utilization && self.rings.memory.is_dry(now)))
    }

    /// Whether profiling counters were asked for and the GPU has none.
    pub(super) fn lacks_gpm(&self) -> bool {
        self.gpm.is_unsupported()
    }

    /// How many MIG instances it is cut into.
    pub(super) fn count_instances(&mut self, events: &EventLog) -> Result<usize, NvmlError> {
        self.partition.follow(&self.device, &self.identity, events)?;
        Ok(self.partition.len())
    }

    /// What was learned since the last time, taken out: of the GPU, or if it is cut into MIG
    /// instances of each of them, as far as it is selected.
    pub(super) fn take_readings(
        &mut self,
        plan: &Plan,
        events: &EventLog,
        selection: &DeviceSelection,
    ) -> Vec<DeviceReading> {
        let now = Instant::now();
        let Credited { slots, loose } = std::mem::take(&mut self.credited);
        let gpu = DeviceReading {
            texts: self.texts.clone().unwrap_or_default(),
            events: events.counts(&self.identity.uuid, None, now),
            nvlink_bytes: self.memo.nvlink_bytes.filter(|_| self.lost.is_none()),
            identity: Arc::clone(&self.identity),
            lost: self.lost.as_ref().map(|lost| lost.reason.clone()),
            values: if self.lost.is_some() { vec![None; self.values.len()] } else { self.values.clone() },
            gpu_slots: slots,
            loose_samples: loose,
            unmeasured: None,
            processes: self.processes.known(),
            memory_slots: std::mem::take(&mut self.rings.memory.slots),
        };
        let instances = self.partition.take_readings(&plan.instance, &gpu, events, now);
        let cut: Vec<&MigInstance> =
            instances.iter().filter_map(|it| it.identity.instance.as_ref()).collect();
        let index = self.identity.index;
        let served = selection.serves_instances(index, &cut);
        let whole = selection.serves_gpu(index, !instances.is_empty()).then_some(gpu);
        let instances = instances.into_iter().zip(served).filter(|(_, served)| *served);
        whole.into_iter().chain(instances.map(|(instance, _)| instance)).collect()
    }

    fn read_all(
        &mut self,
        plan: &Plan,
        events: &EventLog,
        watch: Option<&mut ProcessWatch>,
    ) -> Result<(), NvmlError> {
        if std::mem::replace(&mut self.generation, plan.generation) != plan.generation {
            // Another plan has other values at these places, and wants them with this tick.
            self.forget_values();
            self.values.clear();
            self.texts = None;
        }
        if self.partition.follow(&self.device, &self.identity, events)? {
            // What the driver supports has changed with it, and new instances have no values yet.
            self.forget_values();
            self.rings.gpu.unsupported = false;
            self.rings.memory.unsupported = false;
            self.processes = DeviceProcesses::default();
        }
        if self.partition.is_enabled() {
            // Neither rings nor use per process are told of a GPU that is cut.
            self.partition.sample(&self.device)?;
        } else {
            self.drain_rings(plan, watch)?;
        }
        let now = Instant::now();
        // Half a tick of slack: a `-c` of one second must not fall on every other tick.
        let due = self.settling
            || self.values_at.is_none_or(|at| {
                now.saturating_duration_since(at) + Duration::from_millis(500) > plan.interval
            });
        self.values.resize(plan.metrics.len(), None);
        if due {
            self.read_values(plan, events)?;
            let profiles = self.gpm.is_sampling() || self.partition.is_enabled();
            self.settling = self.values_at.is_none() && plan.gpm.is_asked_for && profiles;
            self.values_at = Some(now);
        }
        Ok(())
    }

    /// What was read is of another plan, another partition, or from before the GPU was lost.
    fn forget_values(&mut self) {
        self.memo = Memo::default();
        self.gpm = Gpm::default();
        self.partition.forget_values();
        self.values.fill(None);
        self.values_at = None;
    }

    fn read_values(&mut self, plan: &Plan, events: &EventLog) -> Result<(), NvmlError> {
        if self.texts.is_none() {
            let texts = plan.texts.iter().map(|text| direct::text(&self.device, *text));
            self.texts = Some(texts.collect::<Result<_, _>>()?);
        }
        self.gpm.read(&self.device, None, &plan.gpm, &mut self.values)?;
        let by_gpm = self.gpm.is_sampling();
        plan.fields.read(&self.device, &plan.metrics, &mut self.memo, by_gpm, &mut self.values)?;
        self.partition.read(&self.device, &plan.instance)?;
        if plan.clock_events {
            match calls::clock_event_reasons(&self.device) {
                Ok(bits) => events.clock_reasons(&self.identity.uuid, bits, Instant::now()),
                Err(error) if matches!(Fault::of(&error), Fault::Lost | Fault::Reload) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn drain_rings(&mut self, plan: &Plan, watch: Option<&mut ProcessWatch>) -> Result<(), NvmlError> {
        let clock_went_back = self.rings.gpu.drain(&self.device, GPU_SAMPLES)?;
        let slots = std::mem::take(&mut self.rings.gpu.slots);
        match watch {
            // Right after the ring: a process's sample is gone 200 ms after its slot at the earliest.
            Some(watch) => {
                let new = NewSlots { slots, spacing: self.rings.gpu.clock.spacing(), clock_went_back };
                let processes = &mut self.processes;
                let credited = processes.tick(&self.device, &self.identity, new, watch, Instant::now())?;
                self.credited.slots.extend(credited.slots);
                self.credited.loose.extend(credited.loose);
            }
            None => self.credited.slots.extend(slots.into_iter().map(|slot| (slot, Credit::Unsampled))),
        }
        if plan.memory_utilization && self.ticks.is_multiple_of(MEMORY_EVERY) {
            self.rings.memory.drain(&self.device, MEMORY_SAMPLES)?;
        }
        self.ticks = self.ticks.wrapping_add(1);
        if self.is_dry(plan) {
            self.read_rates(plan)?;
        }
        Ok(())
    }

    fn read_rates(&mut self, plan: &Plan) -> Result<(), NvmlError> {
        match timed("nvmlDeviceGetUtilizationRates", || self.device.utilization_rates()) {
            Ok(rates) => {
                let now = Instant::now();
                self.rings.gpu.read(rates.gpu, now);
                if plan.memory_utilization {
                    self.rings.memory.read(rates.memory, now);
                }
                Ok(())
            }
            Err(error) => {
                self.rings.gpu.clock.reading_failed();
                self.rings.memory.clock.reading_failed();
                match Fault::of(&error) {
                    Fault::Lost | Fault::Reload => Err(error),
                    Fault::Unsupported | Fault::NoValue => Ok(()),
                }
            }
        }
    }

    /// A lost GPU stays in the page as lost, and the others go on.
    fn keep_or_lose(&mut self, read: Result<(), NvmlError>) -> Result<(), NvmlError> {
        let Err(error) = read else { return Ok(()) };
        if Fault::of(&error) != Fault::Lost {
            return Err(error);
        }
        tracing::error!(
            "GPU {} ({}, {}) is lost: {error}; its values are left out until it answers again (asked every {LOST_RETRY:?})",
            self.identity.index,
            self.identity.uuid,
            self.identity.pci_bus_id
        );
        self.lost = Some(Lost { reason: error.to_string(), asked_at: Instant::now() });
        // It may come back from a reset, in which counters and GPM samples are lost.
        self.forget_values();
        Ok(())
    }
}

// === impl Rings ===

impl Default for Rings {
    fn default() -> Self {
        Self { gpu: Ring::new(DRY_AFTER), memory: Ring::new(DRY_AFTER * MEMORY_EVERY) }
    }
}

// === impl Ring ===

impl Ring {
    fn new(patience: Duration) -> Self {
        Self { clock: RingClock::default(), patience, unsupported: false, slots: Vec::new() }
    }

    /// Whether the driver's clock has gone back since the last time.
    fn drain(&mut self, device: &Device<'_>, kind: u32) -> Result<bool, NvmlError> {
        let now = Instant::now();
        let samples = self.samples(device, kind, self.clock.last_seen_us())?;
        if samples.is_empty() && !self.unsupported && self.clock.asks_for_all(now, self.patience) {
            let all = self.samples(device, kind, 0)?;
            if let Some(after) = self.clock.set_back(all, Instant::now()) {
                self.slots.extend(self.clock.drained(after, Instant::now()));
                return Ok(true);
            }
        }
        self.slots.extend(self.clock.drained(samples, Instant::now()));
        Ok(false)
    }

    fn samples(
        &mut self,
        device: &Device<'_>,
        kind: u32,
        after_us: u64,
    ) -> Result<Vec<raw::RingSample>, NvmlError> {
        if self.unsupported {
            return Ok(Vec::new());
        }
        raw::samples(device, kind, after_us).or_else(|error| match Fault::of(&error) {
            Fault::Unsupported => {
                self.unsupported = true;
                Ok(Vec::new())
            }
            // Nothing newer than what was seen.
            Fault::NoValue => Ok(Vec::new()),
            Fault::Lost | Fault::Reload => Err(error),
        })
    }

    fn read(&mut self, percent: u32, now: Instant) {
        if self.is_dry(now) {
            self.clock.reading(percent, now);
        }
    }

    fn is_dry(&self, now: Instant) -> bool {
        self.unsupported || self.clock.is_dry(now, self.patience)
    }
}
