//! Owns the unsafe calls: what nvml-wrapper leaves out or does with more driver calls than needed.
//!
//! Every function is one driver call through a symbol that the wrapper resolved; a symbol that the
//! driver lacks is an error, never a panic.
#![allow(unsafe_code)]

use std::mem;

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, EventSet, Nvml};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventData_t, nvmlFieldValue_t, nvmlGridLicensableFeatures_t, nvmlProcessInfo_t,
    nvmlProcessUtilizationSample_t, nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE, nvmlReturn_t, nvmlSample_t,
    nvmlSamplingType_t, nvmlValueType_t,
};

use super::account::timed;

/// Scope of a field value that means all links together.
pub(crate) const ALL_LINKS: u32 = u32::MAX;

/// One entry of a sample ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingSample {
    /// End of the slot in the driver's clock, µs.
    pub(crate) timestamp_us: u64,
    pub(crate) value: u32,
}

/// Most processes of one GPU that are looked at: the driver lists 950 at most.
const MAX_PROCESSES: usize = 1024;

/// A list of running processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Running {
    Compute,
    Graphics,
    MpsClients,
}

/// A process that runs on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunningProcess {
    pub(crate) pid: u32,
    /// Bytes of device memory; `None` where the driver cannot tell.
    pub(crate) memory: Option<u64>,
}

/// What one process used in one slot of a GPU's ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessSample {
    pub(crate) pid: u32,
    /// End of the slot in the driver's clock, µs.
    pub(crate) timestamp_us: u64,
    /// Percent of the GPU.
    pub(crate) percent: u32,
}

/// Room for what `nvmlDeviceGetProcessUtilization` answers, used again at every call.
#[derive(Debug)]
pub(crate) struct ProcessSamples {
    places: Vec<nvmlProcessUtilizationSample_t>,
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
    let sym = nvml_sym(device.nvml().lib().nvmlDeviceGetSamples.as_ref())?;
    // Rings of 71, 72, 100 and 120 slots have been seen.
    let mut capacity = 128;
    for _ in 0..3 {
        // SAFETY: a sample is plain data for which all zeros is valid.
        let mut buffer: Vec<nvmlSample_t> = vec![unsafe { mem::zeroed() }; capacity];
        let mut value_type: nvmlValueType_t = 0;
        let mut count = capacity as u32;
        let read = timed("nvmlDeviceGetSamples", || {
            // SAFETY: the handle is of this library; the driver writes at most `count` samples, for
            // which the buffer has room.
            nvml_try(unsafe {
                sym(
                    device.handle(),
                    kind,
                    last_seen_us,
                    &raw mut value_type,
                    &raw mut count,
                    buffer.as_mut_ptr(),
                )
            })
        });
        match read {
            Err(NvmlError::InsufficientSize(_)) => {
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
    Err(NvmlError::InsufficientSize(None))
}

/// The processes of one list. One driver call of a few µs.
pub(crate) fn running(device: &Device<'_>, list: Running) -> Result<Vec<RunningProcess>, NvmlError> {
    type Call = unsafe extern "C" fn(nvmlDevice_t, *mut u32, *mut nvmlProcessInfo_t) -> nvmlReturn_t;
    let lib = device.nvml().lib();
    let sym: &Call = match list {
        Running::Compute => nvml_sym(lib.nvmlDeviceGetComputeRunningProcesses_v3.as_ref())?,
        Running::Graphics => nvml_sym(lib.nvmlDeviceGetGraphicsRunningProcesses_v3.as_ref())?,
        Running::MpsClients => nvml_sym(lib.nvmlDeviceGetMPSComputeRunningProcesses_v3.as_ref())?,
    };
    let mut capacity = 64;
    loop {
        // SAFETY: a process's entry is plain data for which all zeros is valid.
        let mut places: Vec<nvmlProcessInfo_t> = vec![unsafe { mem::zeroed() }; capacity];
        let mut count = capacity as u32;
        // SAFETY: the handle is of this library; the driver writes at most `count` entries, for
        // which there is room.
        let code = unsafe { sym(device.handle(), &raw mut count, places.as_mut_ptr()) };
        if code == nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE && capacity < MAX_PROCESSES {
            capacity = MAX_PROCESSES;
            continue;
        }
        nvml_try(code)?;
        places.truncate(count as usize);
        return Ok(places
            .iter()
            .filter(|place| place.pid != 0)
            .map(|place| RunningProcess {
                pid: place.pid,
                // The driver writes all ones for what it cannot tell.
                memory: (place.usedGpuMemory != u64::MAX).then_some(place.usedGpuMemory),
            })
            .collect());
    }
}

// === impl ProcessSamples ===

impl ProcessSamples {
    pub(crate) fn new() -> Self {
        // SAFETY: a sample is plain data for which all zeros is valid.
        Self { places: vec![unsafe { mem::zeroed() }; MAX_PROCESSES] }
    }

    /// Each process's newest slot after `last_seen_us`. One driver call of about 2 ms. Rows that
    /// cannot be measurements are left out. `NotFound` means nobody used the GPU since.
    pub(crate) fn read(
        &mut self,
        device: &Device<'_>,
        last_seen_us: u64,
    ) -> Result<impl Iterator<Item = ProcessSample>, NvmlError> {
        let sym = nvml_sym(device.nvml().lib().nvmlDeviceGetProcessUtilization.as_ref())?;
        let mut count = self.places.len() as u32;
        // SAFETY: the handle is of this library; the driver writes at most `count` samples, for
        // which there is room.
        nvml_try(unsafe { sym(device.handle(), self.places.as_mut_ptr(), &raw mut count, last_seen_us) })?;
        Ok(self
            .places
            .iter()
            .take(count as usize)
            .filter(move |row| row.timeStamp > last_seen_us && row.smUtil <= 100 && row.pid != 0)
            .map(|row| ProcessSample { pid: row.pid, timestamp_us: row.timeStamp, percent: row.smUtil }))
    }
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
    timed("nvmlDeviceGetFieldValues", || {
        // SAFETY: the handle is of this library, and `values` has as many entries as is said.
        nvml_try(unsafe { sym(device.handle(), values.len() as i32, values.as_mut_ptr()) })
    })?;
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
    let instance = (data.gpuInstanceId != NO_INSTANCE).then_some(InstanceIds {
        gpu: data.gpuInstanceId,
        compute: (data.computeInstanceId != NO_INSTANCE).then_some(data.computeInstanceId),
    });
    Ok(Some(Event { device: data.device.addr(), kind: data.eventType, data: data.eventData, instance }))
}

/// What stands for a device in events.
pub(crate) fn handle(device: &Device<'_>) -> usize {
    // SAFETY: the handle is only compared.
    unsafe { device.handle() }.addr()
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
