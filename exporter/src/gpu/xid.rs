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
pub(crate) struct XidLog(Mutex<HashMap<u32, LastXids>>);

/// XIDs of one GPU, each with its place in the order in which they came.
#[derive(Debug, Default)]
struct LastXids {
    came: u64,
    /// Attributed to no instance.
    gpu: (u64, u64),
    /// By id of the MIG instance.
    instances: HashMap<u32, (u64, u64)>,
}

impl XidLog {
    /// 0 until the first XID; `None` if XIDs of this GPU cannot be seen. For a MIG instance the
    /// last of its own and of the whole GPU's.
    pub(crate) fn last(&self, device: u32, instance: Option<u32>) -> Option<u64> {
        let log = self.0.lock();
        let xids = log.get(&device)?;
        let own = instance.and_then(|id| xids.instances.get(&id)).copied().unwrap_or_default();
        Some(own.max(xids.gpu).1)
    }

    /// The instance is gone: its id may come to mean another.
    pub(crate) fn forget_instance(&self, device: u32, instance: u32) {
        if let Some(xids) = self.0.lock().get_mut(&device) {
            xids.instances.remove(&instance);
        }
    }

    fn listen(&self, device: u32) {
        self.0.lock().entry(device).or_default();
    }

    fn push(&self, device: u32, instance: Option<u32>, xid: u64) {
        let mut log = self.0.lock();
        let xids = log.entry(device).or_default();
        xids.came += 1;
        let last = match instance {
            Some(id) => xids.instances.entry(id).or_default(),
            None => &mut xids.gpu,
        };
        *last = (xids.came, xid);
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
                log.listen(index);
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
                let of = event.instance.map(|id| format!(", MIG instance {id}")).unwrap_or_default();
                tracing::warn!("GPU {}{of}: XID {}", event.device, event.data);
                log.push(event.device, event.instance, event.data);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_its_own_last_xid_or_the_gpus() {
        let log = XidLog::default();
        assert_eq!(log.last(0, None), None);
        log.listen(0);
        log.push(0, Some(7), 13);
        assert_eq!([None, Some(7), Some(8)].map(|of| log.last(0, of)), [Some(0), Some(13), Some(0)]);
        log.push(0, None, 79);
        assert_eq!([None, Some(7), Some(8)].map(|of| log.last(0, of)), [Some(79); 3]);
        log.push(0, Some(8), 31);
        log.forget_instance(0, 8);
        assert_eq!(log.last(0, Some(8)), Some(79));
    }
}
