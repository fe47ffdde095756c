//! Owns the unsafe calls that give a number or a small struct, where nvml-wrapper has none, or
//! refuses values that its enums do not know.
//!
//! As in [`raw`](super::raw), a symbol that the driver lacks is an error, never a panic.
#![allow(unsafe_code)]

use std::mem;

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::gpm::GpmSample;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    nvmlEccSramErrorStatus_t, nvmlGpmMetricsGet_t, nvmlMarginTemperature_t, nvmlMemory_t,
    nvmlRowRemapperHistogramValues_t,
};

use super::account::timed;

/// Calls that take a device and write one value, for which all zeros is valid.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident $symbol:ident -> $value:ty)*) => {$(
        $(#[$doc])*
        pub(super) fn $name(device: &Device<'_>) -> Result<$value, NvmlError> {
            let sym = nvml_sym(device.nvml().lib().$symbol.as_ref())?;
            // SAFETY: plain data for which all zeros is valid.
            let mut value: $value = unsafe { mem::zeroed() };
            timed(stringify!($symbol), || {
                // SAFETY: the handle is of this library; the call writes one value of this type.
                nvml_try(unsafe { sym(device.handle(), &raw mut value) })
            })?;
            Ok(value)
        }
    )*};
}

calls! {
    /// NVML's number of the brand.
    brand nvmlDeviceGetBrand -> u32
    event_reasons nvmlDeviceGetCurrentClocksEventReasons -> u64
    throttle_reasons nvmlDeviceGetCurrentClocksThrottleReasons -> u64
    compute_mode nvmlDeviceGetComputeMode -> u32
    /// Percent of the fastest.
    fan_speed nvmlDeviceGetFanSpeed -> u32
    performance_state nvmlDeviceGetPerformanceState -> u32
    virtualization_mode nvmlDeviceGetVirtualizationMode -> u32
    remap_banks nvmlDeviceGetRowRemapperHistogram -> nvmlRowRemapperHistogramValues_t
    /// The driver's reserve counts as used here.
    memory_v1 nvmlDeviceGetMemoryInfo -> nvmlMemory_t
}

/// Calls whose struct says its version first.
macro_rules! versioned_calls {
    ($($name:ident $symbol:ident -> $value:ty)*) => {$(
        pub(super) fn $name(device: &Device<'_>) -> Result<$value, NvmlError> {
            let sym = nvml_sym(device.nvml().lib().$symbol.as_ref())?;
            // SAFETY: plain data for which all zeros is valid.
            let mut value: $value = unsafe { mem::zeroed() };
            value.version = mem::size_of::<$value>() as u32 | 1 << 24;
            timed(stringify!($symbol), || {
                // SAFETY: the handle is of this library; the struct is of the version it says.
                nvml_try(unsafe { sym(device.handle(), &raw mut value) })
            })?;
            Ok(value)
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
        Err(NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound) => throttle_reasons(device),
        read => read,
    }
}

/// 1000 × major + 10 × minor. The newer call needs libcuda, which a container may lack.
pub(super) fn cuda_version(nvml: &Nvml) -> Result<i32, NvmlError> {
    let sym = nvml_sym(nvml.lib().nvmlSystemGetCudaDriverVersion.as_ref())?;
    let mut version = 0;
    // SAFETY: the call writes one integer.
    nvml_try(unsafe { sym(&raw mut version) })?;
    Ok(version)
}

/// Takes a GPM sample into one that was allocated before.
pub(super) fn take_gpm_sample(device: &Device<'_>, sample: &GpmSample<'_>) -> Result<(), NvmlError> {
    let sym = nvml_sym(device.nvml().lib().nvmlGpmSampleGet.as_ref())?;
    timed("nvmlGpmSampleGet", || {
        // SAFETY: both handles are of this library and alive; the sample stays the caller's.
        nvml_try(unsafe { sym(device.handle(), sample.handle()) })
    })
}

/// GPM metrics by id as means between two samples, in one driver call: `None` is not known. More
/// ids than fit one call (210) are left out.
pub(super) fn gpm_metrics(
    nvml: &Nvml,
    earlier: &GpmSample<'_>,
    later: &GpmSample<'_>,
    ids: &[u32],
) -> Result<Vec<Option<f64>>, NvmlError> {
    let sym = nvml_sym(nvml.lib().nvmlGpmMetricsGet.as_ref())?;
    // SAFETY: plain data for which all zeros is valid; boxed because it has 8 KiB.
    let mut request: Box<nvmlGpmMetricsGet_t> = Box::new(unsafe { mem::zeroed() });
    let asked = ids.len().min(request.metrics.len());
    request.version = 1;
    request.numMetrics = asked as u32;
    // SAFETY: both samples outlive the call.
    (request.sample1, request.sample2) = unsafe { (earlier.handle(), later.handle()) };
    for (metric, id) in request.metrics.iter_mut().zip(ids) {
        metric.metricId = *id;
    }
    timed("nvmlGpmMetricsGet", || {
        // SAFETY: the struct is of version 1 and has room for as many metrics as it says.
        nvml_try(unsafe { sym(&raw mut *request) })
    })?;
    let read = request.metrics.iter().take(asked);
    Ok(read
        .map(|metric| (metric.nvmlReturn == 0 && metric.value.is_finite()).then_some(metric.value))
        .collect())
}
