//! Owns waiting for XIDs: a thread takes critical-error events off an event set and logs them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{EventSet, Nvml};
use podgauge_common::catalogue::xid;

use super::events::EventLog;
use super::raw;

/// How long one wait lasts: the thread looks that often whether the session is over.
const WAIT_MS: u32 = 1000;
/// Pause after a failed wait, so that a broken driver does not make the thread spin.
const PAUSE: Duration = Duration::from_secs(1);

const CRITICAL: u64 = EventTypes::CRITICAL_XID_ERROR.bits();

/// A GPU whose events are delivered. Events name it by handle, and a GPU that fell off the bus
/// answers no question about which one it is.
struct Listened {
    handle: usize,
    index: u32,
    uuid: String,
}

/// An event set that the XIDs of these GPUs come to.
pub(super) struct Xids<'nvml> {
    nvml: &'nvml Nvml,
    set: EventSet<'nvml>,
    listened: Vec<Listened>,
}

/// Registers for the XIDs of every GPU. Done before the first reading, so that the first page has
/// its 0. `None` if none can be seen.
pub(super) fn listen<'nvml>(nvml: &'nvml Nvml, gpus: u32, log: &EventLog) -> Option<Xids<'nvml>> {
    let set = match nvml.create_event_set() {
        Ok(set) => set,
        Err(error) => {
            tracing::warn!("XIDs cannot be seen: nvmlEventSetCreate: {error}");
            return None;
        }
    };
    let mut listened = Vec::new();
    for index in 0..gpus {
        let registered = nvml.device_by_index(index).and_then(|device| {
            let uuid = device.uuid()?;
            raw::register_events(&device, CRITICAL, &set)?;
            Ok(Listened { handle: raw::handle(&device), index, uuid })
        });
        match registered {
            Ok(gpu) => {
                log.listens(&gpu.uuid);
                listened.push(gpu);
            }
            Err(error) => {
                tracing::warn!("XIDs of GPU {index} cannot be seen: nvmlDeviceRegisterEvents: {error}");
            }
        }
    }
    (!listened.is_empty()).then_some(Xids { nvml, set, listened })
}

/// Waits for events until `over`.
pub(super) fn watch(xids: &Xids<'_>, log: &EventLog, over: &AtomicBool) {
    let Xids { nvml, set, listened } = xids;
    let mut failing = false;
    while !over.load(Ordering::Relaxed) {
        match raw::wait_event(nvml, set, WAIT_MS) {
            Ok(Some(event)) if event.kind & CRITICAL != 0 => {
                let Some(gpu) = listened.iter().find(|gpu| gpu.handle == event.device) else { continue };
                let instance = event.instance.map(|ids| format!(", MIG instance {ids}")).unwrap_or_default();
                tracing::warn!(
                    "GPU {} ({}{instance}): XID {}: {}",
                    gpu.index,
                    gpu.uuid,
                    event.data,
                    xid::message(event.data)
                );
                log.xid(&gpu.uuid, event.instance.map(|ids| ids.gpu), event.data, Instant::now());
            }
            Ok(_) => failing = false,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!("waiting for XIDs fails: nvmlEventSetWait: {error}");
                }
                if matches!(error, NvmlError::Uninitialized | NvmlError::FailedToLoadSymbol(_)) {
                    return;
                }
                std::thread::sleep(PAUSE);
            }
        }
    }
}
