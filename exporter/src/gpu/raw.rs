//! Owns the unsafe calls: what nvml-wrapper leaves out or does with more driver calls than needed.
//!
//! Every function is one driver call through a symbol that the wrapper resolved; a symbol that the
//! driver lacks is an error, never a panic.
#![allow(unsafe_code)]

use std::mem;

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, EventSet, Nvml};
use nvml_wrapper_sys::bindings::{
    nvmlEventData_t, nvmlFieldValue_t, nvmlGridLicensableFeatures_t,
    nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE, nvmlSample_t, nvmlSamplingType_t, nvmlValueType_t,
};

/// Scope of a field value that means all links together.
pub(crate) const ALL_LINKS: u32 = u32::MAX;

/// What an event has for the id of an instance if it is not attributed to one.
const NO_INSTANCE: u32 = u32::MAX;

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
    /// Index of the device.
    pub(crate) device: u32,
    pub(crate) kind: u64,
    /// For a critical error: its XID.
    pub(crate) data: u64,
    /// Id of the MIG instance that the driver attributes it to.
    pub(crate) instance: Option<u32>,
}

/// The samples of a ring newer than `last_seen_us`, oldest first as the driver gives them. One
/// driver call of about 2 ms, where asking for the size first would be two.
///
/// `NotFound` means no newer sample.
pub(crate) fn samples(
    device: &Device<'_>,
    kind: nvmlSamplingType_t,
    last_seen_us: u64,
) -> Result<Vec<RingSample>, NvmlError> {
    let sym = nvml_sym(device.nvml().lib().nvmlDeviceGetSamples.as_ref())?;
    // Rings of 71, 72, 100 and 120 slots have been seen.
    let mut capacity = 128;
    for _ in 0..3 {
        // SAFETY: a sample is plain data for which all zeros is valid.
        let mut buffer: Vec<nvmlSample_t> = vec![unsafe { mem::zeroed() }; capacity];
        let mut value_type: nvmlValueType_t = 0;
        let mut count = capacity as u32;
        // SAFETY: the handle is of this library; the driver writes at most `count` samples, for
        // which the buffer has room.
        let code = unsafe {
            sym(device.handle(), kind, last_seen_us, &raw mut value_type, &raw mut count, buffer.as_mut_ptr())
        };
        if code == nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE {
            capacity = (count as usize).clamp(capacity * 2, 4096);
            continue;
        }
        nvml_try(code)?;
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
    Err(NvmlError::InsufficientSize(None))
}

/// Field values with their scopes: `(field id, scope)`, results in the same order.
pub(crate) fn field_values(
    device: &Device<'_>,
    fields: &[(u32, u32)],
) -> Result<Vec<Result<u64, NvmlError>>, NvmlError> {
    if fields.is_empty() {
        return Ok(Vec::new());
    }
    let sym = nvml_sym(device.nvml().lib().nvmlDeviceGetFieldValues.as_ref())?;
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
    // SAFETY: the handle is of this library, and `values` has as many entries as is said.
    nvml_try(unsafe { sym(device.handle(), values.len() as i32, values.as_mut_ptr()) })?;
    Ok(values
        .iter()
        .map(|value| {
            nvml_try(value.nvmlReturn)?;
            // SAFETY: see above; the type tag is not trusted, some drivers set it wrongly.
            Ok(unsafe { value.value.ullVal })
        })
        .collect())
}

/// Whether any vGPU feature is licensed; `None` if the GPU has none to license.
pub(crate) fn vgpu_licensed(device: &Device<'_>) -> Result<Option<bool>, NvmlError> {
    let sym = nvml_sym(device.nvml().lib().nvmlDeviceGetGridLicensableFeatures_v4.as_ref())?;
    // SAFETY: plain data for which all zeros is valid.
    let mut features: nvmlGridLicensableFeatures_t = unsafe { mem::zeroed() };
    // SAFETY: the handle is of this library; the struct is of the size that this version writes.
    nvml_try(unsafe { sym(device.handle(), &raw mut features) })?;
    if features.isGridLicenseSupported == 0 {
        return Ok(None);
    }
    let count = (features.licensableFeaturesCount as usize).min(features.gridLicensableFeatures.len());
    Ok(Some(features.gridLicensableFeatures[..count].iter().any(|feature| feature.featureState != 0)))
}

/// Waits for the next event. `Ok(None)` if none came in time.
pub(crate) fn wait_event(
    nvml: &Nvml,
    set: &EventSet<'_>,
    timeout_ms: u32,
) -> Result<Option<Event>, NvmlError> {
    let sym = nvml_sym(nvml.lib().nvmlEventSetWait_v2.as_ref())?;
    // SAFETY: plain data for which all zeros is valid.
    let mut data: nvmlEventData_t = unsafe { mem::zeroed() };
    // SAFETY: the set is of this library and is alive; `data` is writable.
    match nvml_try(unsafe { sym(set.handle(), &raw mut data, timeout_ms) }) {
        Ok(()) => {}
        Err(NvmlError::Timeout) => return Ok(None),
        Err(error) => return Err(error),
    }
    // SAFETY: the handle came from this library with the event.
    let device = unsafe { Device::new(data.device, nvml) };
    Ok(Some(Event {
        device: device.index()?,
        kind: data.eventType,
        data: data.eventData,
        instance: Some(data.gpuInstanceId).filter(|id| *id != NO_INSTANCE),
    }))
}

/// Ids of the GPU instance and of the compute instance that a MIG handle stands for.
pub(crate) fn instance_ids(instance: &Device<'_>) -> Result<(u32, u32), NvmlError> {
    let gpu_instance = nvml_sym(instance.nvml().lib().nvmlDeviceGetGpuInstanceId.as_ref())?;
    let compute_instance = nvml_sym(instance.nvml().lib().nvmlDeviceGetComputeInstanceId.as_ref())?;
    let (mut gi, mut ci) = (0, 0);
    // SAFETY: the handle is of this library, and both ids are writable.
    unsafe {
        nvml_try(gpu_instance(instance.handle(), &raw mut gi))?;
        nvml_try(compute_instance(instance.handle(), &raw mut ci))?;
    }
    Ok((gi, ci))
}

/// Asks for events of a device. Unlike the wrapper's call, a device that refuses leaves the set as
/// it was for the others.
pub(crate) fn register_events(device: &Device<'_>, kinds: u64, set: &EventSet<'_>) -> Result<(), NvmlError> {
    let sym = nvml_sym(device.nvml().lib().nvmlDeviceRegisterEvents.as_ref())?;
    // SAFETY: both handles are of this library and alive.
    nvml_try(unsafe { sym(device.handle(), kinds, set.handle()) })
}
