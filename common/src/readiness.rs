//! Owns readiness: named conditions that must all hold, each with the reason why it does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Shared list of conditions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    conditions: Arc<watch::Sender<Conditions>>,
}

type Conditions = BTreeMap<&'static str, Option<String>>;

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
        let condition = Condition { name, readiness: self.clone() };
        condition.unmet(reason);
        condition
    }

    /// Waits until every condition holds.
    pub async fn ready(&self) {
        // Fails only once nobody can meet a condition, and then nobody waits here.
        let mut conditions = self.conditions.subscribe();
        let _ = conditions.wait_for(|conditions| conditions.values().all(Option::is_none)).await;
    }

    /// `Ok`, or a line per condition that does not hold: `name: reason`.
    pub fn check(&self) -> Result<(), String> {
        let conditions = self.conditions.borrow();
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
        self.set(None);
    }

    /// Why it does not hold; `None` if it does.
    pub fn reason(&self) -> Option<String> {
        self.readiness.conditions.borrow().get(self.name).cloned().flatten()
    }

    /// It does not hold, and why.
    pub fn unmet(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, reason: Option<String>) {
        self.readiness.conditions.send_if_modified(|conditions| {
            let changed = conditions.get(self.name) != Some(&reason);
            conditions.insert(self.name, reason);
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_every_condition_is_met() {
        let readiness = Readiness::default();
        let nvml = readiness.condition("nvml", "not loaded yet");
        let kubelet = readiness.condition("kubelet", "not asked yet");
        assert_eq!(readiness.check(), Err("kubelet: not asked yet\nnvml: not loaded yet".to_owned()));
        nvml.met();
        kubelet.met();
        assert_eq!(readiness.check(), Ok(()));
        readiness.ready().await;
        nvml.unmet("driver not loaded");
        assert_eq!(readiness.check(), Err("nvml: driver not loaded".to_owned()));
    }
}
