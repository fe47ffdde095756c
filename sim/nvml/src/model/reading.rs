//! Owns what one GPU answers at one moment.

use super::device::Device;
use super::figures;
use super::ring::Slot;
use super::timeline::Source;
use crate::scenario::{Gpu, Instance, Process, Scenario};
use crate::status::Failure;

const SECOND_US: i64 = 1_000_000;
/// A temperature follows the mean load of so long, µs.
const THERMAL_US: i64 = 30_000_000;
/// Memory of a process that only a recording names, MiB.
const RECORDED_PROCESS_MIB: u64 = 512;

/// One GPU at one moment, its device brought up to that moment.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    pub(crate) index: usize,
    pub(crate) gpu: &'a Gpu,
    /// The MIG instance of it, if the handle was of one.
    pub(crate) instance: Option<&'a Instance>,
    pub(crate) scenario: &'a Scenario,
    pub(crate) device: &'a Device,
    pub(crate) now_us: i64,
}

/// A process as the lists of running processes show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    /// Bytes; `None` where NVML cannot say.
    pub(crate) memory: Option<u64>,
    /// Ids of the GPU instance and the compute instance on which it runs.
    pub(crate) instance: Option<(u32, u32)>,
}

/// A process's use in its newest slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessSample {
    pub(crate) pid: u32,
    pub(crate) end_us: u64,
    pub(crate) sm: u32,
    pub(crate) memory: u32,
}

