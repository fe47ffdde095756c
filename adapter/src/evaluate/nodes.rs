//! Makes a node's value: the mean over its devices, each measured as a whole, whoever uses it.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::choice::{Choice, order};
use super::devices::{Measured, first_answer};
use super::labels::DeviceLabels;
use super::recent::{Windowed, windowed};
use super::{Now, Omission, Rules, Value, silence, within};
use crate::cluster::Selector;
use crate::metric::{Aggregation, DEVICE_USE, FamilyId, Formula, Metric};
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
    let mut exporters = exporters.to_vec();
    exporters.sort_by(|a, b| order(a.state, b.state));
    let mut choice = Choice::new(question.metric.window(rules.window));
    for exporter in &exporters {
        if !choice.asks(exporter.state) {
            break;
        }
        choice.add(exporter.state, exporter_value(question, exporter, rules, now), Omission::is_of_devices);
    }
    choice.ended(question.node)
}

fn exporter_value(
    question: &NodeQuestion<'_>,
    exporter: &NodeExporter<'_>,
    rules: &Rules,
    now: &Now,
) -> Result<Value, Omission> {
    let NodeExporter { state, of_any_node } = *exporter;
    within(state, state.limit_on_node())?;
    let here = |device: &DeviceState| {
        now.age(device.seen) <= rules.staleness
            && (!of_any_node || device.label("hostname") == Some(question.node))
    };
    let mut devices: Vec<(&str, &DeviceState)> = state.devices().filter(|(_, device)| here(device)).collect();
    devices.sort_unstable_by_key(|(key, _)| *key);
    // A GPU with instances is its instances.
    let partitioned: HashSet<&str> =
        devices.iter().filter_map(|(key, _)| key.rsplit_once('/')).map(|(gpu, _)| gpu).collect();
    let whole: Vec<(&str, &DeviceState)> =
        devices.iter().filter(|(key, _)| !partitioned.contains(key)).copied().collect();
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
    let values: Vec<Result<Value, Omission>> = selected
        .iter()
        .map(|(key, device)| {
            let held = holdings.get(key).map(Vec::as_slice).unwrap_or_default();
            device_value(metric, device, held, state, rules, now)
        })
        .collect();
    let (of, without) = (values.len(), values.iter().filter(|value| value.is_err()).count());
    let values: Result<Vec<Value>, Omission> = values.into_iter().collect();
    let values = values.map_err(|reason| match of {
        1 => reason,
        _ => Omission::Devices { without, of, reason: Box::new(reason) },
    })?;
    let at = values.iter().map(|value| value.at).max().ok_or(Omission::TooFewScrapes)?;
    let covered = values.iter().map(|value| value.covered).fold(f64::MAX, f64::min);
    let each = values.iter().map(|value| value.value);
    let value = match metric.aggregation {
        Some(Aggregation::Max) => each.fold(f64::MIN, f64::max),
        Some(Aggregation::Mean) | None => each.sum::<f64>() / of as f64,
    };
    Ok(Value { value, at, covered })
}

/// One device's value in the metric's unit.
fn device_value(
    metric: &Metric,
    device: &DeviceState,
    held: &[&Holding],
    exporter: &ExporterState,
    rules: &Rules,
    now: &Now,
) -> Result<Value, Omission> {
    let mean = device_mean(metric, metric.formula.device_family(), device, held, exporter, rules, now)?;
    // A node is given all of its devices.
    let value = Measured::whole(mean, device.memory_total)
        .in_unit(metric.formula)
        .ok_or_else(|| Omission::NoSuchFamily { family: "total memory".into() })?;
    Ok(Value { value, at: mean.at, covered: mean.covered })
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
    within(exporter, exporter.limit_on_device(device))?;
    let window = metric.window(rules.window);
    let known = histories(device, held, family);
    let latest = device.recent.filter(|_| family == DEVICE_USE);
    if known.is_empty() && latest.is_none() {
        return Err(Omission::NoSuchFamily { family: format!("series for {}", metric.name).into() });
    }
    // The holding that had the device a moment ago has its readings until another one has.
    let newest = known
        .iter()
        .filter_map(|(history, since)| Some((*history, history.mean(window, *since)?)))
        .reduce(|best, other| if other.1.at > best.1.at { other } else { best });
    let (history, own) = newest.unzip();
    let Some(found) = windowed(latest, history, window, || own) else {
        return Err(silence(exporter, rules, now).unwrap_or(Omission::TooFewScrapes));
    };
    let Windowed { mean, recent } = found;
    let age = now.age(mean.at);
    if age > rules.staleness {
        return Err(silence(exporter, rules, now).unwrap_or(Omission::DeviceStale { seconds: age.as_secs() }));
    }
    let least = first_answer(window);
    let read = known.iter().map(|(history, _)| history.covered()).fold(0.0, f64::max);
    if read.max(if recent { mean.covered } else { 0.0 }) < least {
        return Err(Omission::Reading { needed: least as u64 });
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
