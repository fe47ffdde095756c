//! The unsafe calls that fill lists, and those of events: what nvml-wrapper leaves out or does with
//! more driver calls than needed.
//!
//! Every function is one driver call through a symbol that the wrapper resolved; a symbol that the
//! driver lacks is an error, never a panic.
#![allow(unsafe_code)]

use std::mem;
use std::time::Duration;

use nvml_wrapper::EventSet;
use nvml_wrapper::error::{NvmlError as Cause, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings::{
    nvmlEventData_t, nvmlFieldValue_t, nvmlGridLicensableFeatures_t, nvmlSample_t, nvmlSamplingType_t,
    nvmlValueType_t,
};

use super::account::{EVENT_WAIT, timed_wait};
use super::driver::{Device, Driver, NvmlError};

/// Scope of a field value that means all links together.
pub(crate) const ALL_LINKS: u32 = u32::MAX;

/// One entry of a sample ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingSample {
    /// End of the slot in the driver's clock, µs.
    pub(crate) timestamp_us: u64,
    pub(crate) value: u32,
}

/// An event of an event set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    /// The device's [`handle`].
    pub(crate) device: usize,
    pub(crate) kind: u64,
    /// For a critical error: its XID.
    pub(crate) data: u64,
    /// Where it happened, if the GPU is divided and the driver says so.
    pub(crate) instance: Option<InstanceIds>,
}

/// A MIG instance of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InstanceIds {
    pub(crate) gpu: u32,
    /// `None`: the whole GPU instance.
    pub(crate) compute: Option<u32>,
}

impl std::fmt::Display for InstanceIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.gpu)?;
        self.compute.map_or(Ok(()), |compute| write!(f, "/{compute}"))
    }
}

/// `NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS`.
const RETIRED_FOR_SINGLE_BIT_ERRORS: u32 = 0;
/// What NVML says in place of an instance id where there is none.
const NO_INSTANCE: u32 = u32::MAX;

/// The samples of a ring newer than `last_seen_us`, oldest first as the driver gives them. One
/// driver call of about 2 ms, where asking for the size first would be two.
///
/// `NotFound` means no newer sample.
pub(crate) fn samples(
    device: &Device<'_>,
    kind: nvmlSamplingType_t,
    last_seen_us: u64,
) -> Result<Vec<RingSample>, NvmlError> {
    // Rings of 71, 72, 100 and 120 slots have been seen.
    let mut capacity = 128;
    for _ in 0..3 {
        // SAFETY: a sample is plain data for which all zeros is valid.
        let mut buffer: Vec<nvmlSample_t> = vec![unsafe { mem::zeroed() }; capacity];
        let mut value_type: nvmlValueType_t = 0;
        let mut count = capacity as u32;
        let read = device.call("nvmlDeviceGetSamples", |device| {
            let sym = nvml_sym(device.nvml().lib().nvmlDeviceGetSamples.as_ref())?;
            let (value_type, count) = (&raw mut value_type, &raw mut count);
            // SAFETY: the handle is of this library; the driver writes at most `count` samples, for
            // which the buffer has room.
            nvml_try(unsafe {
                sym(device.handle(), kind, last_seen_us, value_type, count, buffer.as_mut_ptr())
            })
        });
        match read {
            Err(NvmlError { cause: Cause::InsufficientSize(_), .. }) => {
                capacity = (count as usize).clamp(capacity * 2, 4096);
                continue;
            }
            read => read?,
        }
        // The driver fills in how many it wrote; the rest of the buffer is not samples.
        buffer.truncate(count as usize);
        return Ok(buffer
            .iter()
            .map(|sample| RingSample {
                timestamp_us: sample.timeStamp,
                // SAFETY: utilization, clocks and power are unsigned ints; the rest of the union was zeroed.
                value: unsafe { sample.sampleValue.uiVal },
            })
            .collect());
    }
    Err(NvmlError::new("nvmlDeviceGetSamples", Cause::InsufficientSize(None)))
}

