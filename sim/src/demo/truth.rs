//! Owns what the scenario says a pod's number should be.

use std::collections::BTreeMap;

use podgauge_sim_nvml::load::{Load, mean_of_sum};
use podgauge_sim_nvml::scenario::{Pod, Scenario};

/// What a pod does with its devices, over a span of time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Truth {
    /// The pod's devices: index, and how many replicas it holds of how many if it is shared.
    pub(super) devices: BTreeMap<usize, Option<(u32, u32)>>,
    /// Mean load of its devices, whoever causes it, in percent.
    pub(super) device_load: Option<f64>,
    /// What the adapter should answer if it can: its use in percent of what it was given.
    pub(super) utilization: Option<f64>,
}

impl Truth {
    /// Of a span in seconds since the Unix epoch. Replayed GPUs have no truth here.
    pub(super) fn of(scenario: &Scenario, pod: &Pod, from_s: f64, to_s: f64) -> Self {
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
        let device = |index: usize| scenario.mean_load(index, from_s, to_s);
        let own = |index: usize| {
            let loads: Vec<&Load> = pod
                .containers
                .iter()
                .flat_map(|container| &container.processes)
                .filter(|process| process.gpu == index)
                .filter_map(|process| process.load.as_ref())
                .collect();
            mean_of_sum(&loads, from_s, to_s)
        };
        let part = |(index, held): (&usize, &Option<(u32, u32)>)| match held {
            Some((held, of)) => Some(own(*index) * f64::from(*of) / f64::from(*held)),
            None => device(*index),
        };
        Self {
            device_load: mean(devices.keys().map(|index| device(*index))),
            utilization: mean(devices.iter().map(part)),
            devices,
        }
    }

    /// Whether a device of the pod is another pod's too.
    pub(super) fn is_shared(&self) -> bool {
        self.devices.values().any(Option::is_some)
    }
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
        let scenario = Scenario::parse(crate::demo::SCENARIO).unwrap();
        let numbers: Vec<_> = scenario
            .pods
            .iter()
            .map(|pod| {
                let truth = Truth::of(&scenario, pod, 1000.0, 1020.0);
                let round = |value: Option<f64>| value.map(|v| (v * 10.0).round() / 10.0);
                (pod.name.as_str(), round(truth.device_load), round(truth.utilization), truth.is_shared())
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
                ("share-a", Some(45.0), Some(60.0), true),
                ("share-b", Some(45.0), Some(30.0), true),
            ]
        );
    }
}
