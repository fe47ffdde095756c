//! Makes a node's value: the mean over its devices, each measured as a whole, whoever uses it.

use std::collections::HashMap;
use std::time::Instant;

use super::devices::Measured;
use super::labels::DeviceLabels;
use super::{Now, Omission, Rules, Value, silence};
use crate::cluster::Selector;
use crate::metric::{Aggregation, FamilyId, Formula, Metric};
use crate::source::history::{History, Mean};
use crate::source::store::{DeviceState, ExporterState, Holding};

/// Which node is asked for, and what of its devices.
#[derive(Debug, Clone, Copy)]
pub struct NodeQuestion<'a> {
    pub node: &'a str,
    pub metric: &'a Metric,
    /// `metricLabelSelector`: the devices that count.
    pub devices: &'a Selector,
}

/// An exporter that may speak of the node.
#[derive(Debug, Clone, Copy)]
pub struct NodeExporter<'a> {
    pub state: &'a ExporterState,
    /// It is believed for every node: those of its devices count whose `hostname` is the node.
    pub of_any_node: bool,
}

/// The value of a node for a metric. `exporters` are those whose word counts for it.
///
/// # Errors
/// Why the node has no value and is left out of the answer.
pub fn node_value(
    question: &NodeQuestion<'_>,
    exporters: &[NodeExporter<'_>],
    rules: &Rules,
    now: &Now,
) -> Result<Value, Omission> {
    // As for pods: a native exporter's word comes first, then the freshest.
    let mut exporters = exporters.to_vec();
    exporters.sort_by(|a, b| {
        let key = |exporter: &NodeExporter<'_>| (exporter.state.native, exporter.state.last_answer);
        key(b).cmp(&key(a)).then_with(|| a.state.name.cmp(&b.state.name))
    });
    let mut reason: Option<Omission> = None;
    for exporter in &exporters {
        match exporter_value(question, exporter, rules, now) {
            Ok(value) => return Ok(value),
            Err(omission) if reason.as_ref().is_none_or(|known| omission.rank() > known.rank()) => {
                reason = Some(omission);
            }
            Err(_) => {}
        }
    }
    Err(reason.unwrap_or_else(|| Omission::NoExporter { node: question.node.into() }))
}

fn exporter_value(
    question: &NodeQuestion<'_>,
    exporter: &NodeExporter<'_>,
    rules: &Rules,
    now: &Now,
) -> Result<Value, Omission> {
    let NodeExporter { state, of_any_node } = *exporter;
    let here = |device: &DeviceState| {
        now.age(device.seen) <= rules.staleness
            && (!of_any_node || device.label("hostname") == Some(question.node))
    };
    let mut devices: Vec<(&str, &DeviceState)> = state.devices().filter(|(_, device)| here(device)).collect();
    devices.sort_unstable_by_key(|(key, _)| *key);
    // A GPU with instances is its instances.
    let partitioned = |key: &str| {
        devices.iter().any(|(other, _)| other.strip_prefix(key).is_some_and(|rest| rest.starts_with('/')))
    };
    let whole: Vec<(&str, &DeviceState)> =
        devices.iter().filter(|(key, _)| !partitioned(key)).copied().collect();
    if whole.is_empty() {
        return Err(silence(state, rules, now)
            .unwrap_or_else(|| Omission::NoGpuOnNode { exporter: state.name.clone() }));
    }
    let mut selected: Vec<(&str, &DeviceState)> =
        whole.into_iter().filter(|(_, device)| device.matches(question.devices)).collect();
    // What each instance repeats of its GPU counts once.
    if matches!(question.metric.formula, Formula::Sum(_)) {
        selected.dedup_by_key(|(key, _)| key.split('/').next().unwrap_or(key));
    }
    if selected.is_empty() {
        let labels = DeviceLabels::of(question.devices, devices.iter().map(|(_, device)| *device));
        return Err(Omission::NoMatchingDevice(labels));
    }
    let mut holdings: HashMap<&str, Vec<&Holding>> = HashMap::new();
    for (device, holding) in state.holdings() {
        holdings.entry(device).or_default().push(holding);
    }
    let metric = question.metric;
    let values: Vec<Result<(f64, Instant), Omission>> = selected
        .iter()
        .map(|(key, device)| {
            let held = holdings.get(key).map(Vec::as_slice).unwrap_or_default();
            device_value(metric, device, held, state, rules, now)
        })
        .collect();
    let (of, without) = (values.len(), values.iter().filter(|value| value.is_err()).count());
    let values: Result<Vec<(f64, Instant)>, Omission> = values.into_iter().collect();
    let values = values.map_err(|reason| match of {
        1 => reason,
        _ => Omission::Devices { without, of, reason: Box::new(reason) },
    })?;
    let at = values.iter().map(|(_, at)| *at).max().ok_or(Omission::TooFewScrapes)?;
    let each = values.iter().map(|(value, _)| *value);
    let value = match metric.aggregation {
        Some(Aggregation::Max) => each.fold(f64::MIN, f64::max),
        Some(Aggregation::Mean) | None => each.sum::<f64>() / of as f64,
    };
    Ok(Value { value, at })
}

/// One device's value in the metric's unit.
fn device_value(
    metric: &Metric,
    device: &DeviceState,
    held: &[&Holding],
    exporter: &ExporterState,
    rules: &Rules,
    now: &Now,
) -> Result<(f64, Instant), Omission> {
    let mean = device_mean(metric, metric.formula.device_family(), device, held, exporter, rules, now)?;
    // A node is given all of its devices.
    let measured =
        Measured { value: mean.value, part: Some(1.0), memory_total: device.memory_total, at: mean.at };
    let value = measured
        .in_unit(metric.formula)
        .ok_or_else(|| Omission::NoSuchFamily { family: "total memory".into() })?;
    Ok((value, mean.at))
}

/// The mean over the window of one family of a whole device, whoever uses it.
///
/// # Errors
/// Why it is not known.
pub(super) fn whole_device(
    exporter: &ExporterState,
    key: &str,
    family: FamilyId,
    metric: &Metric,
    rules: &Rules,
    now: &Now,
) -> Result<Mean, Omission> {
    let missing = || Omission::NoSuchFamily { family: format!("series for {}", metric.name).into() };
    let device = exporter.device_state(key).ok_or_else(missing)?;
    let held: Vec<&Holding> =
        exporter.holdings().filter(|(device, _)| *device == key).map(|(_, holding)| holding).collect();
    device_mean(metric, family, device, &held, exporter, rules, now)
}

fn device_mean(
    metric: &Metric,
    family: FamilyId,
    device: &DeviceState,
    held: &[&Holding],
    exporter: &ExporterState,
    rules: &Rules,
    now: &Now,
) -> Result<Mean, Omission> {
    let told = histories(device, held, family);
    if told.is_empty() {
        return Err(Omission::NoSuchFamily { family: format!("series for {}", metric.name).into() });
    }
    // Whoever held the device a moment ago speaks of it until somebody else can.
    let newest = told
        .iter()
        .filter_map(|(history, since)| history.mean(metric.window(rules.window), *since))
        .reduce(|best, other| if other.at > best.at { other } else { best });
    let Some(mean) = newest else {
        return Err(silence(exporter, rules, now).unwrap_or(Omission::TooFewScrapes));
    };
    let age = now.age(mean.at);
    if age > rules.staleness {
        return Err(silence(exporter, rules, now).unwrap_or(Omission::DeviceStale { seconds: age.as_secs() }));
    }
    Ok(mean)
}

/// The histories that speak of the whole device, and since when each does.
fn histories<'a>(
    device: &'a DeviceState,
    held: &[&'a Holding],
    family: FamilyId,
) -> Vec<(&'a History, Option<Instant>)> {
    let own = device.history(family).map(|history| (history, None));
    let held = held.iter().filter_map(|holding| {
        let since = holding.only_since()?;
        holding.history(family).map(|history| (history, Some(since)))
    });
    own.into_iter().chain(held).collect()
}
