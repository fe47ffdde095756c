//! Waits for XIDs: a thread takes critical-error events off an event set and counts them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nvml_wrapper::EventSet;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::error::NvmlError as Cause;
use parking_lot::Mutex;
use podgauge_common::catalogue::xid;

use super::account::timed;
use super::driver::{Driver, Fault, NvmlError};
use super::events::EventLog;
use super::raw;

/// How long one wait lasts: the thread looks that often whether the session is over.
const WAIT_MS: u32 = 1000;
/// Pause after a failed wait, so that a broken driver does not make the thread spin.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a GPU that refused to deliver its events is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(30);

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
    driver: &'nvml Driver,
    /// `None` once it is freed.
    set: Option<EventSet<'nvml>>,
    listened: Vec<Listened>,
    /// Indices of GPUs that refused, and when.
    refused: Vec<(u32, Instant)>,
}

/// Indices of GPUs that were opened while the thread waits: it listens to them as well.
pub(super) type Opened = Mutex<Vec<u32>>;

// === impl Xids ===

impl<'nvml> Xids<'nvml> {
    /// `None` if the driver has no event sets.
    pub(super) fn new(driver: &'nvml Driver) -> Option<Self> {
        match driver.event_set() {
            Ok(set) => Some(Self { driver, set: Some(set), listened: Vec::new(), refused: Vec::new() }),
            Err(error) => {
                tracing::warn!("XIDs cannot be seen: {error}");
                None
            }
        }
    }

    /// Registers for the XIDs of a GPU.
    pub(super) fn listen(&mut self, index: u32, log: &EventLog) {
        match self.registered(index) {
            Ok(gpu) => {
                log.listens(&gpu.uuid);
                self.listened.push(gpu);
            }
            Err(error) => {
                tracing::warn!("XIDs of GPU {index} cannot be seen: {error}");
                if Fault::of(&error) != Fault::Unsupported {
                    self.refused.push((index, Instant::now()));
                }
            }
        }
    }

    /// Waits for events until `over`.
    pub(super) fn watch(mut self, log: &EventLog, opened: &Opened, over: &AtomicBool) {
        let mut failing = false;
        while !over.load(Ordering::Relaxed) {
            for index in std::mem::take(&mut *opened.lock()) {
                self.listen(index, log);
            }
            self.ask_again(log);
            let Some(set) = &self.set else { return };
            match raw::wait_event(set, self.driver, WAIT_MS) {
                Ok(event) => {
                    if std::mem::replace(&mut failing, false) {
                        tracing::info!("XIDs are seen again");
                    }
                    if let Some(event) = event.filter(|event| event.kind & CRITICAL != 0) {
                        self.happened(&event, log);
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!("waiting for XIDs fails: {error}");
                    }
                    if matches!(error.cause, Cause::Uninitialized | Cause::FailedToLoadSymbol(_)) {
                        return;
                    }
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    fn registered(&self, index: u32) -> Result<Listened, NvmlError> {
        let device = self.driver.device_by_index(index)?;
        let uuid = device.uuid()?;
        if let Some(set) = &self.set {
            raw::register_events(&device, CRITICAL, set)?;
        }
        Ok(Listened { handle: raw::handle(&device), index, uuid })
    }

    fn ask_again(&mut self, log: &EventLog) {
        let (due, later) = std::mem::take(&mut self.refused)
            .into_iter()
            .partition(|(_, asked_at): &(u32, Instant)| asked_at.elapsed() >= ASK_AGAIN);
        self.refused = later;
        for (index, _) in due {
            match self.registered(index) {
                Ok(gpu) => {
                    tracing::info!("XIDs of GPU {index} are seen now");
                    log.listens(&gpu.uuid);
                    self.listened.push(gpu);
                }
                Err(_) => self.refused.push((index, Instant::now())),
            }
        }
    }

    fn happened(&self, event: &raw::Event, log: &EventLog) {
        let Some(gpu) = self.listened.iter().find(|gpu| gpu.handle == event.device) else { return };
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
}

impl Drop for Xids<'_> {
    fn drop(&mut self) {
        if let Some(set) = self.set.take() {
            // There is nothing to do about an error.
            drop(timed("nvmlEventSetFree", || set.release_events()));
        }
    }
}
