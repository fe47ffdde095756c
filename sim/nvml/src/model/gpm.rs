//! Owns the GPM samples: snapshots of one GPU's counters, and what two of them say.

use std::collections::BTreeMap;

use super::device::Meter;
use super::figures;
use super::reading::Reading;
use crate::status::{Answer, Failure};

/// Samples at most; a caller that leaks them gets an error instead of the machine's memory.
const MAX_SAMPLES: usize = 65_536;
/// Metric ids that NVML 580 answers; engines that nothing here loads read 0.
const KNOWN: &[std::ops::RangeInclusive<u32>] =
    &[1..=13, 20..=21, 30..=37, 40..=47, 50..=51, 60..=97, 100..=209];

/// Of those, the ones that a MIG instance has of its own.
const OF_INSTANCES: std::ops::RangeInclusive<u32> = 1..=13;

/// Every sample that was allocated and not freed.
#[derive(Debug)]
pub(crate) struct Samples {
    made: usize,
    taken: BTreeMap<usize, Option<Sample>>,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    uuid: String,
    meter: Meter,
    links: u32,
    /// What the scenario has metrics answer.
    answers: BTreeMap<u32, f64>,
    /// Of a GPU instance: only what it has of its own is told.
    instance: bool,
}

impl Samples {
    pub(crate) const fn new() -> Self {
        Self { made: 0, taken: BTreeMap::new() }
    }

    /// Makes an empty sample; its id is never 0.
    pub(crate) fn allocate(&mut self) -> Result<usize, Failure> {
        if self.taken.len() >= MAX_SAMPLES {
            return Err(Failure::MEMORY);
        }
        self.made += 1;
        self.taken.insert(self.made, None);
        Ok(self.made)
    }

    /// Fills a sample.
    pub(crate) fn fill(&mut self, id: usize, sample: Sample) -> Answer {
        *self.taken.get_mut(&id).ok_or(Failure::INVALID_ARGUMENT)? = Some(sample);
        Ok(())
    }

    /// A sample that was filled.
    pub(crate) fn get(&self, id: usize) -> Result<Sample, Failure> {
        self.taken.get(&id).cloned().flatten().ok_or(Failure::INVALID_ARGUMENT)
    }

    /// Frees a sample.
    pub(crate) fn free(&mut self, id: usize) -> Answer {
        self.taken.remove(&id).map(|_| ()).ok_or(Failure::INVALID_ARGUMENT)
    }

    /// Frees every sample, as shutting NVML down does.
    pub(crate) fn free_all(&mut self) {
        self.taken.clear();
    }
}

impl Sample {
    pub(crate) fn of(reading: &Reading<'_>) -> Self {
        Self {
            uuid: reading.uuid(),
            meter: reading.device.meter,
            links: reading.gpu.nvlink.as_ref().map_or(0, |nvlink| nvlink.links),
            answers: reading
                .gpu
                .answers
                .iter()
                .filter_map(|(call, value)| {
                    Some((call.strip_prefix("nvmlGpmMetricsGet:")?.parse().ok()?, *value))
                })
                .collect(),
            instance: reading.instance.is_some(),
        }
    }

    /// Of a GPU instance; `load_s` is the use of all of it, percent-seconds.
    pub(crate) fn of_instance(uuid: String, mut meter: Meter, load_s: f64) -> Self {
        meter.load_s = load_s;
        Self { uuid, meter, links: 0, answers: BTreeMap::new(), instance: true }
    }

    /// Are both of one GPU?
    pub(crate) fn same_gpu(&self, other: &Self) -> bool {
        self.uuid == other.uuid
    }

    /// A metric's mean between two samples; NaN where no time passed between them.
    pub(crate) fn metric_since(&self, earlier: &Self, metric: u32) -> Result<f64, Failure> {
        if let Some(value) = self.answers.get(&metric) {
            return Ok(*value);
        }
        if !KNOWN.iter().any(|ids| ids.contains(&metric)) {
            return Err(Failure::INVALID_ARGUMENT);
        }
        if self.instance && !OF_INSTANCES.contains(&metric) {
            return Err(Failure::NOT_SUPPORTED);
        }
        let seconds = self.meter.uptime_s - earlier.meter.uptime_s;
        if seconds <= 0.0 {
            return Ok(f64::NAN);
        }
        let load = (self.meter.load_s - earlier.meter.load_s) / seconds;
        let (tx, rx) = (
            self.meter.pcie_kib().0 - earlier.meter.pcie_kib().0,
            self.meter.pcie_kib().1 - earlier.meter.pcie_kib().1,
        );
        let link_tx = self.meter.nvlink_tx_kib - earlier.meter.nvlink_tx_kib;
        let link_rx = self.meter.nvlink_rx_kib - earlier.meter.nvlink_rx_kib;
        let mib_s = |kib: f64| kib / 1024.0 / seconds;
        let per_link = |metric: u32, kib: f64| {
            if metric < self.links { mib_s(kib) / f64::from(self.links) } else { 0.0 }
        };
        Ok(match metric {
            20 => mib_s(tx),
            21 => mib_s(rx),
            60 => mib_s(link_rx),
            61 => mib_s(link_tx),
            62..=97 if metric.is_multiple_of(2) => per_link((metric - 62) / 2, link_rx),
            62..=97 => per_link((metric - 63) / 2, link_tx),
            _ => figures::gpm_percent(metric, load).unwrap_or(0.0),
        })
    }
}