impl Reading<'_> {
    pub(crate) fn uuid(&self) -> String {
        match self.instance {
            Some(instance) => instance.uuid(self.gpu, self.index),
            None => self.gpu.uuid(self.index),
        }
    }

    /// Mean load of the last second, percent: what power and clocks follow.
    pub(crate) fn load(&self) -> f64 {
        self.device.timeline.mean_before(self.now_us, SECOND_US)
    }

    /// Mean power of the last second, milliwatts.
    pub(crate) fn power_mw(&self) -> u32 {
        self.answer("nvmlDeviceGetPowerUsage").unwrap_or_else(|| figures::power_mw(self.load())).round()
            as u32
    }

    /// Power now, milliwatts.
    pub(crate) fn power_now_mw(&self) -> u32 {
        super::power::newest(&self.device.timeline, self.now_us)
    }

    /// Power samples newer than a timestamp: when each ended, and milliwatts.
    pub(crate) fn power_samples(&self, seen_us: u64) -> Vec<(u64, u32)> {
        super::power::samples(&self.device.timeline, self.now_us, seen_us)
    }

    /// °C.
    pub(crate) fn temperature_c(&self) -> u32 {
        figures::temperature_c(self.device.timeline.mean_before(self.now_us, THERMAL_US)).round() as u32
    }

    /// °C.
    pub(crate) fn memory_temperature_c(&self) -> u32 {
        figures::memory_temperature_c(self.device.timeline.mean_before(self.now_us, THERMAL_US)).round()
            as u32
    }

    /// MHz, of the SMs and of graphics.
    pub(crate) fn sm_clock_mhz(&self) -> u32 {
        figures::sm_clock_mhz(self.load()).round() as u32
    }

    /// MHz.
    pub(crate) fn video_clock_mhz(&self) -> u32 {
        figures::video_clock_mhz(self.load()).round() as u32
    }

    /// Bits of nvmlClocksEventReasons.
    pub(crate) fn clocks_event_reasons(&self) -> u64 {
        self.answer("nvmlDeviceGetCurrentClocksEventReasons")
            .map_or_else(|| figures::clocks_event_reasons(self.load()), |bits| bits as u64)
    }

    /// KiB/s over PCIe, sent and received, now.
    pub(crate) fn pcie_kib_s(&self) -> (u32, u32) {
        let (tx, rx) = figures::pcie_kib_s(self.load());
        (tx.round() as u32, rx.round() as u32)
    }

    /// Use of the device and of its memory bandwidth in the newest slot, percent. A recording
    /// says nothing of other moments than its own.
    pub(crate) fn utilization(&self) -> Result<(u32, u32), Failure> {
        if let Source::Replay(played) = self.device.timeline.current() {
            let (first, last) = played.span_us();
            if self.now_us < first || self.now_us > last {
                return Err(Failure::NO_DATA);
            }
        }
        let slot = self.device.ring.latest().ok_or(Failure::NO_DATA)?;
        Ok((slot.percent, figures::memory_utilization(slot.percent)))
    }

    /// Slots newer than a timestamp, oldest first: when each ended, percent of the device and of
    /// its memory bandwidth.
    pub(crate) fn slots(&self, seen_us: u64) -> impl Iterator<Item = (u64, u32, u32)> {
        let row =
            |slot: &Slot| (slot.timestamp_us(), slot.percent, figures::memory_utilization(slot.percent));
        self.device.ring.newer_than(seen_us).map(row)
    }

    /// Each process's newest slot, if newer than a timestamp.
    pub(crate) fn process_samples(&self, seen_us: u64) -> Vec<ProcessSample> {
        self.device
            .ring
            .credited(seen_us)
            .into_iter()
            .map(|(pid, slot)| ProcessSample {
                pid,
                end_us: slot.timestamp_us(),
                sm: slot.percent,
                memory: figures::memory_utilization(slot.percent),
            })
            .collect()
    }

    /// Processes with a context on it, whether the lists show them or not.
    fn processes(&self) -> Vec<Running> {
        let mib = |process: &Process| (!process.memory_unavailable).then_some(process.memory_mib << 20);
        let mut all: Vec<Running> = self
            .scenario
            .all_processes()
            .filter(|(_, process)| self.has(process))
            .map(|(_, process)| Running {
                pid: process.pid,
                memory: mib(process),
                instance: process.gi.map(|gi| (gi, process.ci)),
            })
            .collect();
        if let Source::Replay(played) = self.device.timeline.current() {
            let (first, last) = played.span_us();
            if (first..=last).contains(&self.now_us) {
                for pid in played.recording.pids() {
                    if all.iter().all(|process| process.pid != pid) {
                        let memory = Some(RECORDED_PROCESS_MIB << 20);
                        all.push(Running { pid, memory, instance: None });
                    }
                }
            }
        }
        all
    }

    /// The list of processes that compute. Under MPS the server is one of them.
    pub(crate) fn running(&self) -> Vec<Running> {
        if !self.gpu.lists_processes {
            return Vec::new();
        }
        let mut all = self.processes();
        if let Some(server) = self.gpu.mps_server
            && all.iter().all(|process| process.pid != server)
        {
            all.push(Running { pid: server, memory: Some(0), instance: None });
        }
        all
    }

    /// The list of MPS clients.
    pub(crate) fn mps_clients(&self) -> Vec<Running> {
        match self.gpu.mps_server {
            Some(server) if self.gpu.lists_processes => {
                self.processes().into_iter().filter(|process| process.pid != server).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What the scenario has a call answer.
    pub(crate) fn answer(&self, call: &str) -> Option<f64> {
        self.gpu.answers.get(call).copied()
    }

    /// The error that the scenario has for one field, here or on every GPU.
    pub(crate) fn field_error(&self, id: u32) -> Option<Failure> {
        let name = format!("nvmlDeviceGetFieldValues:{id}");
        let error = self.gpu.errors.get(&name).or_else(|| self.scenario.errors.get(&name));
        error.and_then(|error| Failure::named(error))
    }

    /// Bytes in all.
    pub(crate) fn memory_total(&self) -> u64 {
        self.instance.map_or(self.gpu.memory_mib << 20, |instance| instance.memory_bytes(self.gpu))
    }

    /// Bytes that the driver keeps for itself; an instance is cut out of the rest.
    pub(crate) fn memory_reserved(&self) -> u64 {
        if self.instance.is_some() { 0 } else { figures::RESERVED_BYTES.min(self.memory_total()) }
    }

    /// Whether a process runs on it. Memory is the GPU instance's, whichever compute instance of
    /// it the process has.
    fn has(&self, process: &Process) -> bool {
        process.gpu == self.index && self.instance.is_none_or(|instance| process.gi == Some(instance.gi))
    }

    /// Bytes that processes use, of those the driver leaves them. What NVML cannot tell of one
    /// process is in here all the same.
    pub(crate) fn memory_used(&self) -> u64 {
        let hidden: u64 = self
            .scenario
            .all_processes()
            .filter(|(_, process)| self.has(process) && process.memory_unavailable)
            .map(|(_, process)| process.memory_mib << 20)
            .sum();
        let listed: u64 = self.processes().iter().filter_map(|process| process.memory).sum();
        (listed + hidden).min(self.memory_total().saturating_sub(self.memory_reserved()))
    }

    /// Seconds at full load since the driver was loaded: what power-limit violations follow.
    pub(crate) fn full_load_s(&self) -> f64 {
        self.device.meter.load_s / 100.0
    }

    /// Seconds without load since the driver was loaded.
    pub(crate) fn idle_s(&self) -> f64 {
        self.device.meter.uptime_s - self.full_load_s()
    }
}
