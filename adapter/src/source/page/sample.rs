//! Joins the samples of one family that have the same device and container.

use std::time::Duration;

use crate::metric::{FamilyId, MEMORY_USED};
use crate::source::history::Reading;
use crate::source::recent::Recent;

/// The samples of one family and holding; mostly one.
#[derive(Debug)]
pub(super) struct Repeated {
    pub(super) family: FamilyId,
    /// Under its name of 4.9.
    pub(super) newer: bool,
    first: f64,
    sum: f64,
    pub(super) count: u64,
    /// They differ in nothing but labels that make copies.
    copies: bool,
    equal: bool,
}

/// The two sums of the last seconds, as they are read.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct RecentSums {
    window: Duration,
    pub(super) active: Option<f64>,
    pub(super) observed: Option<f64>,
}

// === impl Repeated ===

impl Repeated {
    pub(super) fn new(family: FamilyId, newer: bool, value: f64, copy: bool) -> Self {
        Self { family, newer, first: value, sum: value, count: 1, copies: copy, equal: true }
    }

    pub(super) fn add(&mut self, value: f64, copy: bool) {
        self.sum += value;
        self.count += 1;
        self.copies &= copy;
        self.equal &= value.to_bits() == self.first.to_bits();
    }

    /// The value that all of them give together; `None` if they contradict each other.
    pub(super) fn reading(&self, native: bool, counter: bool) -> Option<Reading> {
        let value = match self.count {
            1 => self.first,
            _ if !self.copies => return None,
            // Ours splits a pod's memory over its replicas, others repeat the device's.
            _ if native && self.family == MEMORY_USED => self.sum,
            _ if self.equal => self.first,
            _ => return None,
        };
        Some(if counter { Reading::Rate(value) } else { Reading::Gauge(value) })
    }

    /// Leaves out families under their names of 4.9 that are there under the classic ones as well.
    pub(super) fn by_one_name(samples: &mut Vec<Self>) {
        if samples.iter().any(|samples| samples.newer) {
            let classic: Vec<FamilyId> =
                samples.iter().filter(|samples| !samples.newer).map(|samples| samples.family).collect();
            samples.retain(|samples| !samples.newer || !classic.contains(&samples.family));
        }
    }
}

// === impl RecentSums ===

impl RecentSums {
    /// The sums of that window, if no longer one was read.
    pub(super) fn of(&mut self, window: Duration) -> Option<&mut Self> {
        if window > self.window {
            *self = Self { window, ..Self::default() };
        }
        (window == self.window).then_some(self)
    }

    /// Both together, and how many were dropped because they cannot be true.
    pub(super) fn recent(self) -> (Option<Recent>, u64) {
        let (Some(active), Some(observed)) = (self.active, self.observed) else { return (None, 0) };
        let recent = Recent::new(self.window, active, observed);
        (recent, if recent.is_none() && observed > 0.0 { 2 } else { 0 })
    }
}
