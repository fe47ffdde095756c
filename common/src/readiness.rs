//! Owns readiness: named conditions that must all hold, each with the reason why it does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Shared list of conditions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    conditions: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

/// One condition of a [`Readiness`].
#[derive(Debug, Clone)]
pub struct Condition {
    name: &'static str,
    readiness: Readiness,
}

// === impl Readiness ===

impl Readiness {
    /// Adds a condition that does not hold yet, for the reason given.
    pub fn condition(&self, name: &'static str, reason: &str) -> Condition {
        self.conditions.lock().insert(name, Some(reason.to_owned()));
        Condition { name, readiness: self.clone() }
    }

    /// `Ok`, or a line per condition that does not hold: `name: reason`.
    pub fn check(&self) -> Result<(), String> {
        let conditions = self.conditions.lock();
        let missing: Vec<String> = conditions
            .iter()
            .filter_map(|(name, reason)| Some(format!("{name}: {}", reason.as_ref()?)))
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(missing.join("\n")) }
    }
}

// === impl Condition ===

impl Condition {
    /// It holds.
    pub fn met(&self) {
        self.readiness.conditions.lock().insert(self.name, None);
    }

    /// Why it does not hold; `None` if it does.
    pub fn reason(&self) -> Option<String> {
        self.readiness.conditions.lock().get(self.name).cloned().flatten()
    }

    /// It does not hold, and why.
    pub fn unmet(&self, reason: impl Into<String>) {
        self.readiness.conditions.lock().insert(self.name, Some(reason.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_condition_is_met() {
        let readiness = Readiness::default();
        let nvml = readiness.condition("nvml", "not loaded yet");
        let kubelet = readiness.condition("kubelet", "not asked yet");
        assert_eq!(readiness.check(), Err("kubelet: not asked yet\nnvml: not loaded yet".to_owned()));
        nvml.met();
        kubelet.met();
        assert_eq!(readiness.check(), Ok(()));
        nvml.unmet("driver not loaded");
        assert_eq!(readiness.check(), Err("nvml: driver not loaded".to_owned()));
    }
}
