//! Makes a pod's value of its devices' values.

use std::time::Instant;

use super::{Known, Mine, Now, Omission, Question, Rules, Value, silence};
use crate::metric::{Aggregation, Formula, MEMORY_USED, Metric, USE};
use crate::source::history::Mean;
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
    /// Seconds for which the pod was observed.
    observed: f64,
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
}

pub(super) fn value(
    question: &Question<'_>,
    known: &Known<'_>,
    observed: f64,
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
    let measure = Measure { question, known, observed, rules, now };
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
        // NVIDIA's exporter gives every pod on a device the whole device's.
        if !exporter.native && shared > 1 && (of_a_part || matches!(formula, Formula::Sum(_))) {
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
                self.mean(mine).map_err(|omission| {
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
        let sum: f64 = means.iter().map(|mean| mean.value).sum();
        // Containers' parts add up; what is said of the whole device is said once per container.
        let value = if exporter.native && of_a_part { sum } else { sum / means.len() as f64 };
        let parts: Vec<f64> = device.holdings.iter().filter_map(|mine| mine.holding.allocation).collect();
        let part = if parts.is_empty() { 1.0 } else { parts.iter().sum() };
        Ok(Measured { value, part, memory_total: state.and_then(|state| state.memory_total), at })
    }

    fn mean(&self, mine: &Mine<'_>) -> Result<Mean, Omission> {
        let Self { question, known, observed, rules, now } = self;
        let exporter = known.exporter;
        let missing =
            || Omission::NoSuchFamily { family: format!("series for {}", question.metric.name).into() };
        let history = mine.holding.history(question.metric.formula.family()).ok_or_else(missing)?;
        if let Some(fresh) = history.fresh()
            && now.age(fresh) > rules.staleness
        {
            return Err(silence(exporter, rules, now)
                .unwrap_or(Omission::DeviceStale { seconds: now.age(fresh).as_secs() }));
        }
        if *observed < FIRST_ANSWER_SECONDS {
            return Err(Omission::Collecting { observed: *observed as u64 });
        }
        match history.mean(question.metric.window(rules.window), mine.not_before) {
            Some(mean) => Ok(mean),
            None => Err(silence(exporter, rules, now).unwrap_or(Omission::TooFewScrapes)),
        }
    }
}

/// A pod's value; `None` where a device's memory is not known.
fn combine(metric: &Metric, devices: &[Measured]) -> Option<Value> {
    let at = devices.iter().map(|device| device.at).max()?;
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
    Some(Value { value, at })
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
