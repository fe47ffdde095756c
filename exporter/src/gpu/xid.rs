//! Owns XIDs: a thread waits for critical-error events and keeps the last XID of every GPU.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::error::NvmlError;
use parking_lot::Mutex;

use super::raw;

/// How long one wait lasts: the thread looks that often whether the session is over.
const WAIT_MS: u32 = 1000;
/// Pause after a failed wait, so that a broken driver does not make the thread spin.
const PAUSE: Duration = Duration::from_secs(1);

/// The last XID of each GPU, by index. A GPU whose driver delivers no events has no entry.
#[derive(Debug, Default)]
pub(crate) struct XidLog(Mutex<HashMap<u32, u64>>);

impl XidLog {
    /// 0 until the first XID; `None` if XIDs of this GPU cannot be seen.
    pub(crate) fn last(&self, device: u32) -> Option<u64> {
        self.0.lock().get(&device).copied()
    }
}

/// Waits for events until `over`.
pub(crate) fn watch(nvml: &Nvml, gpus: u32, log: &XidLog, over: &AtomicBool) {
    let set = match nvml.create_event_set() {
        Ok(set) => set,
        Err(error) => {
            tracing::warn!("XIDs cannot be seen: nvmlEventSetCreate: {error}");
            return;
        }
    };
    let critical = EventTypes::CRITICAL_XID_ERROR.bits();
    let mut listening = false;
    for index in 0..gpus {
        let registered =
            nvml.device_by_index(index).and_then(|device| raw::register_events(&device, critical, &set));
        match registered {
            Ok(()) => {
                listening = true;
                log.0.lock().entry(index).or_insert(0);
            }
            Err(error) => {
                tracing::warn!("XIDs of GPU {index} cannot be seen: nvmlDeviceRegisterEvents: {error}");
            }
        }
    }
    let mut failing = false;
    while listening && !over.load(Ordering::Relaxed) {
        match raw::wait_event(nvml, &set, WAIT_MS) {
            Ok(Some(event)) if event.kind & critical != 0 => {
                tracing::warn!("GPU {}: XID {}", event.device, event.data);
                log.0.lock().insert(event.device, event.data);
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
