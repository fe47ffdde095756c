//! Calls for modes and features that are on, off or absent.
#![allow(unsafe_code, non_snake_case)]

use nvml_wrapper_sys::bindings::nvmlGridLicensableFeatures_t;

use super::arguments::{List, Out};
use super::call::calls;
use crate::status::Failure;

/// NVML_GPU_VIRTUALIZATION_MODE_PASSTHROUGH, as the recorded machine answered.
const VIRTUALIZATION: u32 = 1;
/// Entries of the accounting buffer.
const ACCOUNTING_BUFFER: u32 = 4_000;

calls! {
    gpu fn nvmlDeviceGetComputeMode(mode: Out<u32>) |_gpu| { mode.put(0) }
    gpu fn nvmlDeviceGetPersistenceMode(mode: Out<u32>) |_gpu| { mode.put(1) }
    gpu fn nvmlDeviceGetDisplayActive(active: Out<u32>) |_gpu| { active.put(0) }
    gpu fn nvmlDeviceGetDisplayMode(mode: Out<u32>) |_gpu| { mode.put(0) }
    gpu fn nvmlDeviceGetVirtualizationMode(mode: Out<u32>) |_gpu| { mode.put(VIRTUALIZATION) }
    gpu fn nvmlDeviceGetGpuOperationMode(_current: Out<u32>, _pending: Out<u32>) |_gpu| {
        Err(Failure::NOT_SUPPORTED)
    }
    gpu fn nvmlDeviceGetDriverModel(_current: Out<u32>, _pending: Out<u32>) |_gpu| {
        // Windows has models of drivers.
        Err(Failure::NOT_SUPPORTED)
    }
    gpu fn nvmlDeviceGetDriverModel_v2(_current: Out<u32>, _pending: Out<u32>) |_gpu| {
        Err(Failure::NOT_SUPPORTED)
    }
    gpu fn nvmlDeviceGetGridLicensableFeatures_v4(_features: Out<nvmlGridLicensableFeatures_t>) |_gpu| {
        Err(Failure::NOT_SUPPORTED)
    }

    gpu fn nvmlDeviceGetAccountingMode(mode: Out<u32>) |_gpu| { mode.put(0) }
    gpu fn nvmlDeviceGetAccountingBufferSize(entries: Out<u32>) |_gpu| { entries.put(ACCOUNTING_BUFFER) }
    gpu fn nvmlDeviceGetAccountingPids(count: Out<u32>, pids: List<u32>) |_gpu| {
        pids.put_all(&count, Vec::new())
    }
}
