//! Owns what the scenario says a pod's number should be.

use std::collections::BTreeMap;
use std::sync::Arc;

use podgauge_sim_nvml::load::{Load, mean_of_sum};
use podgauge_sim_nvml::scenario::{Pod, Scenario};

/// The scenarios that held, and since when: a changed file does not change what was before.
#[derive(Debug, Clone)]
pub(super) struct Played {
    /// Seconds since the Unix epoch, rising; the first holds from ever.
    versions: Vec<(f64, Arc<Scenario>)>,
}

/// What a pod does with its devices, over a span of time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Truth {
    /// The pod's devices: index, and how many replicas it holds of how many if it is shared.
    pub(super) devices: BTreeMap<usize, Option<(u32, u32)>>,
    /// Mean load of its devices, whoever causes it, in percent.
    pub(super) device_load: Option<f64>,
    /// What the adapter should answer if it can: its use in percent of what it was given.
    pub(super) utilization: Option<f64>,
    /// An MPS server runs on a device that it shares: the driver does not tell whose the use is.
    pub(super) is_hidden: bool,
}

// === impl Played ===

impl Played {
    pub(super) fn new(scenario: Arc<Scenario>) -> Self {
        Self { versions: vec![(f64::NEG_INFINITY, scenario)] }
    }

    /// Another one holds from now on. Those that ended more than `keep_s` ago are forgotten.
    pub(super) fn change(&mut self, now_s: f64, scenario: Arc<Scenario>, keep_s: f64) {
        self.versions.push((now_s, scenario));
        let ended = self.versions.iter().skip(1).take_while(|(since, _)| *since < now_s - keep_s).count();
        self.versions.drain(..ended);
    }

    /// The one that holds now.
    pub(super) fn now(&self) -> Arc<Scenario> {
        Arc::clone(&self.versions[self.versions.len() - 1].1)
    }

    /// What was played in a span: from, to, which.
    fn between(&self, from_s: f64, to_s: f64) -> Vec<(f64, f64, &Scenario)> {
        let ends = self.versions.iter().skip(1).map(|(since, _)| *since).chain([f64::INFINITY]);
        self.versions
            .iter()
            .zip(ends)
            .map(|((since, scenario), end)| (since.max(from_s), end.min(to_s), scenario.as_ref()))
            .filter(|(from, to, _)| to > from)
            .collect()
    }
}

// === impl Truth ===

impl Truth {
    /// Of a span in seconds since the Unix epoch, less what was before the pod. Replayed GPUs have
    /// no truth here.
    pub(super) fn of(played: &Played, pod: &Pod, from_s: f64, to_s: f64) -> Self {
        let mut spans = played.between(from_s, to_s);
        let uid = pod.uid();
        let without = spans.iter().rposition(|(_, _, scenario)| scenario.pods.iter().all(|p| p.uid() != uid));
        spans.drain(..without.map_or(0, |last| last + 1));

        let devices = devices(&played.now(), pod);
        let device = |index: usize| over(&spans, |from, to, scenario| scenario.mean_load(index, from, to));
        let own = |index: usize| {
            over(&spans, |from, to, scenario| {
                let pod = scenario.pods.iter().find(|pod| pod.uid() == uid)?;
                Some(own_load(pod, index, from, to))
            })
        };
        let part = |(index, held): (&usize, &Option<(u32, u32)>)| match held {
            Some((held, of)) => Some(own(*index)? * f64::from(*of) / f64::from(*held)),
            None => device(*index),
        };
        Self {
            device_load: mean(devices.keys().map(|index| device(*index))),
            utilization: mean(devices.iter().map(part)),
            is_hidden: devices.iter().any(|(index, shared)| {
                shared.is_some() && played.now().gpus.get(*index).is_some_and(|gpu| gpu.mps_server.is_some())
            }),
            devices,
        }
    }
}

