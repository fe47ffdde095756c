//! Calls for GPU performance monitoring (GPM).
#![allow(unsafe_code, non_snake_case)]

use std::ptr::null_mut;

use nvml_wrapper_sys::bindings::{
    nvmlGpmMetric_t, nvmlGpmMetric_t__bindgen_ty_1, nvmlGpmMetricsGet_t, nvmlGpmSample_t, nvmlGpmSupport_t,
};

use super::arguments::Out;
use super::call::{calls, pointer};
use crate::status::Failure;

/// The version of both structures.
const VERSION: u32 = 1;
/// Metrics at most in one call; bindings newer than ours have longer arrays than ours.
const MAX_METRICS: u32 = 1_024;

/// What stands before the array in the caller's structure. The array's length depends on the
/// caller's headers, so it is no part of this.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct MetricsHead {
    version: u32,
    count: u32,
    earlier: nvmlGpmSample_t,
    later: nvmlGpmSample_t,
}

const _: () = assert!(size_of::<MetricsHead>() == std::mem::offset_of!(nvmlGpmMetricsGet_t, metrics));

calls! {
    gpu fn nvmlGpmQueryDeviceSupport(support: Out<nvmlGpmSupport_t>) |gpu| {
        let asked = support.get()?;
        if asked.version != VERSION {
            return Err(Failure::ARGUMENT_VERSION_MISMATCH);
        }
        support.put(nvmlGpmSupport_t { isSupportedDevice: gpu.gpu.gpm.into(), ..asked })
    }
    gpu fn nvmlGpmQueryIfStreamingEnabled(enabled: Out<u32>) |_gpu| { enabled.put(1) }
    node fn nvmlGpmSampleAlloc(sample: Out<nvmlGpmSample_t>) |node| {
        sample.put(pointer(node.samples.allocate()?))
    }
    node fn nvmlGpmSampleFree(sample: nvmlGpmSample_t) |node| { node.samples.free(sample.addr()) }
    device fn nvmlGpmSampleGet(sample: nvmlGpmSample_t) |node, gpu, now| {
        node.take_sample("nvmlGpmSampleGet", gpu, sample.addr(), now)
    }
    device fn nvmlGpmMigSampleGet(instance: u32, sample: nvmlGpmSample_t) |node, gpu, now| {
        node.take_instance_sample("nvmlGpmMigSampleGet", gpu, instance, sample.addr(), now)
    }
    node fn nvmlGpmMetricsGet(request: Out<MetricsHead>) |node| {
        let head = request.get()?;
        if head.version != VERSION {
            return Err(Failure::ARGUMENT_VERSION_MISMATCH);
        }
        if head.count > MAX_METRICS {
            return Err(Failure::INVALID_ARGUMENT);
        }
        let earlier = node.samples.get(head.earlier.addr())?;
        let later = node.samples.get(head.later.addr())?;
        if !later.same_gpu(&earlier) {
            return Err(Failure::INVALID_ARGUMENT);
        }
        let metrics = request.tail::<nvmlGpmMetric_t>();
        (0..head.count as usize).try_for_each(|index| {
            let place = metrics.place(index);
            let asked = place.get()?;
            let (code, value) = match later.metric_since(&earlier, asked.metricId) {
                Ok(value) => (0, value),
                Err(failure) => (failure.0, 0.0),
            };
            place.put(nvmlGpmMetric_t {
                metricId: asked.metricId,
                nvmlReturn: code,
                value,
                // Names may be absent; nobody here reads them.
                metricInfo: nvmlGpmMetric_t__bindgen_ty_1 {
                    shortName: null_mut(),
                    longName: null_mut(),
                    unit: null_mut(),
                },
            })
        })
    }
}
