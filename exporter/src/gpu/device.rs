//! Owns one GPU during a session: its rings, its values, and whether it is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    nvmlSamplingType_enum_NVML_GPU_UTILIZATION_SAMPLES as GPU_SAMPLES,
    nvmlSamplingType_enum_NVML_MEMORY_UTILIZATION_SAMPLES as MEMORY_SAMPLES,
};
use podgauge_common::catalogue::Reading;
use podgauge_common::exposition::write::Value;

use super::fields::{Fault, Memo};
use super::mig::Partition;
use super::ring::{RingClock, Slot};
use super::sampler::Plan;
use super::xid::XidLog;
use super::{DeviceReading, Identity, raw};

/// How often a lost GPU is asked whether it is back.
const LOST_RETRY: Duration = Duration::from_secs(5);

/// The rings of a GPU. They outlive a session, so that nothing counts twice after a reload.
#[derive(Debug, Default)]
pub(super) struct Rings {
    gpu: Ring,
    memory: Ring,
}

#[derive(Debug, Default)]
struct Ring {
    clock: RingClock,
    unsupported: bool,
    slots: Vec<Slot>,
}

/// One GPU during a session.
#[derive(Debug)]
pub(super) struct SampledDevice<'nvml> {
    device: Device<'nvml>,
    pub(super) identity: Arc<Identity>,
    pub(super) rings: Rings,
    partition: Partition<'nvml>,
    memo: Memo,
    values: Vec<Option<Value>>,
    values_at: Option<Instant>,
    lost: Option<Lost>,
}

#[derive(Debug)]
struct Lost {
    reason: String,
    asked_at: Instant,
}

// === impl SampledDevice ===

impl<'nvml> SampledDevice<'nvml> {
    pub(super) fn open(nvml: &'nvml Nvml, index: u32) -> Result<Self, NvmlError> {
        let device = nvml.device_by_index(index)?;
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
            partition: Partition::default(),
            memo: Memo::default(),
            values: Vec::new(),
            values_at: None,
            lost: None,
        })
    }

    /// Drains the rings and, if they are due, reads the other values. An error asks for a reload.
    pub(super) fn tick(&mut self, plan: &Plan, xids: &XidLog) -> Result<(), NvmlError> {
        if let Some(lost) = &mut self.lost {
            let now = Instant::now();
            if now.saturating_duration_since(lost.asked_at) < LOST_RETRY {
                return Ok(());
            }
            lost.asked_at = now;
            if self.device.uuid().is_err() {
                return Ok(());
            }
            tracing::info!("GPU {} ({}) answers again", self.identity.index, self.identity.uuid);
            self.lost = None;
        }
        let read = self.read_all(plan, xids);
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

    /// Whether a ring that the plan needs gives nothing.
    pub(super) fn is_dry(&self, plan: &Plan) -> bool {
        let now = Instant::now();
        self.lost.is_none()
            && !self.partition.is_enabled()
            && (self.rings.gpu.is_dry(now) || (plan.memory_utilization && self.rings.memory.is_dry(now)))
    }

    /// What was learned since the last time, taken out: of the GPU, or if it is cut into MIG
    /// instances of each of them.
    pub(super) fn take_readings(&mut self, plan: &Plan, xids: &XidLog) -> Vec<DeviceReading> {
        let gpu = DeviceReading {
            identity: Arc::clone(&self.identity),
            lost: self.lost.as_ref().map(|lost| lost.reason.clone()),
            values: if self.lost.is_some() { vec![None; self.values.len()] } else { self.values.clone() },
            unmeasured: None,
            gpu_slots: std::mem::take(&mut self.rings.gpu.slots),
            memory_slots: std::mem::take(&mut self.rings.memory.slots),
        };
        let xid = plan.metrics.iter().position(|metric| metric.reading == Reading::Xid);
        let instances = self.partition.take_readings(&plan.instance, &gpu, xid.map(|at| (at, xids)));
        if instances.is_empty() { vec![gpu] } else { instances }
    }

    fn read_all(&mut self, plan: &Plan, xids: &XidLog) -> Result<(), NvmlError> {
        if self.partition.follow(&self.device, &self.identity, xids)? {
            // What the driver supports has changed with it, and new instances have no values yet.
            self.memo = Memo::default();
            self.values_at = None;
            self.rings.gpu.unsupported = false;
            self.rings.memory.unsupported = false;
        }
        if self.partition.is_enabled() {
            self.partition.sample(&self.device)?;
        } else {
            self.drain_rings(plan)?;
        }
        let now = Instant::now();
        // Half a tick of slack: a `-c` of one second must not fall on every other tick.
        let due = self
            .values_at
            .is_none_or(|at| now.saturating_duration_since(at) + Duration::from_millis(500) > plan.interval);
        self.values.resize(plan.metrics.len(), None);
        if due {
            plan.fields.read(&self.device, &plan.metrics, &mut self.memo, &mut self.values)?;
            self.partition.read(&plan.instance)?;
            self.values_at = Some(now);
        }
        for (value, metric) in self.values.iter_mut().zip(&plan.metrics) {
            if metric.reading == Reading::Xid {
                *value = xids.last(self.identity.index, None).map(Value::U64);
            }
        }
        Ok(())
    }

    fn drain_rings(&mut self, plan: &Plan) -> Result<(), NvmlError> {
        self.rings.gpu.drain(&self.device, GPU_SAMPLES)?;
        if plan.memory_utilization {
            self.rings.memory.drain(&self.device, MEMORY_SAMPLES)?;
        }
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
        tracing::error!(
            "GPU {} ({}, {}) is lost: {error}; its values are left out until it answers again (asked every {LOST_RETRY:?})",
            self.identity.index,
            self.identity.uuid,
            self.identity.pci_bus_id
        );
        self.lost = Some(Lost { reason: error.to_string(), asked_at: Instant::now() });
        self.values_at = None;
        Ok(())
    }
}

// === impl Ring ===

impl Ring {
    fn drain(&mut self, device: &Device<'_>, kind: u32) -> Result<(), NvmlError> {
        let read = if self.unsupported {
            Ok(Vec::new())
        } else {
            raw::samples(device, kind, self.clock.last_seen_us())
        };
        let samples = match read {
            Ok(samples) => samples,
            Err(error) => match Fault::of(&error) {
                Fault::Unsupported => {
                    self.unsupported = true;
                    Vec::new()
                }
                // Nothing newer than what was seen.
                Fault::NoValue => Vec::new(),
                Fault::Lost | Fault::Reload => return Err(error),
            },
        };
        self.slots.extend(self.clock.drained(samples, Instant::now()));
        Ok(())
    }

    fn read(&mut self, percent: u32, now: Instant) {
        if self.is_dry(now) {
            self.clock.reading(percent, now);
        }
    }

    fn is_dry(&self, now: Instant) -> bool {
        self.unsupported || self.clock.is_dry(now)
    }
}