/// The pod's devices, and how many replicas of each it holds.
fn devices(scenario: &Scenario, pod: &Pod) -> BTreeMap<usize, Option<(u32, u32)>> {
    let mut devices: BTreeMap<usize, Option<(u32, u32)>> = BTreeMap::new();
    for device in pod.containers.iter().flat_map(|container| &container.devices) {
        let index = device.split("::").next().and_then(|index| index.parse::<usize>().ok());
        let Some((index, gpu)) = index.and_then(|index| Some((index, scenario.gpus.get(index)?))) else {
            continue;
        };
        let shared = gpu.replicas.filter(|_| device.contains("::"));
        if let Some((held, _)) = devices.entry(index).or_insert(shared.map(|of| (0, of))) {
            *held += 1;
        }
    }
    devices
}

/// What the pod's own processes do on a GPU.
fn own_load(pod: &Pod, index: usize, from_s: f64, to_s: f64) -> f64 {
    let processes = pod.containers.iter().flat_map(|container| &container.processes);
    let loads: Vec<&Load> = processes
        .filter(|process| process.gpu == index)
        .filter_map(|process| process.load.as_ref())
        .collect();
    mean_of_sum(&loads, from_s, to_s)
}

/// The mean of what was played, each span by its length.
fn over(spans: &[(f64, f64, &Scenario)], value: impl Fn(f64, f64, &Scenario) -> Option<f64>) -> Option<f64> {
    let length: f64 = spans.iter().map(|(from, to, _)| to - from).sum();
    let parts = spans.iter().map(|(from, to, scenario)| Some(value(*from, *to, scenario)? * (to - from)));
    let sum = parts.collect::<Option<Vec<f64>>>()?.iter().sum::<f64>();
    (length > 0.0).then(|| sum / length)
}

/// `None` if there is nothing to average, or a part is unknown.
fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values = values.collect::<Option<Vec<f64>>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_scenario() {
        let scenario = Arc::new(Scenario::parse(crate::demo::SCENARIO).unwrap());
        let played = Played::new(Arc::clone(&scenario));
        let numbers: Vec<_> = scenario
            .pods
            .iter()
            .map(|pod| {
                let truth = Truth::of(&played, pod, 1000.0, 1020.0);
                let round = |value: Option<f64>| value.map(|v| (v * 10.0).round() / 10.0);
                (pod.name.as_str(), round(truth.device_load), round(truth.utilization), truth.is_hidden)
            })
            .collect();
        assert_eq!(
            numbers,
            [
                ("chat-0", Some(85.0), Some(85.0), false),
                ("chat-1", Some(71.0), Some(71.0), false),
                ("wave-0", Some(40.0), Some(40.0), false),
                ("train-0", Some(64.5), Some(64.5), false),
                ("idle-0", Some(0.0), Some(0.0), false),
                ("share-a", Some(45.0), Some(60.0), false),
                ("share-b", Some(45.0), Some(30.0), false),
                ("mps-a", Some(60.0), Some(80.0), true),
                ("mps-b", Some(60.0), Some(40.0), true),
            ]
        );
    }

    #[test]
    fn a_change_counts_from_when_it_was_made() {
        let scenario = |pods: &str| {
            let yaml = format!("gpus: [{{}}, {{}}]\npods:\n{pods}");
            Arc::new(Scenario::parse(&yaml).unwrap())
        };
        let pod = |name: &str, gpu: u32, load: u32| {
            format!(
                "- {{ name: {name}, containers: [{{ devices: ['{gpu}'], processes: [{{ pid: {}, gpu: {gpu}, load: {{ constant: {load} }} }}] }}] }}\n",
                gpu + 1
            )
        };
        let mut played = Played::new(scenario(&pod("a", 0, 80)));
        let later = scenario(&(pod("a", 0, 20) + &pod("b", 1, 50)));
        played.change(1015.0, Arc::clone(&later), 20.0);
        let truth = |pod: &Pod| Truth::of(&played, pod, 1000.0, 1020.0).utilization;
        assert_eq!(truth(&later.pods[0]), Some(65.0));
        // The new pod's GPU was idle before: that was not its time.
        assert_eq!(truth(&later.pods[1]), Some(50.0));
        played.change(2000.0, Arc::clone(&later), 20.0);
        assert_eq!(played.versions.len(), 2);
    }
}
