//! Makes a pod's value of its devices' values.

use std::time::{Duration, Instant};

use super::recent::{Of, Windowed, of_this_pod, windowed};
use super::{Known, Mine, Now, Omission, Question, Rules, Settled, Value, silence};
use crate::metric::{Aggregation, DEVICE_USE, FamilyId, Formula, MEMORY_USED, Metric, USE};
use crate::source::history::{History, Mean};
use crate::source::page::Limit;
use crate::source::store::{DeviceState, FIRST_ANSWER_SECONDS};

const MIB: f64 = 1024.0 * 1024.0;

/// The exporter's reason that speaks of memory alone.
const NO_PROCESS_MEMORY: &str = "no_process_memory";

/// What a pod has of one device.
struct Device<'a> {
    key: &'a str,
    /// One per container.
    holdings: Vec<Mine<'a>>,
}

/// What all devices of a pod are measured by.
struct Measure<'a> {
    question: &'a Question<'a>,
    known: &'a Known<'a>,
    settled: Settled,
    rules: &'a Rules,
    now: &'a Now,
}

/// One device's value, and what it is a part of.
pub(super) struct Measured {
    /// Of the family: for use a part of one, else the family's unit.
    pub(super) value: f64,
    /// The part of the device that the pod was given; 1 without an allocation.
    pub(super) part: f64,
    /// MiB.
    pub(super) memory_total: Option<f64>,
    pub(super) at: Instant,
    /// Seconds of the window that the value is made of.
    pub(super) covered: f64,
}

pub(super) fn value(
    question: &Question<'_>,
    known: &Known<'_>,
    settled: Settled,
    rules: &Rules,
    now: &Now,
) -> Result<Value, Omission> {
    let exporter = known.exporter;
    let all = devices(known, rules, now);
    if all.is_empty() {
        return Err(silence(exporter, rules, now)
            .unwrap_or_else(|| Omission::NoGpu { exporter: exporter.name.clone() }));
    }
    let selected: Vec<Device<'_>> = all
        .into_iter()
        .filter(|device| {
            question.devices.is_empty()
                || exporter.device_state(device.key).is_some_and(|state| state.matches(question.devices))
        })
        .collect();
    if selected.is_empty() {
        return Err(Omission::NoMatchingDevice);
    }
    let measure = Measure { question, known, settled, rules, now };
    let measured: Vec<Result<Measured, Omission>> =
        selected.iter().map(|device| measure.device(device)).collect();
    let of = measured.len();
    let without = measured.iter().filter(|device| device.is_err()).count();
    let measured: Result<Vec<Measured>, Omission> = measured.into_iter().collect();
    let measured = measured.map_err(|reason| match of {
        1 => reason,
        _ => Omission::Devices { without, of, reason: Box::new(reason) },
    })?;
    combine(question.metric, &measured)
        .ok_or_else(|| Omission::NoSuchFamily { family: "total memory".into() })
}

/// The pod's devices: those of the newest page; those of a page a short time ago, because an
/// exporter that just began may not know them yet; and those that were allocated to it, however
/// long ago, because a device that got lost is still the pod's.
fn devices<'a>(known: &Known<'a>, rules: &Rules, now: &Now) -> Vec<Device<'a>> {
    let mut devices: Vec<Device<'a>> = Vec::new();
    for mine in &known.holdings {
        let Mine { holding, not_before, .. } = mine;
        if !(holding.present || now.age(holding.seen) <= rules.staleness || holding.outlasts(*not_before)) {
            continue;
        }
        // They come by device.
        match devices.last_mut().filter(|device| device.key == mine.device) {
            Some(device) => device.holdings.push(*mine),
            None => devices.push(Device { key: mine.device, holdings: vec![*mine] }),
        }
    }
    devices
}

