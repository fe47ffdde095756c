//! Owns one GPU's state between calls: what has loaded it, its ring, its counters.

use std::path::PathBuf;
use std::sync::Arc;

use super::figures;
use super::ring::{Ring, mix};
use super::timeline::{Played, Source, Timeline};
use crate::recording::Recording;
use crate::scenario::{Instance, NvLink, Replay, Scenario};

/// When the driver was loaded, µs since the epoch: 2026-01-01. Counters count from there, so that
/// they agree between processes and never fall when one restarts.
const DRIVER_LOADED_US: i64 = 1_767_225_600_000_000;
/// The past before the library was loaded is taken as whole spans like the last one, µs.
const PAST_SPAN_US: i64 = 600_000_000;
/// How much of the past the slowest reading (temperature) looks at, and some, µs.
const MEMORY_US: i64 = 60_000_000;

/// One GPU, kept by UUID for as long as the library is loaded.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) timeline: Timeline,
    pub(crate) ring: Ring,
    pub(crate) meter: Meter,
    nvlink: Option<NvLink>,
    /// Which replay is on, and when it began.
    replay: Option<(PathBuf, String, i64)>,
}

/// Counters that only rise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Meter {
    /// Up to when everything is counted, µs since the epoch.
    at_us: i64,
    /// Seconds since the driver was loaded.
    pub(crate) uptime_s: f64,
    /// Use of the device since then, percent-seconds.
    pub(crate) load_s: f64,
    /// KiB over all NVLinks since then.
    pub(crate) nvlink_tx_kib: f64,
    pub(crate) nvlink_rx_kib: f64,
}

// === impl Device ===

impl Device {
    /// A GPU seen for the first time, in the state that the scenario would have led to.
    pub(crate) fn new(
        scenario: &Scenario,
        index: usize,
        recording: Option<&Arc<Recording>>,
        now_us: i64,
    ) -> Self {
        let gpu = &scenario.gpus[index];
        let replay = gpu.replay.as_ref().map(|replay| begin(replay, None, now_us));
        let source = source(scenario, index, recording, replay.as_ref());
        let mut device = Self { replay, ..Self::under(source, &gpu.uuid(index), gpu.nvlink.clone(), now_us) };
        device.ring.set_clock(ahead_us(scenario));
        device
    }

    /// A MIG instance seen for the first time.
    pub(crate) fn of_instance(scenario: &Scenario, index: usize, instance: &Instance, now_us: i64) -> Self {
        let uuid = instance.uuid(&scenario.gpus[index], index);
        Self::under(instance_source(scenario, index, instance), &uuid, None, now_us)
    }

    fn under(source: Source, uuid: &str, nvlink: Option<NvLink>, now_us: i64) -> Self {
        let seed = uuid.bytes().fold(0u64, |seed, byte| mix(seed ^ u64::from(byte)));
        let timeline = Timeline::new(source);
        let meter = Meter::since_driver_load(&timeline, nvlink.as_ref(), now_us);
        Self { timeline, ring: Ring::new(seed), meter, nvlink, replay: None }
    }

    /// Takes up a scenario that came into force at a moment.
    pub(crate) fn adopt(
        &mut self,
        scenario: &Scenario,
        index: usize,
        recording: Option<&Arc<Recording>>,
        changed_us: i64,
    ) {
        // What was already told stays as it was told.
        let changed_us = changed_us.max(self.meter.at_us);
        self.advance(changed_us);
        let gpu = &scenario.gpus[index];
        self.replay = gpu.replay.as_ref().map(|replay| begin(replay, self.replay.as_ref(), changed_us + 1));
        self.nvlink.clone_from(&gpu.nvlink);
        self.ring.set_clock(ahead_us(scenario));
        self.load_by(source(scenario, index, recording, self.replay.as_ref()), changed_us);
    }

    /// As [`adopt`](Self::adopt), for an instance.
    pub(crate) fn adopt_instance(
        &mut self,
        scenario: &Scenario,
        index: usize,
        instance: &Instance,
        changed_us: i64,
    ) {
        let changed_us = changed_us.max(self.meter.at_us);
        self.advance(changed_us);
        self.load_by(instance_source(scenario, index, instance), changed_us);
    }

    fn load_by(&mut self, source: Source, since_us: i64) {
        if *self.timeline.current() != source {
            self.timeline.change(since_us, source);
        }
    }

    /// Brings the ring and the counters up to a moment. A clock that steps back changes nothing.
    pub(crate) fn advance(&mut self, now_us: i64) {
        self.ring.fill(&self.timeline, now_us);
        self.meter.advance(&self.timeline, self.nvlink.as_ref(), now_us);
        self.timeline.forget_before(now_us - MEMORY_US);
    }
}

fn ahead_us(scenario: &Scenario) -> i64 {
    (scenario.driver_clock_s * 1e6) as i64
}

/// The replay and when it begins: by the file, else when it began already, else now.
fn begin(replay: &Replay, on: Option<&(PathBuf, String, i64)>, now_us: i64) -> (PathBuf, String, i64) {
    let began = on.filter(|(file, run, _)| *file == replay.file && *run == replay.run).map(|on| on.2);
    let start_us = replay.start.map(|start_s| (start_s * 1e6) as i64).or(began).unwrap_or(now_us);
    (replay.file.clone(), replay.run.clone(), start_us)
}

