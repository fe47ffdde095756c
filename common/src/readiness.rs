//! Owns readiness: named conditions that must all hold, each with the reason why it does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Shared list of conditions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    conditions: Arc<watch::Sender<Conditions>>,
}

type Conditions = BTreeMap<&'static str, State>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// It holds. The note says what a reader should know all the same; it can be empty.
    Met(String),
    /// It does not hold, and why.
    Unmet(String),
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
        let condition = Condition { name, readiness: self.clone() };
        condition.unmet(reason);
        condition
    }

    /// Waits until every condition holds.
    pub async fn ready(&self) {
        // Fails only once nobody can meet a condition, and then nobody waits here.
        let mut conditions = self.conditions.subscribe();
        let met = |state: &State| matches!(state, State::Met(_));
        let _ = conditions.wait_for(|conditions| conditions.values().all(met)).await;
    }

    /// `Ok`, or a line per condition that does not hold: `name: reason`.
    pub fn check(&self) -> Result<(), String> {
        let missing = self.lines(|state| match state {
            State::Unmet(reason) => Some(reason),
            State::Met(_) => None,
        });
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    }

    /// A line per note on a condition that holds: `name: note`.
    pub fn notes(&self) -> String {
        self.lines(|state| match state {
            State::Met(note) if !note.is_empty() => Some(note),
            State::Met(_) | State::Unmet(_) => None,
        })
    }

    fn lines(&self, of: impl Fn(&State) -> Option<&String>) -> String {
        let conditions = self.conditions.borrow();
        let lines = conditions.iter().filter_map(|(name, state)| Some(format!("{name}: {}", of(state)?)));
        lines.collect::<Vec<String>>().join("\n")
    }
}

// === impl Condition ===

impl Condition {
    /// It holds.
    pub fn met(&self) {
        self.met_with(String::new());
    }

    /// It holds, with a note on what is not as it should be.
    pub fn met_with(&self, note: impl Into<String>) {
        self.set(State::Met(note.into()));
    }

    /// Why it does not hold; `None` if it does.
    pub fn reason(&self) -> Option<String> {
        match self.readiness.conditions.borrow().get(self.name) {
            Some(State::Unmet(reason)) => Some(reason.clone()),
            Some(State::Met(_)) | None => None,
        }
    }

    /// It does not hold, and why.
    pub fn unmet(&self, reason: impl Into<String>) {
        self.set(State::Unmet(reason.into()));
    }

    fn set(&self, state: State) {
        self.readiness.conditions.send_if_modified(|conditions| {
            let changed = conditions.get(self.name) != Some(&state);
            conditions.insert(self.name, state);
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_condition_must_hold() {
        let readiness = Readiness::default();
        assert_eq!(readiness.check(), Ok(()));
        let nvml = readiness.condition("nvml", "not loaded yet");
        let kubelet = readiness.condition("kubelet", "not asked yet");
        assert_eq!(readiness.check(), Err("kubelet: not asked yet\nnvml: not loaded yet".to_owned()));
        nvml.met();
        kubelet.met();
        assert_eq!((readiness.check(), readiness.notes()), (Ok(()), String::new()));
        nvml.met_with("GPU 1 does not answer");
        assert_eq!(readiness.check(), Ok(()));
        assert_eq!(readiness.notes(), "nvml: GPU 1 does not answer");
        readiness.ready().await;
        nvml.unmet("driver not loaded");
        assert_eq!(readiness.check(), Err("nvml: driver not loaded".to_owned()));
        assert_eq!(readiness.notes(), "");
    }
}
