//! The sample rings of a GPU, drained once a tick, and the readings that stand in for a dry one.

use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::{
    nvmlSamplingType_enum_NVML_GPU_UTILIZATION_SAMPLES as GPU_SAMPLES,
    nvmlSamplingType_enum_NVML_MEMORY_UTILIZATION_SAMPLES as MEMORY_SAMPLES,
};

use super::driver::{Device, Fault, NvmlError};
use super::raw;
use super::ring::{RingClock, Slot};

/// A ring that gives nothing new for so long is replaced by the rates.
const DRY_AFTER: Duration = Duration::from_secs(1);
/// The memory ring is drained at every second tick: it has no counter that a pod is paid by, and
/// each drain costs 2 ms of the driver's time.
pub(super) const MEMORY_EVERY: u32 = 2;

/// The rings of a GPU. They outlive a session, so that nothing counts twice after a reload.
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) gpu: Ring,
    pub(super) memory: Ring,
}

/// One ring of a GPU.
#[derive(Debug)]
pub(super) struct Ring {
    kind: u32,
    pub(super) clock: RingClock,
    /// How long it may give nothing before it is dry.
    patience: Duration,
    pub(super) unsupported: bool,
    /// New stretches of known utilization, until they are taken.
    pub(super) slots: Vec<Slot>,
}

// === impl Rings ===

impl Default for Rings {
    fn default() -> Self {
        Self {
            gpu: Ring::new(GPU_SAMPLES, DRY_AFTER),
            memory: Ring::new(MEMORY_SAMPLES, DRY_AFTER * MEMORY_EVERY),
        }
    }
}

// === impl Ring ===

impl Ring {
    fn new(kind: u32, patience: Duration) -> Self {
        Self { kind, clock: RingClock::default(), patience, unsupported: false, slots: Vec::new() }
    }

    /// Whether the driver's clock has gone back since the last time.
    pub(super) fn drain(&mut self, device: &Device<'_>) -> Result<bool, NvmlError> {
        let now = Instant::now();
        let samples = self.samples(device, self.clock.last_seen_us())?;
        if samples.is_empty() && !self.unsupported && self.clock.asks_for_all(now, self.patience) {
            let all = self.samples(device, 0)?;
            if let Some(after) = self.clock.set_back(all, Instant::now()) {
                self.slots.extend(self.clock.drained(after, Instant::now()));
                return Ok(true);
            }
        }
        self.slots.extend(self.clock.drained(samples, Instant::now()));
        Ok(false)
    }

    fn samples(&mut self, device: &Device<'_>, after_us: u64) -> Result<Vec<raw::RingSample>, NvmlError> {
        if self.unsupported {
            return Ok(Vec::new());
        }
        raw::samples(device, self.kind, after_us).or_else(|error| match Fault::of(&error) {
            Fault::Unsupported => {
                self.unsupported = true;
                Ok(Vec::new())
            }
            // Nothing newer than what was seen.
            Fault::NoValue => Ok(Vec::new()),
            Fault::Lost | Fault::Reload => Err(error),
        })
    }

    pub(super) fn read(&mut self, percent: u32, now: Instant) {
        if self.is_dry(now) {
            self.clock.reading(percent, now);
        }
    }

    pub(super) fn is_dry(&self, now: Instant) -> bool {
        self.unsupported || self.clock.is_dry(now, self.patience)
    }
}
