//! The unsafe calls about processes: the lists of those that run, and what each used.
#![allow(unsafe_code)]

use std::mem;

use nvml_wrapper::error::{NvmlError as Cause, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlProcessInfo_t, nvmlProcessUtilizationSample_t, nvmlReturn_t,
};
use podgauge_common::measurement::measured_u64;

use super::driver::{Device, NvmlError};

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

/// One process' use in one slot of a GPU's ring.
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

/// The processes of one list. One driver call of a few µs. Drivers from 450 to 509 have the call in
/// its second version alone; entries are alike in both.
pub(crate) fn running(device: &Device<'_>, list: Running) -> Result<Vec<RunningProcess>, NvmlError> {
    match running_by(device, list, Version::Third) {
        Err(error) if error.is_missing() => running_by(device, list, Version::Second),
        read => read,
    }
}

/// Versions of the calls for lists of processes.
#[derive(Clone, Copy)]
enum Version {
    Second,
    Third,
}

fn running_by(
    device: &Device<'_>,
    list: Running,
    version: Version,
) -> Result<Vec<RunningProcess>, NvmlError> {
    type Call = unsafe extern "C" fn(nvmlDevice_t, *mut u32, *mut nvmlProcessInfo_t) -> nvmlReturn_t;
    let mut capacity = 64;
    loop {
        // SAFETY: a process's entry is plain data for which all zeros is valid.
        let mut places: Vec<nvmlProcessInfo_t> = vec![unsafe { mem::zeroed() }; capacity];
        let mut count = capacity as u32;
        let read = device.call(name(list, version), |device| {
            let lib = device.nvml().lib();
            let sym: &Call = match (list, version) {
                (Running::Compute, Version::Third) => {
                    nvml_sym(lib.nvmlDeviceGetComputeRunningProcesses_v3.as_ref())?
                }
                (Running::Compute, Version::Second) => {
                    nvml_sym(lib.nvmlDeviceGetComputeRunningProcesses_v2.as_ref())?
                }
                (Running::Graphics, Version::Third) => {
                    nvml_sym(lib.nvmlDeviceGetGraphicsRunningProcesses_v3.as_ref())?
                }
                (Running::Graphics, Version::Second) => {
                    nvml_sym(lib.nvmlDeviceGetGraphicsRunningProcesses_v2.as_ref())?
                }
                (Running::MpsClients, Version::Third) => {
                    nvml_sym(lib.nvmlDeviceGetMPSComputeRunningProcesses_v3.as_ref())?
                }
                (Running::MpsClients, Version::Second) => {
                    nvml_sym(lib.nvmlDeviceGetMPSComputeRunningProcesses_v2.as_ref())?
                }
            };
            // SAFETY: the handle is of this library; the driver writes at most `count` entries, for
            // which there is room.
            nvml_try(unsafe { sym(device.handle(), &raw mut count, places.as_mut_ptr()) })
        });
        match read {
            Err(NvmlError { cause: Cause::InsufficientSize(_), .. }) if capacity < MAX_PROCESSES => {
                capacity = MAX_PROCESSES;
                continue;
            }
            read => read?,
        }
        places.truncate(count as usize);
        return Ok(places
            .iter()
            .filter(|place| place.pid != 0)
            .map(|place| RunningProcess { pid: place.pid, memory: measured_u64(place.usedGpuMemory) })
            .collect());
    }
}

const fn name(list: Running, version: Version) -> &'static str {
    match (list, version) {
        (Running::Compute, Version::Third) => "nvmlDeviceGetComputeRunningProcesses_v3",
        (Running::Compute, Version::Second) => "nvmlDeviceGetComputeRunningProcesses_v2",
        (Running::Graphics, Version::Third) => "nvmlDeviceGetGraphicsRunningProcesses_v3",
        (Running::Graphics, Version::Second) => "nvmlDeviceGetGraphicsRunningProcesses_v2",
        (Running::MpsClients, Version::Third) => "nvmlDeviceGetMPSComputeRunningProcesses_v3",
        (Running::MpsClients, Version::Second) => "nvmlDeviceGetMPSComputeRunningProcesses_v2",
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
        let mut count = self.places.len() as u32;
        device.call("nvmlDeviceGetProcessUtilization", |device| {
            let sym = nvml_sym(device.nvml().lib().nvmlDeviceGetProcessUtilization.as_ref())?;
            let places = self.places.as_mut_ptr();
            // SAFETY: the handle is of this library; the driver writes at most `count` samples, for
            // which there is room.
            nvml_try(unsafe { sym(device.handle(), places, &raw mut count, last_seen_us) })
        })?;
        Ok(self
            .places
            .iter()
            .take(count as usize)
            .filter(move |row| row.timeStamp > last_seen_us && row.smUtil <= 100 && row.pid != 0)
            .map(|row| ProcessSample { pid: row.pid, timestamp_us: row.timeStamp, percent: row.smUtil }))
    }
}
