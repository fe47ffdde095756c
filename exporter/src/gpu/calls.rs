//! The unsafe calls that give a number or a small struct, where nvml-wrapper has none, or refuses
//! values that its enums do not know.
//!
//! As in [`raw`](super::raw), a symbol that the driver lacks is an error, never a panic.
#![allow(unsafe_code)]

use std::mem;

use nvml_wrapper::error::{nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings::{
    nvmlEccSramErrorStatus_t, nvmlMarginTemperature_t, nvmlMemory_t, nvmlRowRemapperHistogramValues_t,
};

use super::driver::{Device, Driver, NvmlError};

/// Calls that take a device and write one value, for which all zeros is valid.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident $symbol:ident -> $value:ty)*) => {$(
        $(#[$doc])*
        pub(super) fn $name(device: &Device<'_>) -> Result<$value, NvmlError> {
            device.call(stringify!($symbol), |device| {
                let sym = nvml_sym(device.nvml().lib().$symbol.as_ref())?;
                // SAFETY: plain data for which all zeros is valid.
                let mut value: $value = unsafe { mem::zeroed() };
                // SAFETY: the handle is of this library; the call writes one value of this type.
                nvml_try(unsafe { sym(device.handle(), &raw mut value) })?;
                Ok(value)
            })
        }
    )*};
}

calls! {
    /// NVML's number of the brand.
    brand nvmlDeviceGetBrand -> u32
    event_reasons nvmlDeviceGetCurrentClocksEventReasons -> u64
    throttle_reasons nvmlDeviceGetCurrentClocksThrottleReasons -> u64
    compute_mode nvmlDeviceGetComputeMode -> u32
    /// Percent of the speed that the fan is made for.
    fan_speed nvmlDeviceGetFanSpeed -> u32
    performance_state nvmlDeviceGetPerformanceState -> u32
    virtualization_mode nvmlDeviceGetVirtualizationMode -> u32
    remap_banks nvmlDeviceGetRowRemapperHistogram -> nvmlRowRemapperHistogramValues_t
    /// The driver's reserve counts as used here.
    memory_v1 nvmlDeviceGetMemoryInfo -> nvmlMemory_t
    gpu_instance nvmlDeviceGetGpuInstanceId -> u32
    compute_instance nvmlDeviceGetComputeInstanceId -> u32
}

/// Calls whose struct says its version first.
macro_rules! versioned_calls {
    ($($name:ident $symbol:ident -> $value:ty)*) => {$(
        pub(super) fn $name(device: &Device<'_>) -> Result<$value, NvmlError> {
            device.call(stringify!($symbol), |device| {
                let sym = nvml_sym(device.nvml().lib().$symbol.as_ref())?;
                // SAFETY: plain data for which all zeros is valid.
                let mut value: $value = unsafe { mem::zeroed() };
                value.version = mem::size_of::<$value>() as u32 | 1 << 24;
                // SAFETY: the handle is of this library; the struct is of the version it says.
                nvml_try(unsafe { sym(device.handle(), &raw mut value) })?;
                Ok(value)
            })
        }
    )*};
}

versioned_calls! {
    margin_temperature nvmlDeviceGetMarginTemperature -> nvmlMarginTemperature_t
    sram_errors nvmlDeviceGetSramEccErrorStatus -> nvmlEccSramErrorStatus_t
}

/// Why the clocks are as they are. Older drivers have the call under its older name.
pub(super) fn clock_event_reasons(device: &Device<'_>) -> Result<u64, NvmlError> {
    match event_reasons(device) {
        Err(error) if error.is_missing() => throttle_reasons(device),
        read => read,
    }
}

/// Ids of the GPU instance and of the compute instance of a MIG handle.
pub(super) fn instance_ids(instance: &Device<'_>) -> Result<(u32, u32), NvmlError> {
    Ok((gpu_instance(instance)?, compute_instance(instance)?))
}

/// 1000 × major + 10 × minor. The newer call needs libcuda, which a container may lack.
pub(super) fn cuda_version(driver: &Driver) -> Result<i32, NvmlError> {
    driver.call("nvmlSystemGetCudaDriverVersion", |nvml| {
        let sym = nvml_sym(nvml.lib().nvmlSystemGetCudaDriverVersion.as_ref())?;
        let mut version = 0;
        // SAFETY: the call writes one integer.
        nvml_try(unsafe { sym(&raw mut version) })?;
        Ok(version)
    })
}
