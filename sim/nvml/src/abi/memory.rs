//! Calls for device memory and BAR1.
#![allow(unsafe_code, non_snake_case)]

use nvml_wrapper_sys::bindings::{nvmlBAR1Memory_t, nvmlMemory_t, nvmlMemory_v2_t};

use super::arguments::Out;
use super::call::calls;
use crate::model::{BAR1_BYTES, BAR1_IDLE_BYTES, Reading};
use crate::status::Failure;

/// What the version field of the second memory structure must say.
const MEMORY_V2: u32 = size_of::<nvmlMemory_v2_t>() as u32 | 2 << 24;

calls! {
    gpu fn nvmlDeviceGetMemoryInfo(memory: Out<nvmlMemory_t>) |gpu| {
        // In the first structure the driver's own memory counts as used.
        let used = gpu.memory_used() + gpu.memory_reserved();
        let free = gpu.memory_total() - used;
        memory.put(nvmlMemory_t {
            total: part(gpu, "total", gpu.memory_total()),
            free: part(gpu, "free", free),
            used: part(gpu, "used", used),
        })
    }
    gpu fn nvmlDeviceGetMemoryInfo_v2(memory: Out<nvmlMemory_v2_t>) |gpu| {
        let version = memory.get()?.version;
        if version != MEMORY_V2 {
            return Err(Failure::ARGUMENT_VERSION_MISMATCH);
        }
        let (total, used, reserved) = (gpu.memory_total(), gpu.memory_used(), gpu.memory_reserved());
        memory.put(nvmlMemory_v2_t {
            version,
            total: part(gpu, "total", total),
            reserved: part(gpu, "reserved", reserved),
            free: part(gpu, "free", total - used - reserved),
            used: part(gpu, "used", used),
        })
    }
    gpu fn nvmlDeviceGetBAR1MemoryInfo(memory: Out<nvmlBAR1Memory_t>) |gpu| {
        // Used BAR1 follows the memory in use.
        let used = (BAR1_IDLE_BYTES + gpu.memory_used()).min(BAR1_BYTES);
        memory.put(nvmlBAR1Memory_t { bar1Total: BAR1_BYTES, bar1Free: BAR1_BYTES - used, bar1Used: used })
    }
}

/// Bytes of a part, or what the scenario has it say.
fn part(gpu: &Reading<'_>, part: &str, bytes: u64) -> u64 {
    gpu.answer(&format!("nvmlDeviceGetMemoryInfo:{part}")).map_or(bytes, |answer| answer as u64)
}
