//! Calls for processes: who has a context, and who used the device.
#![allow(unsafe_code, non_snake_case)]

use nvml_wrapper_sys::bindings::{
    nvmlProcessDetail_v1_t, nvmlProcessDetailList_t, nvmlProcessInfo_t, nvmlProcessUtilizationInfo_v1_t,
    nvmlProcessUtilizationSample_t, nvmlProcessesUtilizationInfo_t,
};

use super::arguments::{List, Out};
use super::call::calls;
use crate::model::{Reading, Running};
use crate::status::{Answer, Failure};

/// What NVML says for a number it cannot tell.
const NOT_AVAILABLE: u64 = u64::MAX;
/// Instance ids of a process on a GPU without MIG.
const NO_INSTANCE: u32 = u32::MAX;
/// Samples that the process calls announce room for, however few there are.
const SAMPLE_CAPACITY: u32 = 100;
const UTILIZATION_V1: u32 = size_of::<nvmlProcessesUtilizationInfo_t>() as u32 | 1 << 24;
const DETAIL_LIST_V1: u32 = size_of::<nvmlProcessDetailList_t>() as u32 | 1 << 24;

calls! {
    gpu fn nvmlDeviceGetComputeRunningProcesses_v2(count: Out<u32>, infos: List<nvmlProcessInfo_t>) |gpu| {
        put_running(gpu.running(), &count, &infos)
    }
    gpu fn nvmlDeviceGetComputeRunningProcesses_v3(count: Out<u32>, infos: List<nvmlProcessInfo_t>) |gpu| {
        put_running(gpu.running(), &count, &infos)
    }
    gpu fn nvmlDeviceGetGraphicsRunningProcesses_v2(count: Out<u32>, infos: List<nvmlProcessInfo_t>) |_gpu| {
        put_running(Vec::new(), &count, &infos)
    }
    gpu fn nvmlDeviceGetGraphicsRunningProcesses_v3(count: Out<u32>, infos: List<nvmlProcessInfo_t>) |_gpu| {
        put_running(Vec::new(), &count, &infos)
    }
    gpu fn nvmlDeviceGetMPSComputeRunningProcesses_v2(count: Out<u32>, infos: List<nvmlProcessInfo_t>) |gpu| {
        put_running(gpu.mps_clients(), &count, &infos)
    }
    gpu fn nvmlDeviceGetMPSComputeRunningProcesses_v3(count: Out<u32>, infos: List<nvmlProcessInfo_t>) |gpu| {
        put_running(gpu.mps_clients(), &count, &infos)
    }
    gpu fn nvmlDeviceGetRunningProcessDetailList(list: Out<nvmlProcessDetailList_t>) |gpu| {
        put_details(gpu, &list)
    }
    gpu fn nvmlDeviceGetProcessUtilization(
        samples: List<nvmlProcessUtilizationSample_t>,
        count: Out<u32>,
        last_seen_us: u64,
    ) |gpu| {
        if samples.is_null() {
            count.put(SAMPLE_CAPACITY)?;
            return Err(Failure::INSUFFICIENT_SIZE);
        }
        let rows = gpu.process_samples(last_seen_us).into_iter().map(|row| nvmlProcessUtilizationSample_t {
            pid: row.pid,
            timeStamp: row.end_us,
            smUtil: row.sm,
            memUtil: row.memory,
            encUtil: 0,
            decUtil: 0,
        });
        put_found(&samples, &count, rows.collect())
    }
    gpu fn nvmlDeviceGetProcessesUtilizationInfo(info: Out<nvmlProcessesUtilizationInfo_t>) |gpu| {
        put_utilization_info(gpu, &info)
    }
}

fn put_running(running: Vec<Running>, count: &Out<u32>, infos: &List<nvmlProcessInfo_t>) -> Answer {
    let info = |process: Running| nvmlProcessInfo_t {
        pid: process.pid,
        usedGpuMemory: process.memory.unwrap_or(NOT_AVAILABLE),
        gpuInstanceId: process.instance.map_or(NO_INSTANCE, |ids| ids.0),
        computeInstanceId: process.instance.map_or(NO_INSTANCE, |ids| ids.1),
    };
    infos.put_all(count, running.into_iter().map(info).collect())
}

fn put_details(gpu: &Reading<'_>, list: &Out<nvmlProcessDetailList_t>) -> Answer {
    let asked = list.get()?;
    if asked.version != DETAIL_LIST_V1 {
        return Err(Failure::ARGUMENT_VERSION_MISMATCH);
    }
    // Compute, graphics, MPS.
    let running = match asked.mode {
        0 => gpu.running(),
        1 => Vec::new(),
        2 => gpu.mps_clients(),
        _ => return Err(Failure::INVALID_ARGUMENT),
    };
    let places = List::from_structure(asked.procArray);
    list.put(nvmlProcessDetailList_t { numProcArrayEntries: running.len() as u32, ..asked })?;
    if (asked.numProcArrayEntries as usize) < running.len() || (places.is_null() && !running.is_empty()) {
        return Err(Failure::INSUFFICIENT_SIZE);
    }
    running.into_iter().enumerate().try_for_each(|(index, process)| {
        places.place(index).put(nvmlProcessDetail_v1_t {
            pid: process.pid,
            usedGpuMemory: process.memory.unwrap_or(NOT_AVAILABLE),
            gpuInstanceId: process.instance.map_or(NO_INSTANCE, |ids| ids.0),
            computeInstanceId: process.instance.map_or(NO_INSTANCE, |ids| ids.1),
            usedGpuCcProtectedMemory: 0,
        })
    })
}

fn put_utilization_info(gpu: &Reading<'_>, info: &Out<nvmlProcessesUtilizationInfo_t>) -> Answer {
    let asked = info.get()?;
    if asked.version != UTILIZATION_V1 {
        return Err(Failure::ARGUMENT_VERSION_MISMATCH);
    }
    let places = List::from_structure(asked.procUtilArray);
    if places.is_null() {
        info.put(nvmlProcessesUtilizationInfo_t { processSamplesCount: SAMPLE_CAPACITY, ..asked })?;
        return Err(Failure::INSUFFICIENT_SIZE);
    }
    let rows = gpu.process_samples(asked.lastSeenTimeStamp);
    if rows.is_empty() {
        return Err(Failure::NOT_FOUND);
    }
    info.put(nvmlProcessesUtilizationInfo_t { processSamplesCount: rows.len() as u32, ..asked })?;
    if (asked.processSamplesCount as usize) < rows.len() {
        return Err(Failure::INSUFFICIENT_SIZE);
    }
    rows.into_iter().enumerate().try_for_each(|(index, row)| {
        places.place(index).put(nvmlProcessUtilizationInfo_v1_t {
            timeStamp: row.end_us,
            pid: row.pid,
            smUtil: row.sm,
            memUtil: row.memory,
            encUtil: 0,
            decUtil: 0,
            jpgUtil: 0,
            ofaUtil: 0,
        })
    })
}

/// A list that is not to be empty: nobody active is NOT_FOUND.
fn put_found<T>(places: &List<T>, count: &Out<u32>, rows: Vec<T>) -> Answer {
    if rows.is_empty() {
        return Err(Failure::NOT_FOUND);
    }
    places.put_all(count, rows)
}
