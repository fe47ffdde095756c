//! What a pod's number is: pure functions of what is known of the pod, its exporter and the time.
//!
//! ```text
//! PodRecord, ExporterState, Metric, Now ─► pod_value ─► Value or Omission
//! ```

mod devices;
pub mod omission;
pub mod readiness;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

pub use omission::Omission;

use crate::cluster::Selector;
use crate::cluster::pods::{Phase, PodRecord};
use crate::metric::Metric;
use crate::source::store::{ExporterState, PodSeries};

/// The moment of an answer, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub instant: Instant,
    pub wall: Timestamp,
}

/// `--window` and `--staleness`.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub window: Duration,
    pub staleness: Duration,
}

/// A pod's value in the metric's unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Value {
    pub value: f64,
    /// When the newest sample in it was received.
    pub at: Instant,
}

/// Which pod is asked for, and what of its devices.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub namespace: &'a str,
    pub pod: &'a str,
    pub metric: &'a Metric,
    /// `metricLabelSelector`: the devices that count.
    pub devices: &'a Selector,
}

impl Now {
    /// Both clocks, read now.
    pub fn read() -> Self {
        Self { instant: Instant::now(), wall: Timestamp::now() }
    }

    /// The wall clock's time of an instant.
    pub fn wall_time(&self, at: Instant) -> Timestamp {
        let ago = self.instant.saturating_duration_since(at);
        SignedDuration::try_from(ago)
            .ok()
            .and_then(|ago| self.wall.checked_sub(ago).ok())
            .unwrap_or(self.wall)
    }

    /// The instant of a time on the wall clock; `None` if it is before what the clock can say, so
    /// before anything that was received.
    fn instant_of(&self, time: Timestamp) -> Option<Instant> {
        let ago = self.wall.duration_since(time);
        match Duration::try_from(ago) {
            Ok(ago) => self.instant.checked_sub(ago),
            // A clock that runs ahead of ours.
            Err(_) => self.instant.checked_add(ago.unsigned_abs()),
        }
    }

    fn age(&self, at: Instant) -> Duration {
        self.instant.saturating_duration_since(at)
    }
}

/// The value of a pod for a metric. `exporters` are those whose word counts for the pod's node.
///
/// # Errors
/// Why the pod has no value and is left out of the answer.
pub fn pod_value(
    question: &Question<'_>,
    pod: &PodRecord,
    exporters: &[&ExporterState],
    rules: &Rules,
    now: &Now,
) -> Result<Value, Omission> {
    if pod.terminating {
        return Err(Omission::Terminating);
    }
    if matches!(pod.phase, Phase::Succeeded | Phase::Failed) {
        return Err(Omission::Finished(pod.phase));
    }
    let Some(node) = pod.node.as_deref() else { return Err(Omission::NotScheduled) };
    readiness::has_been_ready(pod)?;
    if exporters.is_empty() {
        return Err(Omission::NoExporter { node: node.into() });
    }
    let mut reason = None;
    for exporter in exporters {
        match exporter_value(question, pod, exporter, rules, now) {
            Ok(value) => return Ok(value),
            // The exporter that got furthest with it has the best reason.
            Err(omission)
                if reason.as_ref().is_none_or(|known: &Omission| omission.rank() > known.rank()) =>
            {
                reason = Some(omission);
            }
            Err(_) => {}
        }
    }
    Err(reason.unwrap_or_else(|| Omission::NoExporter { node: node.into() }))
}

fn exporter_value(
    question: &Question<'_>,
    pod: &PodRecord,
    exporter: &ExporterState,
    rules: &Rules,
    now: &Now,
) -> Result<Value, Omission> {
    let Some(series) = exporter.pod(question.namespace, question.pod) else {
        return Err(silence(exporter, rules, now)
            .unwrap_or_else(|| Omission::NoGpu { exporter: exporter.name.clone() }));
    };
    let not_before = match &series.uid {
        Some(uid) if **uid == *pod.uid => None,
        Some(_) => return Err(Omission::OtherUid { exporter: exporter.name.clone() }),
        None => {
            let started = pod.first_container_started().ok_or(Omission::NotStarted)?;
            now.instant_of(started)
        }
    };
    readiness::not_restarted(pod, &gpu_containers(series))?;
    devices::value(question, series, exporter, rules, now, not_before)
}

/// Why the exporter's word is old; `None` if it is not.
fn silence(exporter: &ExporterState, rules: &Rules, now: &Now) -> Option<Omission> {
    let failure = exporter.failure.clone();
    match exporter.last_answer {
        None => Some(Omission::ExporterNeverAnswered { exporter: exporter.name.clone(), failure }),
        Some(at) if now.age(at) > rules.staleness => {
            Some(Omission::ExporterSilent { exporter: exporter.name.clone(), seconds: now.age(at).as_secs() })
        }
        Some(_) => None,
    }
}

/// The containers that hold a GPU by the exporter's word; empty if it does not say which.
fn gpu_containers(series: &PodSeries) -> Vec<&str> {
    let present = || series.holdings.iter().filter(|holding| holding.present);
    if present().any(|holding| holding.container.is_empty()) {
        return Vec::new();
    }
    present().map(|holding| &*holding.container).collect()
}
