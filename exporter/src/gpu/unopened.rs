//! A GPU that is counted and cannot be opened: it is on the page as one that does not answer, with
//! what is known of it, and is asked again like a lost one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::driver::{Fault, NvmlError};
use super::events::EventCounts;
use super::{DeviceReading, Identity, Plan, Unmeasured};
use crate::attribution::Processes;

/// How often a GPU that does not answer is asked whether it does.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A GPU that cannot be opened.
#[derive(Debug)]
pub(super) struct Unopened {
    /// As far as it could be read.
    pub(super) identity: Arc<Identity>,
    pub(super) error: NvmlError,
    asked_at: Instant,
}

// === impl Unopened ===

impl Unopened {
    pub(super) fn new(identity: Identity, error: NvmlError) -> Self {
        Self { identity: Arc::new(identity), error, asked_at: Instant::now() }
    }

    /// Whether it is time to ask again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.asked_at) >= ASK_AGAIN
    }

    /// Whether the library must be loaded again.
    pub(super) fn needs_reload(&self) -> bool {
        Fault::of(&self.error) == Fault::Reload
    }

    pub(super) fn reading(&self, plan: &Plan) -> DeviceReading {
        DeviceReading {
            identity: Arc::clone(&self.identity),
            lost: Some(format!("it cannot be opened: {}", self.error)),
            values: vec![None; plan.metrics.len()],
            texts: Arc::default(),
            events: EventCounts::default(),
            nvlink_bytes: None,
            gpu_slots: Vec::new(),
            loose_samples: Vec::new(),
            unmeasured: Some(Unmeasured::NotOpened),
            memory_slots: Vec::new(),
            processes: Processes::default(),
            sharing: None,
        }
    }
}