/// Field values with their scopes: `(field id, scope)`, results in the same order.
pub(crate) fn field_values(
    device: &Device<'_>,
    fields: &[(u32, u32)],
) -> Result<Vec<Result<u64, NvmlError>>, NvmlError> {
    if fields.is_empty() {
        return Ok(Vec::new());
    }
    const CALL: &str = "nvmlDeviceGetFieldValues";
    let mut values: Vec<nvmlFieldValue_t> = fields
        .iter()
        .map(|(id, scope)| {
            // SAFETY: a field value is plain data for which all zeros is valid. Zeroing also makes
            // the union's widest member equal whichever narrower one the driver writes.
            let mut value: nvmlFieldValue_t = unsafe { mem::zeroed() };
            value.fieldId = *id;
            value.scopeId = *scope;
            value
        })
        .collect();
    device.call(CALL, |device| {
        let sym = nvml_sym(device.nvml().lib().nvmlDeviceGetFieldValues.as_ref())?;
        // SAFETY: the handle is of this library, and `values` has as many entries as is said.
        nvml_try(unsafe { sym(device.handle(), values.len() as i32, values.as_mut_ptr()) })
    })?;
    Ok(values
        .iter()
        .map(|value| {
            nvml_try(value.nvmlReturn).map_err(|cause| device.judge(CALL, cause))?;
            // SAFETY: see above; the type tag is not trusted, some drivers set it wrongly.
            Ok(unsafe { value.value.ullVal })
        })
        .collect())
}

/// How many pages of device memory were retired because of repeated single-bit errors.
pub(crate) fn retired_pages(device: &Device<'_>) -> Result<u32, NvmlError> {
    device.call("nvmlDeviceGetRetiredPages_v2", |device| {
        let sym = nvml_sym(device.nvml().lib().nvmlDeviceGetRetiredPages_v2.as_ref())?;
        let mut count = 0;
        let (cause, none) = (RETIRED_FOR_SINGLE_BIT_ERRORS, std::ptr::null_mut());
        // SAFETY: the handle is of this library; with room for no page, the count alone is written.
        match nvml_try(unsafe { sym(device.handle(), cause, &raw mut count, none, none) }) {
            Ok(()) | Err(Cause::InsufficientSize(_)) => Ok(count),
            Err(cause) => Err(cause),
        }
    })
}

/// Whether any vGPU feature is licensed; `None` if the GPU has none to license.
pub(crate) fn vgpu_licensed(device: &Device<'_>) -> Result<Option<bool>, NvmlError> {
    // SAFETY: plain data for which all zeros is valid.
    let mut features: nvmlGridLicensableFeatures_t = unsafe { mem::zeroed() };
    device.call("nvmlDeviceGetGridLicensableFeatures_v4", |device| {
        let sym = nvml_sym(device.nvml().lib().nvmlDeviceGetGridLicensableFeatures_v4.as_ref())?;
        // SAFETY: the handle is of this library; the struct is of the size that this version writes.
        nvml_try(unsafe { sym(device.handle(), &raw mut features) })
    })?;
    if features.isGridLicenseSupported == 0 {
        return Ok(None);
    }
    let count = (features.licensableFeaturesCount as usize).min(features.gridLicensableFeatures.len());
    Ok(Some(features.gridLicensableFeatures[..count].iter().any(|feature| feature.featureState != 0)))
}

/// Waits for the next event. `Ok(None)` if none came in time.
pub(crate) fn wait_event(
    set: &EventSet<'_>,
    driver: &Driver,
    timeout_ms: u32,
) -> Result<Option<Event>, NvmlError> {
    // SAFETY: plain data for which all zeros is valid.
    let mut data: nvmlEventData_t = unsafe { mem::zeroed() };
    let waited = timed_wait(EVENT_WAIT, Duration::from_millis(timeout_ms.into()), || {
        let sym = nvml_sym(driver.library().lib().nvmlEventSetWait_v2.as_ref())?;
        // SAFETY: the set is of this library and is alive; `data` is writable.
        nvml_try(unsafe { sym(set.handle(), &raw mut data, timeout_ms) })
    });
    match waited {
        Ok(()) => {}
        Err(Cause::Timeout) => return Ok(None),
        Err(cause) => return Err(NvmlError::new(EVENT_WAIT, cause)),
    }
    let instance = (data.gpuInstanceId != NO_INSTANCE).then_some(InstanceIds {
        gpu: data.gpuInstanceId,
        compute: (data.computeInstanceId != NO_INSTANCE).then_some(data.computeInstanceId),
    });
    Ok(Some(Event { device: data.device.addr(), kind: data.eventType, data: data.eventData, instance }))
}

/// What stands for a device in events.
pub(crate) fn handle(device: &Device<'_>) -> usize {
    // SAFETY: the handle is only compared.
    unsafe { device.inner().handle() }.addr()
}

/// Asks for events of a device. Unlike the wrapper's call, a device that refuses leaves the set as
/// it was for the others.
pub(crate) fn register_events(device: &Device<'_>, kinds: u64, set: &EventSet<'_>) -> Result<(), NvmlError> {
    device.call("nvmlDeviceRegisterEvents", |device| {
        let sym = nvml_sym(device.nvml().lib().nvmlDeviceRegisterEvents.as_ref())?;
        // SAFETY: both handles are of this library and alive.
        nvml_try(unsafe { sym(device.handle(), kinds, set.handle()) })
    })
}