impl Measure<'_> {
    fn device(&self, device: &Device<'_>) -> Result<Measured, Omission> {
        let Self { question, known, .. } = self;
        let exporter = known.exporter;
        let state = exporter.device_state(device.key);
        let formula = question.metric.formula;
        let shared = state.map_or(0, |state| state.pods);
        let of_a_part = matches!(formula.family(), USE | MEMORY_USED);
        let of_memory = formula.family() == MEMORY_USED;
        if state.is_some_and(|state| state.incomplete) {
            let limit = exporter.cut.as_ref().map_or(Limit::Series, |cut| cut.limit);
            return Err(Omission::PageLimit { exporter: exporter.name.clone(), limit });
        }
        // NVIDIA's exporter gives every pod on a device the whole device's, and either does of what
        // cannot be divided where a page has a copy of it for each pod.
        if shared > 1 && (!exporter.native && of_a_part || matches!(formula, Formula::Sum(_))) {
            return Err(Omission::Shared { pods: shared });
        }
        // What each instance's line repeats would count once per instance.
        if matches!(formula, Formula::Sum(_)) && state.is_some_and(DeviceState::is_instance) {
            return Err(Omission::OfWholeGpu);
        }
        let means: Result<Vec<Mean>, Omission> = device
            .holdings
            .iter()
            .map(|mine| {
                self.mean(mine, state).map_err(|omission| {
                    let reason = state.and_then(|state| state.unavailable.as_ref());
                    // That memory is not divided says nothing of use.
                    match (omission, reason.filter(|reason| of_memory || ***reason != *NO_PROCESS_MEMORY)) {
                        // A value that stands outlives attribution; after that this is the reason.
                        (
                            Omission::NoSuchFamily { .. }
                            | Omission::DeviceStale { .. }
                            | Omission::Collecting { .. }
                            | Omission::TooFewScrapes,
                            Some(reason),
                        ) => Omission::AttributionUnavailable { reason: reason.clone() },
                        (Omission::NoSuchFamily { .. }, None) if shared > 1 => {
                            Omission::Shared { pods: shared }
                        }
                        (omission, _) => omission,
                    }
                })
            })
            .collect();
        let means = means?;
        let at = means.iter().map(|mean| mean.at).max().ok_or(Omission::TooFewScrapes)?;
        let covered = means.iter().map(|mean| mean.covered).fold(f64::MAX, f64::min);
        let sum: f64 = means.iter().map(|mean| mean.value).sum();
        // Containers' parts add up; what is said of the whole device is said once per container.
        let value = if exporter.native && of_a_part { sum } else { sum / means.len() as f64 };
        let parts: Vec<f64> = device.holdings.iter().filter_map(|mine| mine.holding.allocation).collect();
        let part = if parts.is_empty() { 1.0 } else { parts.iter().sum() };
        let memory_total = state.and_then(|state| state.memory_total);
        Ok(Measured { value, part, memory_total, at, covered })
    }

    fn mean(&self, mine: &Mine<'_>, state: Option<&DeviceState>) -> Result<Mean, Omission> {
        let Self { question, known, settled, rules, now } = self;
        let exporter = known.exporter;
        let family = question.metric.formula.family();
        let window = question.metric.window(rules.window);
        let history = mine.holding.history(family);
        let found = known.windowed(mine, state, family, window);
        if history.is_none() && found.is_none() {
            let family = format!("series for {}", question.metric.name).into();
            return Err(Omission::NoSuchFamily { family });
        }
        let fresh = found.map(|found| found.mean.at).max(history.and_then(History::fresh));
        if let Some(fresh) = fresh
            && now.age(fresh) > rules.staleness
        {
            return Err(silence(exporter, rules, now)
                .unwrap_or(Omission::DeviceStale { seconds: now.age(fresh).as_secs() }));
        }
        let least = first_answer(window);
        if settled.observed < if settled.counted { FIRST_ANSWER_SECONDS } else { least } {
            return Err(Omission::Collecting { observed: settled.observed as u64 });
        }
        match found {
            Some(Windowed { mean, recent }) if recent || settled.read >= least => Ok(mean),
            Some(_) => Err(Omission::Reading { needed: least as u64 }),
            None => Err(silence(exporter, rules, now).unwrap_or(Omission::TooFewScrapes)),
        }
    }
}

/// Seconds of its own readings that the adapter needs for a first answer.
pub(super) fn first_answer(window: Duration) -> f64 {
    FIRST_ANSWER_SECONDS.min(window.as_secs_f64())
}

impl Known<'_> {
    /// The mean of a family over the window.
    pub(super) fn windowed(
        &self,
        mine: &Mine<'_>,
        state: Option<&DeviceState>,
        family: FamilyId,
        window: Duration,
    ) -> Option<Windowed> {
        let Mine { holding, not_before, .. } = *mine;
        let (latest, of) = match family {
            USE => (holding.recent, Of::Pod),
            DEVICE_USE => (state.and_then(|state| state.recent), Of::Device),
            _ => (None, Of::Device),
        };
        let latest = of_this_pod(latest, of, holding, not_before, self.pod_began);
        let history = holding.history(family);
        windowed(latest, history, window, history.and_then(|history| history.mean(window, not_before)))
    }
}

/// A pod's value; `None` where a device's memory is not known.
fn combine(metric: &Metric, devices: &[Measured]) -> Option<Value> {
    let at = devices.iter().map(|device| device.at).max()?;
    let covered = devices.iter().map(|device| device.covered).fold(f64::MAX, f64::min);
    let each: Option<Vec<f64>> = devices.iter().map(|device| device.in_unit(metric.formula)).collect();
    let each = each?;
    let sum = || each.iter().sum::<f64>();
    let value = match (metric.aggregation, metric.formula) {
        (Some(Aggregation::Max), _) => each.iter().copied().fold(f64::MIN, f64::max),
        (None, Formula::MemoryUtilization) => {
            let used: f64 = devices.iter().map(|device| device.value).sum();
            used / devices.iter().filter_map(|device| device.memory_total).sum::<f64>() * 100.0
        }
        (None, Formula::MemoryUsed | Formula::Sum(_)) => sum(),
        (Some(Aggregation::Mean) | None, _) => sum() / each.len() as f64,
    };
    Some(Value { value, at, covered })
}

impl Measured {
    /// In the metric's unit, for this device alone; `None` where its memory is not known.
    pub(super) fn in_unit(&self, formula: Formula) -> Option<f64> {
        Some(match formula {
            Formula::Utilization => self.value / self.part * 100.0,
            Formula::UtilizationShare | Formula::DeviceUtilization => self.value * 100.0,
            Formula::MemoryUsed => self.value * MIB,
            Formula::MemoryUtilization => {
                self.memory_total.filter(|total| *total > 0.0).map(|total| self.value / total * 100.0)?
            }
            Formula::Sum(_) => self.value,
            Formula::Mean { scale, .. } => self.value * scale,
        })
    }
}
