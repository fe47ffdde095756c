//! Calls for MIG: the mode, the instances and their handles.
#![allow(unsafe_code, non_snake_case)]

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlDeviceAttributes_t};

use super::arguments::Out;
use super::call::{calls, pointer};
use crate::model::Reading;
use crate::scenario::MAX_INSTANCES;
use crate::status::{Answer, Failure};

/// Multiprocessors of one compute slice of an H100.
const MULTIPROCESSORS: u32 = 16;

calls! {
    gpu fn nvmlDeviceGetMigMode(current: Out<u32>, pending: Out<u32>) |gpu| {
        let mode = gpu.gpu.mig.is_some().into();
        current.put(mode)?;
        pending.put(mode)
    }
    gpu fn nvmlDeviceGetMaxMigDeviceCount(count: Out<u32>) |gpu| {
        count.put(if gpu.gpu.mig.is_some() { MAX_INSTANCES } else { 0 })
    }
    device fn nvmlDeviceGetMigDeviceHandleByIndex(index: u32, instance: Out<nvmlDevice_t>) |node, gpu, now| {
        let handle = node.instance_handle("nvmlDeviceGetMigDeviceHandleByIndex", gpu, index, now)?;
        instance.put(pointer(handle))
    }
    device fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(parent: Out<nvmlDevice_t>) |node, device, now| {
        let handle = node.parent_handle("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", device, now)?;
        parent.put(pointer(handle))
    }
    gpu fn nvmlDeviceIsMigDeviceHandle(is: Out<u32>) |gpu| { is.put(gpu.instance.is_some().into()) }
    gpu fn nvmlDeviceGetGpuInstanceId(id: Out<u32>) |gpu| { id.put(gpu.instance_ids()?.0) }
    gpu fn nvmlDeviceGetComputeInstanceId(id: Out<u32>) |gpu| { id.put(gpu.instance_ids()?.1) }
    gpu fn nvmlDeviceGetAttributes(attributes: Out<nvmlDeviceAttributes_t>) |gpu| {
        put_attributes(gpu, &attributes)
    }
    gpu fn nvmlDeviceGetAttributes_v2(attributes: Out<nvmlDeviceAttributes_t>) |gpu| {
        put_attributes(gpu, &attributes)
    }
}

fn put_attributes(gpu: &Reading<'_>, attributes: &Out<nvmlDeviceAttributes_t>) -> Answer {
    let (slices, compute_slices) = gpu.instance.ok_or(Failure::NOT_SUPPORTED)?.slices();
    attributes.put(nvmlDeviceAttributes_t {
        multiprocessorCount: MULTIPROCESSORS * compute_slices,
        sharedCopyEngineCount: slices,
        sharedDecoderCount: slices,
        sharedEncoderCount: 0,
        sharedJpegCount: slices,
        sharedOfaCount: 0,
        gpuInstanceSliceCount: slices,
        computeInstanceSliceCount: compute_slices,
        memorySizeMB: gpu.memory_total() >> 20,
    })
}
