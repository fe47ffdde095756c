//! Chooses among the answers that several exporters give for one pod or node.

use std::cmp::Ordering;
use std::time::Duration;

use super::recent::NEARLY;
use super::{Omission, Value};
use crate::source::store::ExporterState;

/// The best answer so far, of exporters that are asked in their [`order`].
#[derive(Debug)]
pub(super) struct Choice {
    window: Duration,
    /// One of podgauge's exporters has a value, or a reason that ends the search among others.
    answered_by_ours: bool,
    best: Option<Value>,
    reason: Option<Omission>,
}

/// podgauge's exporters come first, then the freshest.
pub(super) fn order(a: &ExporterState, b: &ExporterState) -> Ordering {
    let key = |exporter: &ExporterState| (exporter.native, exporter.last_answer);
    key(b).cmp(&key(a)).then_with(|| a.name.cmp(&b.name))
}

impl Choice {
    /// `window`: of the metric.
    pub(super) fn new(window: Duration) -> Self {
        Self { window, answered_by_ours: false, best: None, reason: None }
    }

    /// Whether an answer of this exporter counts. NVIDIA's page gives each pod the use that podgauge's
    /// exporter cannot attribute.
    pub(super) fn asks(&self, exporter: &ExporterState) -> bool {
        exporter.native || !self.answered_by_ours
    }

    pub(super) fn has_value(&self) -> bool {
        self.best.is_some()
    }

    /// Adds an exporter's answer. `is_final`: whether that reason of one of podgauge's exporters is not
    /// to be answered from another's page.
    pub(super) fn add(
        &mut self,
        exporter: &ExporterState,
        answer: Result<Value, Omission>,
        is_final: impl FnOnce(&Omission) -> bool,
    ) {
        self.answered_by_ours |= exporter.native && answer.as_ref().err().is_none_or(is_final);
        match answer {
            // Of two exporters on a node one may have just begun.
            Ok(value) if self.best.is_none_or(|best| self.covers_more(&value, &best)) => {
                self.best = Some(value);
            }
            // The exporter that got furthest has the best reason.
            Err(omission) if self.reason.as_ref().is_none_or(|known| omission.rank() > known.rank()) => {
                self.reason = Some(omission);
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// Whether a value is made of clearly more of the window than another exporter's.
    fn covers_more(&self, value: &Value, than: &Value) -> bool {
        let covered = |value: &Value| value.covered.min(self.window.as_secs_f64());
        covered(value) > covered(than) + (self.window / NEARLY).as_secs_f64()
    }

    /// The value, or why there is none. `node`: where no exporter was asked.
    pub(super) fn ended(self, node: &str) -> Result<Value, Omission> {
        let Self { best, reason, .. } = self;
        best.ok_or_else(|| reason.unwrap_or_else(|| Omission::NoExporter { node: node.into() }))
    }
}
