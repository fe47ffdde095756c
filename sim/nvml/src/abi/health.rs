//! Calls for ECC, row remapping, retired pages and violations.
#![allow(unsafe_code, non_snake_case)]

use nvml_wrapper_sys::bindings::{nvmlRowRemapperHistogramValues_t, nvmlViolationTime_t};

use super::arguments::{List, Out};
use super::call::calls;
use crate::model::Reading;
use crate::status::{Answer, Failure};

/// Banks with all their spare rows left.
const REMAPPER_BANKS: u32 = 2_560;

calls! {
    gpu fn nvmlDeviceGetEccMode(current: Out<u32>, pending: Out<u32>) |gpu| {
        current.put(gpu.gpu.ecc.into())?;
        pending.put(gpu.gpu.ecc.into())
    }
    gpu fn nvmlDeviceGetDefaultEccMode(mode: Out<u32>) |_gpu| { mode.put(1) }
    gpu fn nvmlDeviceGetTotalEccErrors(error: u32, counter: u32, count: Out<u64>) |gpu| {
        put_no_errors(gpu, error, counter, &count)
    }
    gpu fn nvmlDeviceGetMemoryErrorCounter(error: u32, counter: u32, location: u32, count: Out<u64>) |gpu| {
        // L1 cache, L2 cache, device memory, register file; then texture memory and others.
        match location {
            0..=3 | 7 => put_no_errors(gpu, error, counter, &count),
            4..=6 => Err(Failure::NOT_SUPPORTED),
            _ => Err(Failure::INVALID_ARGUMENT),
        }
    }
    gpu fn nvmlDeviceGetRetiredPages(_cause: u32, _count: Out<u32>, _addresses: List<u64>) |_gpu| {
        Err(Failure::NOT_SUPPORTED)
    }
    gpu fn nvmlDeviceGetRetiredPages_v2(
        _cause: u32,
        _count: Out<u32>,
        _addresses: List<u64>,
        _timestamps: List<u64>,
    ) |_gpu| {
        Err(Failure::NOT_SUPPORTED)
    }
    gpu fn nvmlDeviceGetRetiredPagesPendingStatus(_pending: Out<u32>) |_gpu| { Err(Failure::NOT_SUPPORTED) }
    gpu fn nvmlDeviceGetRemappedRows(
        correctable: Out<u32>,
        uncorrectable: Out<u32>,
        pending: Out<u32>,
        failure: Out<u32>,
    ) |_gpu| {
        [correctable, uncorrectable, pending, failure].iter().try_for_each(|count| count.put(0))
    }
    gpu fn nvmlDeviceGetRowRemapperHistogram(histogram: Out<nvmlRowRemapperHistogramValues_t>) |_gpu| {
        histogram.put(nvmlRowRemapperHistogramValues_t {
            max: REMAPPER_BANKS,
            high: 0,
            partial: 0,
            low: 0,
            none: 0,
        })
    }
    gpu fn nvmlDeviceGetViolationStatus(policy: u32, violation: Out<nvmlViolationTime_t>) |gpu| {
        // Power, thermal, sync boost, board limit, low utilization, reliability, and the two sums.
        let seconds = match policy {
            0 => gpu.power_violation_s(),
            1..=3 | 5 => 0.0,
            4 => gpu.idle_s(),
            10 | 11 => gpu.full_load_s(),
            _ => return Err(Failure::INVALID_ARGUMENT),
        };
        violation.put(nvmlViolationTime_t {
            referenceTime: gpu.now_us as u64,
            violationTime: (seconds * 1e9) as u64,
        })
    }
}

/// Corrected or not, volatile or aggregate: there were none.
fn put_no_errors(gpu: &Reading<'_>, error: u32, counter: u32, count: &Out<u64>) -> Answer {
    if !gpu.gpu.ecc {
        return Err(Failure::NOT_SUPPORTED);
    }
    if error > 1 || counter > 1 {
        return Err(Failure::INVALID_ARGUMENT);
    }
    count.put(0)
}
