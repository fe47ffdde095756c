//! One GPU during a session: its rings, its values, and whether it is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use podgauge_common::exposition::write::Value;
use podgauge_common::measurement::{measured_u32, measured_u64};

use super::driver::{Device, Driver, Fault, NvmlError, known};
use super::events::EventLog;
use super::fields::Memo;
use super::gpm::Gpm;
use super::mig::Partition;
use super::plan::Plan;
use super::processes::{Credited, DeviceProcesses, NewSlots, ProcessWatch};
use super::rings::{MEMORY_EVERY, Rings};
use super::unopened::{ASK_AGAIN, Unopened};
use super::{Credit, DeviceReading, DeviceSelection, Identity, MigInstance, calls, direct};
use crate::attribution::Processes;

/// How often a text is read again that the driver did not tell.
const TEXTS_AGAIN: Duration = Duration::from_secs(30);

/// One GPU during a session.
#[derive(Debug)]
pub(super) struct SampledDevice<'nvml> {
    device: Device<'nvml>,
    pub(super) identity: Arc<Identity>,
    /// Bytes; `None` is not known.
    memory: Option<u64>,
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
    /// In the order of the plan's texts, each read until it is known.
    texts: Option<Arc<[Option<String>]>>,
    texts_at: Option<Instant>,
    values_at: Option<Instant>,
    /// Means between two readings are still missing, for lack of a second one.
    settling: bool,
    lost: Option<Lost>,
    ticks: u32,
}

#[derive(Debug)]
struct Lost {
    reason: String,
    /// The driver gives no reason.
    is_unknown: bool,
    asked_at: Instant,
}

// === impl SampledDevice ===

impl<'nvml> SampledDevice<'nvml> {
    /// Opens the GPU of an index. Only its UUID is required: integrated GPUs are on no PCI bus, and
    /// not every driver tells the rest.
    pub(super) fn open(driver: &'nvml Driver, index: u32) -> Result<Self, Unopened> {
        let mut identity = Identity {
            index,
            minor: None,
            uuid: String::new(),
            pci_bus_id: String::new(),
            model: String::new(),
            instance: None,
        };
        match identify(driver, &mut identity) {
            Ok(device) => Ok(Self {
                memory: total_memory(&device),
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
                texts_at: None,
                values_at: None,
                settling: false,
                lost: None,
                ticks: 0,
            }),
            Err(error) => Err(Unopened::new(identity, error)),
        }
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
            if now.saturating_duration_since(lost.asked_at) < ASK_AGAIN {
                return Ok(());
            }
            lost.asked_at = now;
            if !self.device.answers() {
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

    /// Whether it does not answer, and the driver gives no reason.
    pub(super) fn is_unknown(&self) -> bool {
        self.lost.as_ref().is_some_and(|lost| lost.is_unknown)
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
            sharing: self.processes.sharing(),
            processes: plausible(self.processes.known(), self.memory),
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
            (self.texts, self.texts_at) = (None, None);
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
        self.read_texts(plan)?;
        self.gpm.read(&self.device, None, &plan.gpm, &mut self.values)?;
        let by_gpm = self.gpm.is_sampling();
        plan.fields.read(&self.device, &plan.metrics, &mut self.memo, by_gpm, &mut self.values)?;
        self.partition.read(&self.device, &plan.instance)?;
        if plan.clock_events {
            let bits = known(calls::clock_event_reasons(&self.device))?.and_then(measured_u64);
            if let Some(bits) = bits {
                events.clock_reasons(&self.identity.uuid, bits, Instant::now());
            }
        }
        Ok(())
    }

    fn read_texts(&mut self, plan: &Plan) -> Result<(), NvmlError> {
        let now = Instant::now();
        let old = self.texts.as_deref().unwrap_or_default();
        let complete = self.texts.is_some() && old.iter().all(Option::is_some);
        if complete || self.texts_at.is_some_and(|at| now.saturating_duration_since(at) < TEXTS_AGAIN) {
            return Ok(());
        }
        let read = plan.texts.iter().enumerate().map(|(position, text)| match old.get(position) {
            Some(Some(known)) => Ok(Some(known.clone())),
            _ => direct::text(&self.device, *text),
        });
        self.texts = Some(read.collect::<Result<_, _>>()?);
        self.texts_at = Some(now);
        Ok(())
    }

    fn drain_rings(&mut self, plan: &Plan, watch: Option<&mut ProcessWatch>) -> Result<(), NvmlError> {
        let clock_went_back = self.rings.gpu.drain(&self.device)?;
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
            self.rings.memory.drain(&self.device)?;
        }
        self.ticks = self.ticks.wrapping_add(1);
        if self.is_dry(plan) {
            self.read_rates(plan)?;
        }
        Ok(())
    }

    fn read_rates(&mut self, plan: &Plan) -> Result<(), NvmlError> {
        match self.device.utilization_rates() {
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
        let is_unknown = error.is_unknown();
        tracing::error!(
            "GPU {} ({}, {}) {}: {error}; its values are left out until it answers again (asked every {ASK_AGAIN:?})",
            self.identity.index,
            self.identity.uuid,
            self.identity.pci_bus_id,
            if is_unknown { "does not answer" } else { "is lost" }
        );
        self.lost = Some(Lost { reason: error.to_string(), is_unknown, asked_at: Instant::now() });
        // It may come back from a reset, in which counters and GPM samples are lost.
        self.forget_values();
        Ok(())
    }
}

/// Reads which GPU it is, as far as the driver tells it.
fn identify<'nvml>(driver: &'nvml Driver, identity: &mut Identity) -> Result<Device<'nvml>, NvmlError> {
    let device = driver.device_by_index(identity.index)?;
    identity.pci_bus_id = device.pci_info().map(|pci| pci.bus_id).unwrap_or_default();
    identity.model = device.name().unwrap_or_default();
    identity.minor = device.minor_number().ok().and_then(measured_u32);
    identity.uuid = device.uuid()?;
    Ok(device)
}

/// Bytes of device memory, if the driver tells it.
fn total_memory(device: &Device<'_>) -> Option<u64> {
    let total = device.memory_info().map(|info| info.total);
    total.or_else(|_| calls::memory_v1(device).map(|info| info.total)).ok().and_then(measured_u64)
}

/// A process cannot hold more memory than the GPU has: one that seems to makes all of them unknown.
fn plausible(processes: Processes, total: Option<u64>) -> Processes {
    let is_possible = |held: &u64| total.is_none_or(|total| *held <= total);
    let memory = processes.memory.filter(|held| held.iter().all(|(_, bytes)| is_possible(bytes)));
    Processes { memory, ..processes }
}