fn source(
    scenario: &Scenario,
    index: usize,
    recording: Option<&Arc<Recording>>,
    replay: Option<&(PathBuf, String, i64)>,
) -> Source {
    if let (Some(recording), Some((_, _, start_us))) = (recording, replay) {
        return Source::Replay(Played { recording: recording.clone(), start_us: *start_us });
    }
    let server = scenario.gpus[index].mps_server;
    let credited = |pid: Option<u32>| pid.map(|pid| server.unwrap_or(pid));
    Source::Loads(scenario.loads(index).into_iter().map(|(pid, load)| (credited(pid), load)).collect())
}

fn instance_source(scenario: &Scenario, index: usize, instance: &Instance) -> Source {
    Source::Loads(
        scenario.instance_loads(index, instance).map(|(pid, load)| (pid, load.clone())).collect::<Vec<_>>(),
    )
}

// === impl Meter ===

impl Meter {
    fn since_driver_load(timeline: &Timeline, nvlink: Option<&NvLink>, now_us: i64) -> Self {
        let loaded_us = DRIVER_LOADED_US.min(now_us);
        // Exact for loads whose period divides the span, and independent of when it is asked.
        let boundary_us = (now_us.div_euclid(PAST_SPAN_US) * PAST_SPAN_US).max(loaded_us);
        let past_s = (boundary_us - loaded_us) as f64 / 1e6;
        let (tx_mib_s, rx_mib_s) = nvlink.map_or((0.0, 0.0), |link| (link.tx_mib_s, link.rx_mib_s));
        let mut meter = Self {
            at_us: boundary_us,
            uptime_s: past_s,
            load_s: timeline.mean_before(boundary_us, PAST_SPAN_US) * past_s,
            nvlink_tx_kib: tx_mib_s * 1024.0 * past_s,
            nvlink_rx_kib: rx_mib_s * 1024.0 * past_s,
        };
        meter.advance(timeline, nvlink, now_us);
        meter
    }

    fn advance(&mut self, timeline: &Timeline, nvlink: Option<&NvLink>, now_us: i64) {
        if now_us <= self.at_us {
            return;
        }
        let seconds = (now_us - self.at_us) as f64 / 1e6;
        self.load_s += timeline.integral(self.at_us, now_us);
        self.uptime_s += seconds;
        if let Some(nvlink) = nvlink {
            self.nvlink_tx_kib += nvlink.tx_mib_s * 1024.0 * seconds;
            self.nvlink_rx_kib += nvlink.rx_mib_s * 1024.0 * seconds;
        }
        self.at_us = now_us;
    }

    /// Millijoules since the driver was loaded: power is linear in the load, so its integral is
    /// that of the load.
    pub(crate) fn energy_mj(&self) -> u64 {
        let idle_mw = figures::power_mw(0.0);
        let mw_per_percent = (figures::power_mw(100.0) - idle_mw) / 100.0;
        idle_mw.mul_add(self.uptime_s, mw_per_percent * self.load_s) as u64
    }

    /// KiB over PCIe since the driver was loaded, sent and received.
    pub(crate) fn pcie_kib(&self) -> (f64, f64) {
        let (tx_idle, rx_idle) = figures::pcie_kib_s(0.0);
        let (tx_full, rx_full) = figures::pcie_kib_s(100.0);
        let full_s = self.load_s / 100.0;
        (
            tx_idle.mul_add(self.uptime_s, (tx_full - tx_idle) * full_s),
            rx_idle.mul_add(self.uptime_s, (rx_full - rx_idle) * full_s),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_277_919_232_070;

    fn scenario(load: u32) -> Scenario {
        Scenario::parse(&format!("gpus: [{{load: {{constant: {load}}}, nvlink: {{tx_mib_s: 10}}}}]")).unwrap()
    }

    #[test]
    fn energy_rises_with_power_and_never_falls_when_the_scenario_changes() {
        let mut device = Device::new(&scenario(100), 0, None, NOW);
        let start = device.meter.energy_mj();
        device.advance(NOW + 1_000_000);
        let busy = device.meter.energy_mj();
        assert!((busy - start).abs_diff(690_869) < 100, "{}", busy - start);
        device.adopt(&scenario(0), 0, None, NOW + 500_000);
        device.advance(NOW + 2_000_000);
        assert!((device.meter.energy_mj() - busy).abs_diff(69_635) < 100);
        assert!(device.meter.nvlink_tx_kib > 0.0);
    }

    #[test]
    fn a_process_that_starts_later_finds_the_same_counters() {
        let mut early = Device::new(&scenario(40), 0, None, NOW);
        early.advance(NOW + 1_000_000_000);
        let late = Device::new(&scenario(40), 0, None, NOW + 1_000_000_000);
        assert!(early.meter.energy_mj().abs_diff(late.meter.energy_mj()) < 1_000);
    }

    #[test]
    fn a_change_shows_from_its_own_moment_on() {
        let mut device = Device::new(&scenario(0), 0, None, NOW);
        device.advance(NOW);
        device.adopt(&scenario(50), 0, None, NOW + 1_000_000);
        device.advance(NOW + 3_000_000);
        let last: Vec<u32> = device.ring.newer_than(NOW as u64).map(|slot| slot.percent).collect();
        let sum: u32 = last.iter().sum();
        assert!(last.iter().all(|percent| *percent <= 50) && last.ends_with(&[50; 9]), "{last:?}");
        assert!((450..=500).contains(&sum), "{last:?}");
    }
}
