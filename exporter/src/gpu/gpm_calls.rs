//! The unsafe calls of GPM: samples, and metrics between two of them.
#![allow(unsafe_code)]

use std::mem;

use nvml_wrapper::error::{nvml_sym, nvml_try};
use nvml_wrapper::gpm::GpmSample;
use nvml_wrapper_sys::bindings::{nvmlGpmMetricsGet_t, nvmlGpmSample_t};

use super::account::timed;
use super::driver::{Device, Driver, NvmlError};

/// Room for one sample, freed when dropped.
#[derive(Debug)]
pub(super) struct Sample<'nvml> {
    /// `None` once it is freed.
    sample: Option<GpmSample<'nvml>>,
}

// === impl Sample ===

impl<'nvml> Sample<'nvml> {
    /// Takes a sample of the GPU, or of its GPU instance of this id.
    pub(super) fn take(device: &Device<'nvml>, instance: Option<u32>) -> Result<Self, NvmlError> {
        let sample = Self::room(device)?;
        sample.fill(device, instance)?;
        Ok(sample)
    }

    /// Takes another sample in place of what is in it.
    pub(super) fn fill(&self, device: &Device<'nvml>, instance: Option<u32>) -> Result<(), NvmlError> {
        let call = if instance.is_some() { "nvmlGpmMigSampleGet" } else { "nvmlGpmSampleGet" };
        device.call(call, |device| {
            let lib = device.nvml().lib();
            match instance {
                None => {
                    let sym = nvml_sym(lib.nvmlGpmSampleGet.as_ref())?;
                    // SAFETY: both handles are of this library and alive.
                    nvml_try(unsafe { sym(device.handle(), self.handle()) })
                }
                Some(id) => {
                    let sym = nvml_sym(lib.nvmlGpmMigSampleGet.as_ref())?;
                    // SAFETY: as above.
                    nvml_try(unsafe { sym(device.handle(), id, self.handle()) })
                }
            }
        })
    }

    fn room(device: &Device<'nvml>) -> Result<Self, NvmlError> {
        device.call("nvmlGpmSampleAlloc", |device| {
            let sym = nvml_sym(device.nvml().lib().nvmlGpmSampleAlloc.as_ref())?;
            let mut handle: nvmlGpmSample_t = std::ptr::null_mut();
            // SAFETY: the call writes one handle.
            nvml_try(unsafe { sym(&raw mut handle) })?;
            // SAFETY: the handle was just allocated by this library, and nothing else frees it.
            Ok(Self { sample: Some(unsafe { GpmSample::from_handle(device.nvml(), handle) }) })
        })
    }

    fn handle(&self) -> nvmlGpmSample_t {
        // SAFETY: the sample stays the owner of its handle.
        self.sample.as_ref().map_or(std::ptr::null_mut(), |sample| unsafe { sample.handle() })
    }
}

impl Drop for Sample<'_> {
    fn drop(&mut self) {
        if let Some(sample) = self.sample.take() {
            // There is nothing to do about an error.
            drop(timed("nvmlGpmSampleFree", || sample.free()));
        }
    }
}

/// GPM metrics by id as means between two samples, in one driver call: `None` is not known. More
/// ids than fit one call (210) are left out.
pub(super) fn metrics(
    driver: &Driver,
    earlier: &Sample<'_>,
    later: &Sample<'_>,
    ids: &[u32],
) -> Result<Vec<Option<f64>>, NvmlError> {
    // SAFETY: plain data for which all zeros is valid; boxed because it has 8 KiB.
    let mut request: Box<nvmlGpmMetricsGet_t> = Box::new(unsafe { mem::zeroed() });
    let asked = ids.len().min(request.metrics.len());
    request.version = 1;
    request.numMetrics = asked as u32;
    (request.sample1, request.sample2) = (earlier.handle(), later.handle());
    for (metric, id) in request.metrics.iter_mut().zip(ids) {
        metric.metricId = *id;
    }
    driver.call("nvmlGpmMetricsGet", |nvml| {
        let sym = nvml_sym(nvml.lib().nvmlGpmMetricsGet.as_ref())?;
        // SAFETY: the struct is of version 1 and has room for as many metrics as it says; both
        // samples outlive the call.
        nvml_try(unsafe { sym(&raw mut *request) })
    })?;
    let read = request.metrics.iter().take(asked);
    Ok(read
        .map(|metric| (metric.nvmlReturn == 0 && metric.value.is_finite()).then_some(metric.value))
        .collect())
}
