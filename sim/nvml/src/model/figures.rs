//! Owns the numbers an H100 answered idle and at full load, and how they follow the load between.
//!
//! Measured on an NVIDIA H100 80GB HBM3 with driver 580.159.04.

/// Power, milliwatts, at a load of so many percent.
pub(crate) fn power_mw(load: f64) -> f64 {
    between(69_635.0, 690_869.0, load)
}

/// Temperature of the GPU and of its memory, °C, at a load held for a while.
pub(crate) fn temperature_c(load: f64) -> f64 {
    between(33.0, 57.0, load)
}

/// As [`temperature_c`], of the memory.
pub(crate) fn memory_temperature_c(load: f64) -> f64 {
    between(37.0, 51.0, load)
}

/// SM and graphics clock, MHz: low when idle, else the highest that the power limit allows.
pub(crate) fn sm_clock_mhz(load: f64) -> f64 {
    if is_idle(load) { 345.0 } else { between(MAX_SM_CLOCK_MHZ, 1_470.0, load) }
}

/// Video clock, MHz.
pub(crate) fn video_clock_mhz(load: f64) -> f64 {
    between(765.0, 1_515.0, load)
}

/// Use of memory bandwidth, percent, at a device utilization of so many percent.
pub(crate) fn memory_utilization(percent: u32) -> u32 {
    (f64::from(percent) * 0.33).round() as u32
}

/// Bits of nvmlClocksEventReasons: idle, held by the power cap, or nothing.
pub(crate) fn clocks_event_reasons(load: f64) -> u64 {
    const GPU_IDLE: u64 = 0x1;
    const SW_POWER_CAP: u64 = 0x4;
    match load {
        load if is_idle(load) => GPU_IDLE,
        load if load >= POWER_CAPPED_FROM => SW_POWER_CAP,
        _ => 0,
    }
}

/// PCIe, KiB/s sent and received.
pub(crate) fn pcie_kib_s(load: f64) -> (f64, f64) {
    (between(657.0, 1_113.0, load), between(513.0, 2_880.0, load))
}

/// What GPM says of an engine, in percent, at a load of so many percent; `None` for ids that are
/// not a ratio this model knows.
pub(crate) fn gpm_percent(metric: u32, load: f64) -> Option<f64> {
    let at_full_load = match metric {
        1 => 100.0,
        2 => 96.2,
        3 => 14.2,
        4 => 1.36,
        5 | 7 => 93.5,
        10 => 25.0,
        _ => return None,
    };
    Some(at_full_load * load / 100.0)
}

/// A GPU held at least so busy runs into its power limit.
const POWER_CAPPED_FROM: f64 = 95.0;

pub(crate) const MAX_SM_CLOCK_MHZ: f64 = 1_980.0;
pub(crate) const MAX_VIDEO_CLOCK_MHZ: u32 = 1_545;
pub(crate) const MEMORY_CLOCK_MHZ: u32 = 2_619;
pub(crate) const POWER_LIMIT_MW: u32 = 700_000;
pub(crate) const POWER_MIN_LIMIT_MW: u32 = 200_000;
/// Bytes that the driver keeps for itself.
pub(crate) const RESERVED_BYTES: u64 = 503_316_480;
pub(crate) const BAR1_BYTES: u64 = 137_438_953_472;
/// Bytes of BAR1 in use by an idle GPU.
pub(crate) const BAR1_IDLE_BYTES: u64 = 1_703_936;

fn is_idle(load: f64) -> bool {
    load < 0.5
}

fn between(idle: f64, full: f64, load: f64) -> f64 {
    idle + (full - idle) * load / 100.0
}
