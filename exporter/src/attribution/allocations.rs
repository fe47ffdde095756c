//! Owns allocations: which container the kubelet gave which device, and how much of it.

use std::collections::HashMap;

use super::device_id::{Device, DeviceId};
use super::kubelet::api::{ContainerDevices, PodResources};
use crate::gpu::Identity;

/// A container and a device that it was given, whole or in part.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Allocation {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
    pub(crate) device: Device,
    /// Held replicas; 0 means the whole device, which has none.
    pub(crate) replicas_held: u32,
    /// 1, or the replicas held ÷ the device's; `None` if those were never seen.
    pub(crate) part: Option<f64>,
    /// From the pod's logs; `None` if it cannot be told.
    pub(crate) pod_uid: Option<String>,
}

/// Every allocation of the node.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Allocations {
    all: Vec<Allocation>,
}

/// How many replicas each device has, from GetAllocatableResources. Keeps the last count that was
/// not zero: an unhealthy device leaves that list while pods still hold it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReplicaCounts(HashMap<Device, u32>);

/// Whether a resource means GPUs.
pub(crate) fn is_gpu_resource(name: &str, more: &[String]) -> bool {
    name == "nvidia.com/gpu" || name.starts_with("nvidia.com/mig-") || more.iter().any(|other| other == name)
}

// === impl Allocations ===

impl Allocations {
    /// Reads the kubelet's list. `resources` are names that mean GPUs besides NVIDIA's own.
    pub(crate) fn from_list(pods: &[PodResources], resources: &[String]) -> Self {
        let mut all: Vec<Allocation> = Vec::new();
        for pod in pods {
            for container in &pod.containers {
                let first_of_container = all.len();
                let gpus = container.devices.iter().filter(|d| is_gpu_resource(&d.resource_name, resources));
                for id in gpus.flat_map(|devices| &devices.device_ids).map(|id| DeviceId::parse(id)) {
                    let held = u32::from(id.replica.is_some());
                    match all[first_of_container..].iter_mut().find(|other| other.device == id.device) {
                        Some(allocation) => allocation.replicas_held += held,
                        None => all.push(Allocation {
                            namespace: pod.namespace.clone(),
                            pod: pod.name.clone(),
                            container: container.name.clone(),
                            device: id.device,
                            replicas_held: held,
                            part: None,
                            pod_uid: None,
                        }),
                    }
                }
            }
        }
        Self { all }
    }

    /// Adds what other sources know: the part of the device, and the pod's UID.
    #[must_use]
    pub(crate) fn completed(
        mut self,
        counts: &ReplicaCounts,
        uid: impl Fn(&str, &str) -> Option<String>,
    ) -> Self {
        for allocation in &mut self.all {
            allocation.part = match allocation.replicas_held {
                0 => Some(1.0),
                held => counts.0.get(&allocation.device).map(|count| f64::from(held) / f64::from(*count)),
            };
            allocation.pod_uid = uid(&allocation.namespace, &allocation.pod);
        }
        self
    }

    /// Whether a replica is held of a device whose replicas were never counted.
    pub(crate) fn has_uncounted(&self, counts: &ReplicaCounts) -> bool {
        self.all.iter().any(|a| a.replicas_held > 0 && !counts.0.contains_key(&a.device))
    }

    /// The allocations of one GPU or MIG instance, or of parts of it.
    pub(crate) fn of_device(&self, identity: &Identity) -> Vec<&Allocation> {
        self.all.iter().filter(|allocation| allocation.device.is_of(identity)).collect()
    }
}

// === impl ReplicaCounts ===

impl ReplicaCounts {
    /// Takes a new list. Devices that are not in it keep their last count.
    pub(crate) fn learn(&mut self, devices: &[ContainerDevices], resources: &[String]) {
        let mut counts: HashMap<Device, u32> = HashMap::new();
        let gpus = devices.iter().filter(|d| is_gpu_resource(&d.resource_name, resources));
        for id in gpus.flat_map(|devices| &devices.device_ids).map(|id| DeviceId::parse(id)) {
            if id.replica.is_some() {
                *counts.entry(id.device).or_default() += 1;
            }
        }
        self.0.extend(counts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::kubelet::api::ContainerResources;

    fn devices(resource: &str, ids: &[&str]) -> ContainerDevices {
        ContainerDevices {
            resource_name: resource.into(),
            device_ids: ids.iter().map(|id| (*id).into()).collect(),
        }
    }

    fn gpu(uuid: &str) -> Identity {
        Identity {
            index: 9,
            uuid: uuid.into(),
            pci_bus_id: String::new(),
            model: String::new(),
            instance: None,
        }
    }

    #[test]
    fn parts_of_a_shared_device() {
        let pods = [PodResources {
            name: "p".into(),
            namespace: "ns".into(),
            containers: vec![ContainerResources {
                name: "c".into(),
                devices: vec![
                    devices("nvidia.com/gpu", &["GPU-a::2", "GPU-a::0", "GPU-b"]),
                    devices("example.com/nic", &["eth0"]),
                ],
                ..ContainerResources::default()
            }],
        }];
        let mut counts = ReplicaCounts::default();
        let list = Allocations::from_list(&pods, &[]);
        assert!(list.has_uncounted(&counts));
        let part =
            |allocations: &Allocations, uuid| allocations.of_device(&gpu(uuid)).first().and_then(|a| a.part);
        assert_eq!(part(&list.clone().completed(&counts, |_, _| None), "GPU-a"), None);
        for replica in 0..4 {
            counts.learn(&[devices("nvidia.com/gpu", &[&format!("GPU-a::{replica}")])], &[]);
        }
        // One entry per device, as the kubelet answers; the device then turns unhealthy.
        counts.learn(
            &(0..4).map(|r| devices("nvidia.com/gpu", &[&format!("GPU-a::{r}")])).collect::<Vec<_>>(),
            &[],
        );
        counts.learn(&[], &[]);
        let completed = list.completed(&counts, |_, _| Some("uid".into()));
        assert_eq!(part(&completed, "GPU-a"), Some(0.5));
        assert_eq!(part(&completed, "GPU-b"), Some(1.0));
        assert_eq!(completed.of_device(&gpu("GPU-b"))[0].pod_uid.as_deref(), Some("uid"));
    }

    #[test]
    fn resources_that_mean_gpus() {
        let more = ["nvidia.com/gpu.shared".to_owned()];
        assert!(is_gpu_resource("nvidia.com/gpu", &[]) && is_gpu_resource("nvidia.com/mig-1g.10gb", &[]));
        assert!(
            !is_gpu_resource("nvidia.com/gpu.shared", &[]) && is_gpu_resource("nvidia.com/gpu.shared", &more)
        );
    }
}
