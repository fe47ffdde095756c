//! Reports device ids of the kubelet that name no GPU of this node: their pods would go without
//! metrics and nobody would know why.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::allocations::{Allocation, Allocations, Given};
use super::device_id::{Device, is_gpu_resource};
use crate::gpu::Identity;

/// An id is reported after it was unknown for so long: the kubelet may know a new MIG instance first.
const PATIENCE: Duration = Duration::from_secs(10);
/// Ids that one log line names.
const NAMED: usize = 5;

/// Follows the ids that match no device.
#[derive(Debug)]
pub(crate) struct UnmatchedIds {
    /// Resources besides NVIDIA's own that mean GPUs.
    resources: Vec<String>,
    /// Resource and id, since when each is unknown, and who holds it.
    unmatched: BTreeMap<(String, String), (Instant, String)>,
    reported: BTreeSet<(String, String)>,
    reported_virtual: bool,
}

// === impl UnmatchedIds ===

impl UnmatchedIds {
    pub(crate) fn new(resources: Vec<String>) -> Self {
        Self { resources, unmatched: BTreeMap::new(), reported: BTreeSet::new(), reported_virtual: false }
    }

    /// Compares a list with the devices that NVML knows, reports what is new, and counts the ids that
    /// match none of them.
    pub(crate) fn follow(&mut self, list: &Allocations, known: &[&Identity], now: Instant) -> usize {
        let matches =
            |allocation: &Allocation| known.iter().any(|identity| allocation.device.is_of(identity));
        let of_gpus: BTreeSet<&str> = list
            .iter()
            .filter(|allocation| matches(allocation))
            .filter_map(|allocation| Some(allocation.given_as.as_ref()?.resource.as_str()))
            .collect();
        let mut before = std::mem::take(&mut self.unmatched);
        for allocation in list.iter().filter(|allocation| !matches(allocation)) {
            let Some(Given { resource, id }) = &allocation.given_as else { continue };
            if !of_gpus.contains(resource.as_str()) && !is_gpu_resource(resource, &self.resources) {
                continue;
            }
            if matches!(allocation.device, Device::Virtual(_)) {
                self.report_virtual(resource, id);
                continue;
            }
            let key = (resource.clone(), id.clone());
            let holder =
                format!("{}/{}, container {}", allocation.namespace, allocation.pod, allocation.container);
            let since = before.remove(&key).map_or(now, |(since, _)| since);
            self.unmatched.insert(key, (since, holder));
        }
        self.report(now);
        self.unmatched.len()
    }

    fn report(&mut self, now: Instant) {
        self.reported.retain(|key| self.unmatched.contains_key(key));
        let is_due = |since: Instant| now.saturating_duration_since(since) >= PATIENCE;
        let due: Vec<(&(String, String), &String)> = self
            .unmatched
            .iter()
            .filter(|(key, (since, _))| is_due(*since) && !self.reported.contains(*key))
            .map(|(key, (_, holder))| (key, holder))
            .collect();
        if due.is_empty() {
            return;
        }
        let named: Vec<String> = due
            .iter()
            .take(NAMED)
            .map(|((resource, id), holder)| format!("{id:?} of {resource} ({holder})"))
            .collect();
        let more =
            if due.len() > NAMED { format!(", and {} more", due.len() - NAMED) } else { String::new() };
        tracing::warn!(
            "the kubelet lists device ids that match no GPU or MIG instance of this node: {}{more}; these containers have no GPU metrics. Compare the ids with `nvidia-smi -L`: the device plugin must use UUIDs (--device-id-strategy=uuid) or GKE's names",
            named.join(", ")
        );
        self.reported.extend(due.into_iter().map(|(key, _)| key.clone()).collect::<Vec<_>>());
    }

    fn report_virtual(&mut self, resource: &str, id: &str) {
        if !std::mem::replace(&mut self.reported_virtual, true) {
            tracing::info!(
                "the ids of {resource} (such as {id:?}) are virtual GPUs of HAMi or Volcano and name no card: their containers are found by their processes, and podgauge-adapter reads card and part from the pods' annotations"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::allocations::{ReplicaCounts, Watchers};
    use crate::attribution::kubelet::api::{ContainerDevices, ContainerResources, PodResources};

    fn list(devices: &[(&str, &str)]) -> Allocations {
        let devices = devices.iter().map(|(resource, id)| ContainerDevices {
            resource_name: (*resource).into(),
            device_ids: vec![(*id).into()],
        });
        let container =
            ContainerResources { name: "c".into(), devices: devices.collect(), ..Default::default() };
        let pod = PodResources { name: "p".into(), namespace: "n".into(), containers: vec![container] };
        Allocations::from_list(&[pod], &Watchers::default(), None)
            .completed(&ReplicaCounts::default(), |_, _| None)
    }

    #[test]
    fn ids_of_gpu_resources_alone_are_missed_and_each_is_reported_once() {
        let gpu = Identity::of_test("GPU-1");
        let mut ids = UnmatchedIds::new(vec!["example.com/gpu".into()]);
        let start = Instant::now();
        let count = |ids: &mut UnmatchedIds, devices, now| ids.follow(&list(devices), &[&gpu], now);
        for (devices, unmatched) in [
            (&[("nvidia.com/gpu", "GPU-1"), ("rdma/hca", "mlx5_0")][..], 0),
            (&[("nvidia.com/gpu", "0")], 1),
            (&[("example.com/gpu", "0")], 1),
            // A resource of which an id matches means GPUs.
            (&[("shop.example/card", "GPU-1"), ("shop.example/card", "GPU-2")], 1),
            (&[("nvidia.com/gpu", "GPU-13719f71-412c-d11e-b236-a262f530a4fc-3")], 0),
        ] {
            assert_eq!(count(&mut ids, devices, start), unmatched, "{devices:?}");
        }
        let unknown = [("nvidia.com/gpu", "GPU-2")];
        count(&mut ids, &unknown, start);
        assert!(ids.reported.is_empty(), "too soon");
        count(&mut ids, &unknown, start + PATIENCE);
        assert_eq!(ids.reported.len(), 1);
        count(&mut ids, &[], start + PATIENCE);
        assert!(ids.reported.is_empty() && ids.reported_virtual);
    }
}
