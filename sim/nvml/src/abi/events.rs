//! Calls for events. The only ones are XIDs.
#![allow(unsafe_code, non_snake_case)]

use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::{nvmlEventData_t, nvmlEventSet_t, nvmlReturn_t};

use super::arguments::Out;
use super::call::{answer, calls, current, enter, pointer};
use crate::model::XID_EVENT;
use crate::status::{Answer, Failure};

/// Event types that the recorded GPU supports.
const SUPPORTED: u64 = 65_439;
/// Instance ids of an event that is attributed to no instance.
const NO_INSTANCE: u32 = u32::MAX;
/// A wait looks at the scenario file so often: it is where events come from.
const LOOK_EVERY: Duration = Duration::from_millis(50);

calls! {
    gpu fn nvmlDeviceGetSupportedEventTypes(types: Out<u64>) |_gpu| { types.put(SUPPORTED) }
    node fn nvmlEventSetCreate(set: Out<nvmlEventSet_t>) |node| { set.put(pointer(node.events.create()?)) }
    node fn nvmlEventSetFree(set: nvmlEventSet_t) |node| { node.events.free(set.addr()) }
    device fn nvmlDeviceRegisterEvents(types: u64, set: nvmlEventSet_t) |node, gpu, now| {
        let uuid = node.reading("nvmlDeviceRegisterEvents", gpu, now)?.uuid();
        if types & !SUPPORTED != 0 {
            return Err(Failure::NOT_SUPPORTED);
        }
        node.events.register(set.addr(), &uuid, types)
    }
}

/// The call that waits, and so holds no lock.
pub(super) const WAIT: &[&str] = &["nvmlEventSetWait_v2"];

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: Out<nvmlEventData_t>,
    timeout_ms: u32,
) -> nvmlReturn_t {
    answer(|| wait(set.addr(), &data, Duration::from_millis(timeout_ms.into())))
}

fn wait(set: usize, data: &Out<nvmlEventData_t>, timeout: Duration) -> Answer {
    let mut node = enter(WAIT[0], 0);
    node.check(WAIT[0])?;
    let begun = Instant::now();
    loop {
        if let Some((gpu, event)) = node.next_event(WAIT[0], set)? {
            let (gi, ci) = event.instance.unwrap_or((NO_INSTANCE, NO_INSTANCE));
            return data.put(nvmlEventData_t {
                device: pointer(gpu),
                eventType: XID_EVENT,
                eventData: event.xid,
                gpuInstanceId: gi,
                computeInstanceId: ci,
            });
        }
        let left = timeout.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(Failure::TIMEOUT);
        }
        drop(node);
        std::thread::sleep(left.min(LOOK_EVERY));
        node = current();
    }
}
