//! Calls for utilization and its samples.
#![allow(unsafe_code, non_snake_case)]

use nvml_wrapper_sys::bindings::{nvmlSample_t, nvmlUtilization_t, nvmlValue_t};

use super::arguments::{List, Out};
use super::call::calls;
use crate::model::{POWER_SAMPLES, Reading, SLOTS};
use crate::status::{Answer, Failure};

/// NVML_VALUE_TYPE_UNSIGNED_INT.
const UNSIGNED_INT: u32 = 1;
/// What the calls for single engines say of their sampling period, µs.
const ENGINE_PERIOD_US: u32 = 100_000;

calls! {
    gpu fn nvmlDeviceGetUtilizationRates(rates: Out<nvmlUtilization_t>) |gpu| {
        let (device, memory) = match gpu.answer("nvmlDeviceGetUtilizationRates") {
            Some(percent) => (percent as u32, percent as u32),
            None => gpu.utilization()?,
        };
        rates.put(nvmlUtilization_t { gpu: device, memory })
    }
    gpu fn nvmlDeviceGetEncoderUtilization(percent: Out<u32>, period_us: Out<u32>) |gpu| {
        put_idle(&percent, &period_us)?;
        gpu.answer("nvmlDeviceGetEncoderUtilization").map_or(Ok(()), |answer| percent.put(answer as u32))
    }
    gpu fn nvmlDeviceGetDecoderUtilization(percent: Out<u32>, period_us: Out<u32>) |gpu| {
        put_idle(&percent, &period_us)?;
        gpu.answer("nvmlDeviceGetDecoderUtilization").map_or(Ok(()), |answer| percent.put(answer as u32))
    }
    gpu fn nvmlDeviceGetJpgUtilization(percent: Out<u32>, period_us: Out<u32>) |_gpu| {
        put_idle(&percent, &period_us)
    }
    gpu fn nvmlDeviceGetOfaUtilization(percent: Out<u32>, period_us: Out<u32>) |_gpu| {
        put_idle(&percent, &period_us)
    }
    gpu fn nvmlDeviceGetSamples(
        kind: u32,
        last_seen_us: u64,
        value_type: Out<u32>,
        count: Out<u32>,
        samples: List<nvmlSample_t>,
    ) |gpu| {
        let capacity = match kind {
            0 => POWER_SAMPLES,
            // With MIG on only power has samples.
            1..=4 if gpu.gpu.mig.is_some() => return Err(Failure::NOT_SUPPORTED),
            1..=4 => SLOTS,
            5 | 6 => return Err(Failure::NOT_FOUND),
            _ => return Err(Failure::INVALID_ARGUMENT),
        };
        value_type.put(UNSIGNED_INT)?;
        if samples.is_null() {
            return count.put(capacity as u32);
        }
        let newer = newer_samples(gpu, kind, last_seen_us);
        if newer.is_empty() {
            return Err(Failure::NOT_FOUND);
        }
        samples.put_all(&count, newer)
    }
}

/// Nothing here loads the engines for video and images.
fn put_idle(percent: &Out<u32>, period_us: &Out<u32>) -> Answer {
    percent.put(0)?;
    period_us.put(ENGINE_PERIOD_US)
}

/// Power, GPU, memory, encoder, decoder.
fn newer_samples(gpu: &Reading<'_>, kind: u32, last_seen_us: u64) -> Vec<nvmlSample_t> {
    let sample = |at: u64, value: u32| nvmlSample_t {
        timeStamp: at,
        // The other bytes of the union stay 0 whatever type the caller reads.
        sampleValue: nvmlValue_t { ullVal: value.into() },
    };
    if kind == 0 {
        return gpu.power_samples(last_seen_us).into_iter().map(|(at, mw)| sample(at, mw)).collect();
    }
    gpu.slots(last_seen_us)
        .map(|(at, device, memory)| match kind {
            1 => sample(at, device),
            2 => sample(at, memory),
            _ => sample(at, 0),
        })
        .collect()
}
