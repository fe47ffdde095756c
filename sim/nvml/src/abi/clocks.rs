//! Calls for clocks, temperature, power and energy.
#![allow(unsafe_code, non_snake_case)]

use nvml_wrapper_sys::bindings::{nvmlMarginTemperature_t, nvmlTemperature_t};

use super::arguments::Out;
use super::call::calls;
use crate::model::{
    MAX_SM_CLOCK_MHZ, MAX_VIDEO_CLOCK_MHZ, MEMORY_CLOCK_MHZ, POWER_LIMIT_MW, POWER_MIN_LIMIT_MW, Reading,
};
use crate::status::Failure;

/// Idle, application clocks, software power cap, the four slowdowns, sync boost, display.
const SUPPORTED_EVENT_REASONS: u64 = 511;
/// °C: shutdown, slowdown, highest for memory, highest for the GPU.
const TEMPERATURE_THRESHOLDS: [u32; 4] = [95, 89, 95, 87];
/// Thresholds that the header has and this GPU has not.
const UNSUPPORTED_THRESHOLDS: u32 = 8;

calls! {
    gpu fn nvmlDeviceGetClockInfo(kind: u32, mhz: Out<u32>) |gpu| { mhz.put(clock(gpu, kind)?) }
    gpu fn nvmlDeviceGetMaxClockInfo(kind: u32, mhz: Out<u32>) |_gpu| { mhz.put(max_clock(kind)?) }
    gpu fn nvmlDeviceGetMaxCustomerBoostClock(kind: u32, mhz: Out<u32>) |_gpu| { mhz.put(max_clock(kind)?) }
    gpu fn nvmlDeviceGetApplicationsClock(kind: u32, mhz: Out<u32>) |_gpu| { mhz.put(max_clock(kind)?) }
    gpu fn nvmlDeviceGetDefaultApplicationsClock(kind: u32, mhz: Out<u32>) |_gpu| { mhz.put(max_clock(kind)?) }
    gpu fn nvmlDeviceGetClock(kind: u32, which: u32, mhz: Out<u32>) |gpu| {
        match which {
            0 => mhz.put(clock(gpu, kind)?),
            1..=3 => mhz.put(max_clock(kind)?),
            _ => Err(Failure::INVALID_ARGUMENT),
        }
    }
    gpu fn nvmlDeviceGetCurrentClocksThrottleReasons(reasons: Out<u64>) |gpu| {
        reasons.put(gpu.clocks_event_reasons())
    }
    gpu fn nvmlDeviceGetCurrentClocksEventReasons(reasons: Out<u64>) |gpu| {
        reasons.put(gpu.clocks_event_reasons())
    }
    gpu fn nvmlDeviceGetSupportedClocksThrottleReasons(reasons: Out<u64>) |_gpu| {
        reasons.put(SUPPORTED_EVENT_REASONS)
    }
    gpu fn nvmlDeviceGetSupportedClocksEventReasons(reasons: Out<u64>) |_gpu| {
        reasons.put(SUPPORTED_EVENT_REASONS)
    }
    gpu fn nvmlDeviceGetPerformanceState(state: Out<u32>) |_gpu| { state.put(0) }
    gpu fn nvmlDeviceGetPowerState(state: Out<u32>) |_gpu| { state.put(0) }

    gpu fn nvmlDeviceGetTemperature(sensor: u32, celsius: Out<u32>) |gpu| {
        if sensor != 0 {
            return Err(Failure::INVALID_ARGUMENT);
        }
        let answer = gpu.answer("nvmlDeviceGetTemperature");
        celsius.put(answer.map_or_else(|| gpu.temperature_c(), |celsius| celsius as u32))
    }
    gpu fn nvmlDeviceGetTemperatureV(temperature: Out<nvmlTemperature_t>) |gpu| {
        let asked = temperature.get()?;
        if asked.sensorType != 0 {
            return Err(Failure::INVALID_ARGUMENT);
        }
        temperature.put(nvmlTemperature_t { temperature: gpu.temperature_c() as i32, ..asked })
    }
    gpu fn nvmlDeviceGetMarginTemperature(margin: Out<nvmlMarginTemperature_t>) |gpu| {
        let asked = margin.get()?;
        let left = TEMPERATURE_THRESHOLDS[3] as i32 - gpu.temperature_c() as i32;
        margin.put(nvmlMarginTemperature_t { marginTemperature: left, ..asked })
    }
    gpu fn nvmlDeviceGetTemperatureThreshold(which: u32, celsius: Out<u32>) |_gpu| {
        match TEMPERATURE_THRESHOLDS.get(which as usize) {
            Some(threshold) => celsius.put(*threshold),
            None if which < UNSUPPORTED_THRESHOLDS => Err(Failure::NOT_SUPPORTED),
            None => Err(Failure::INVALID_ARGUMENT),
        }
    }
    gpu fn nvmlDeviceGetFanSpeed(percent: Out<u32>) |gpu| {
        let answer = gpu.answer("nvmlDeviceGetFanSpeed").ok_or(Failure::NOT_SUPPORTED)?;
        percent.put(answer as u32)
    }
    gpu fn nvmlDeviceGetFanSpeed_v2(_fan: u32, _percent: Out<u32>) |_gpu| { Err(Failure::NOT_SUPPORTED) }
    gpu fn nvmlDeviceGetNumFans(fans: Out<u32>) |_gpu| { fans.put(0) }

    gpu fn nvmlDeviceGetPowerUsage(milliwatts: Out<u32>) |gpu| { milliwatts.put(gpu.power_mw()) }
    gpu fn nvmlDeviceGetTotalEnergyConsumption(millijoules: Out<u64>) |gpu| {
        millijoules.put(gpu.device.meter.energy_mj())
    }
    gpu fn nvmlDeviceGetEnforcedPowerLimit(milliwatts: Out<u32>) |gpu| {
        let answer = gpu.answer("nvmlDeviceGetEnforcedPowerLimit");
        milliwatts.put(answer.map_or(POWER_LIMIT_MW, |milliwatts| milliwatts as u32))
    }
    gpu fn nvmlDeviceGetPowerManagementLimit(milliwatts: Out<u32>) |_gpu| { milliwatts.put(POWER_LIMIT_MW) }
    gpu fn nvmlDeviceGetPowerManagementDefaultLimit(milliwatts: Out<u32>) |_gpu| {
        milliwatts.put(POWER_LIMIT_MW)
    }
    gpu fn nvmlDeviceGetPowerManagementLimitConstraints(least: Out<u32>, most: Out<u32>) |_gpu| {
        least.put(POWER_MIN_LIMIT_MW)?;
        most.put(POWER_LIMIT_MW)
    }
    gpu fn nvmlDeviceGetPowerManagementMode(mode: Out<u32>) |_gpu| { mode.put(1) }
}

/// Graphics, SM, memory, video.
fn clock(gpu: &Reading<'_>, kind: u32) -> Result<u32, Failure> {
    if let Some(mhz) = gpu.answer("nvmlDeviceGetClockInfo") {
        return Ok(mhz as u32);
    }
    match kind {
        0 | 1 => Ok(gpu.sm_clock_mhz()),
        2 => Ok(MEMORY_CLOCK_MHZ),
        3 => Ok(gpu.video_clock_mhz()),
        _ => Err(Failure::INVALID_ARGUMENT),
    }
}

fn max_clock(kind: u32) -> Result<u32, Failure> {
    match kind {
        0 | 1 => Ok(MAX_SM_CLOCK_MHZ as u32),
        2 => Ok(MEMORY_CLOCK_MHZ),
        3 => Ok(MAX_VIDEO_CLOCK_MHZ),
        _ => Err(Failure::INVALID_ARGUMENT),
    }
}
