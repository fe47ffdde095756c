//! Owns allocations: which container the kubelet gave which device, and how much of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::claims::{Claim, Claims};
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
    /// Held replicas, as the plugin numbers them; none means the whole device, which has none.
    pub(crate) replicas: Vec<String>,
    /// By which claims it is held, in order, each once; none: a device plugin gave it.
    pub(crate) claims: Vec<Arc<Claim>>,
    /// 1, or the replicas held ÷ the device's, `None` if those were never seen. Of a claim that
    /// several pods share, the pod's part; `None` if several claims share the device.
    pub(crate) part: Option<f64>,
    /// From the pod's processes, else its logs; `None` if it cannot be told.
    pub(crate) pod_uid: Option<String>,
    /// When its log folder was written to; tells the newest of pods.
    pub(crate) started: Option<SystemTime>,
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
    /// Reads the kubelet's list. `resources` are names that mean GPUs besides NVIDIA's own; without
    /// `claims` devices that are held by claims are left out.
    pub(crate) fn from_list(pods: &[PodResources], resources: &[String], claims: Option<&Claims>) -> Self {
        let mut all: Vec<Allocation> = Vec::new();
        for pod in pods {
            for container in &pod.containers {
                let first_of_container = all.len();
                let gpus = container.devices.iter().filter(|d| is_gpu_resource(&d.resource_name, resources));
                let ids = gpus.flat_map(|devices| &devices.device_ids).map(|id| DeviceId::parse(id));
                let claimed = claims
                    .into_iter()
                    .flat_map(|claims| container.dynamic_resources.iter().flat_map(|claim| claims.of(claim)));
                let held = ids.map(|id| (id.device, id.replica, None));
                let held = held.chain(claimed.map(|(device, claim)| (device, None, Some(claim))));
                for (device, replica, claim) in held {
                    let known = all[first_of_container..].iter().position(|other| other.device == device);
                    let at = known.map_or(all.len(), |at| first_of_container + at);
                    if known.is_none() {
                        all.push(Allocation {
                            namespace: pod.namespace.clone(),
                            pod: pod.name.clone(),
                            container: container.name.clone(),
                            device,
                            replicas: Vec::new(),
                            claims: Vec::new(),
                            part: None,
                            pod_uid: None,
                            started: None,
                        });
                    }
                    let allocation = &mut all[at];
                    allocation.replicas.extend(replica.filter(|it| !allocation.replicas.contains(it)));
                    allocation.add_claims(claim);
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
        pod: impl Fn(&str, &str) -> Option<(String, SystemTime)>,
    ) -> Self {
        let claimed = claimed_parts(&self.all);
        for (allocation, claimed) in self.all.iter_mut().zip(claimed) {
            allocation.part = match allocation.replicas.len() {
                0 if allocation.claims.is_empty() => Some(1.0),
                0 => claimed,
                held => counts.0.get(&allocation.device).map(|count| held as f64 / f64::from(*count)),
            };
            (allocation.pod_uid, allocation.started) = pod(&allocation.namespace, &allocation.pod).unzip();
        }
        self
    }

    /// Whether a replica is held of a device whose replicas were never counted.
    pub(crate) fn has_uncounted(&self, counts: &ReplicaCounts) -> bool {
        self.all.iter().any(|a| !a.replicas.is_empty() && !counts.0.contains_key(&a.device))
    }

    /// The container of a pod that has allocations, if it is one alone.
    pub(crate) fn only_container(&self, namespace: &str, pod: &str) -> Option<&str> {
        let mut containers = self
            .all
            .iter()
            .filter(|a| a.namespace == namespace && a.pod == pod)
            .map(|a| a.container.as_str());
        let first = containers.next()?;
        containers.all(|other| other == first).then_some(first)
    }

    /// The allocations of one GPU or MIG instance, or of parts of it, one for each container: a
    /// plugin may have written it in two forms, and a container may hold several compute instances.
    pub(crate) fn of_device(&self, identity: &Identity) -> Vec<Allocation> {
        let mut of_device: Vec<Allocation> = Vec::new();
        for allocation in self.all.iter().filter(|a| a.device.is_of(identity)) {
            let key = |a: &Allocation| (a.namespace.clone(), a.pod.clone(), a.container.clone());
            let part = allocation.part.zip(allocation.device.part_of(identity)).map(|(part, of)| part * of);
            let allocation = Allocation { part, ..allocation.clone() };
            match of_device.iter_mut().find(|known| key(known) == key(&allocation)) {
                Some(known) => known.merge(&allocation),
                None => of_device.push(allocation),
            }
        }
        of_device
    }
}

// === impl Allocation ===

impl Allocation {
    fn add_claims(&mut self, more: impl IntoIterator<Item = Arc<Claim>>) {
        self.claims.extend(more);
        self.claims.sort_unstable();
        self.claims.dedup();
    }

    fn name_of_pod(&self) -> (&str, &str) {
        (&self.namespace, &self.pod)
    }

    fn merge(&mut self, other: &Self) {
        for replica in &other.replicas {
            if !self.replicas.contains(replica) {
                self.replicas.push(replica.clone());
            }
        }
        self.add_claims(other.claims.iter().cloned());
        self.part = match (self.part, other.part) {
            (Some(part), Some(more)) => Some((part + more).min(1.0)),
            (part, more) => part.or(more),
        };
    }
}

/// The part of each allocation that a claim made, in order.
///
/// A claim that several pods share gives each the same right to the device, so each has the same
/// part of it, and so have a pod's containers of that. What several claims of one device have of it
/// the kubelet does not tell: one may be of a program that only watches the device.
fn claimed_parts(all: &[Allocation]) -> Vec<Option<f64>> {
    let mut by_device: HashMap<&Device, Vec<&Allocation>> = HashMap::new();
    for allocation in all.iter().filter(|allocation| !allocation.claims.is_empty()) {
        by_device.entry(&allocation.device).or_default().push(allocation);
    }
    let part = |allocation: &Allocation| -> Option<f64> {
        let claim = allocation.claims.first()?;
        let holders = by_device.get(&allocation.device)?;
        let is_only =
            claim.reference.share.is_none() && holders.iter().all(|it| it.claims == allocation.claims);
        if !is_only || allocation.claims.len() > 1 {
            return None;
        }
        let mut pods: Vec<(&str, &str)> = holders.iter().map(|it| it.name_of_pod()).collect();
        let containers = pods.iter().filter(|pod| **pod == allocation.name_of_pod()).count();
        pods.sort_unstable();
        pods.dedup();
        Some(1.0 / (pods.len() * containers) as f64)
    };
    all.iter().map(part).collect()
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
    use tokio::sync::watch;

    use super::*;
    use crate::attribution::kubelet::api::{CdiDevice, ClaimResource, ContainerResources, DynamicResource};
    use crate::attribution::slices::{DRIVER, Slices};

    fn devices(resource: &str, ids: &[&str]) -> ContainerDevices {
        ContainerDevices {
            resource_name: resource.into(),
            device_ids: ids.iter().map(|id| (*id).into()).collect(),
        }
    }

    fn gpu(uuid: &str) -> Identity {
        Identity {
            index: 9,
            minor: Some(9),
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
        let list = Allocations::from_list(&pods, &[], None);
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
        let completed = list.completed(&counts, |_, _| Some(("uid".into(), SystemTime::UNIX_EPOCH)));
        assert_eq!(part(&completed, "GPU-a"), Some(0.5));
        assert_eq!(part(&completed, "GPU-b"), Some(1.0));
        assert_eq!(completed.of_device(&gpu("GPU-b"))[0].pod_uid.as_deref(), Some("uid"));
    }

    const UUID: &str = "GPU-13719f71-412c-d11e-b236-a262f530a4fc";

    /// A pod with containers that each hold the device by these claims, written `name` or
    /// `name/share`.
    fn holder(pod: &str, containers: &[&[&str]]) -> PodResources {
        let claim = |text: &&str| {
            let (name, share) =
                text.split_once('/').map_or((*text, None), |(name, share)| (name, Some(share)));
            DynamicResource {
                claim_name: name.into(),
                claim_namespace: "ns".into(),
                claim_resources: vec![ClaimResource {
                    cdi_devices: vec![CdiDevice { name: format!("nvidia.com/gpu={UUID}") }],
                    driver_name: DRIVER.into(),
                    pool_name: "node".into(),
                    device_name: "gpu-0".into(),
                    share_id: share.map(str::to_owned),
                }],
            }
        };
        let containers = containers.iter().zip(0..).map(|(claims, number)| ContainerResources {
            name: format!("c{number}"),
            dynamic_resources: claims.iter().map(claim).collect(),
            ..ContainerResources::default()
        });
        PodResources { name: pod.into(), namespace: "ns".into(), containers: containers.collect() }
    }

    fn claimed(pods: &[PodResources]) -> Vec<(String, String, Option<f64>)> {
        let mut claims = Claims::new(watch::channel(Slices::Unknown).1);
        claims.learn(pods);
        assert_eq!(claims.untold(), 0);
        let list = Allocations::from_list(pods, &[], Some(&claims));
        let list = list.completed(&ReplicaCounts::default(), |_, _| None).of_device(&gpu(UUID));
        list.into_iter().map(|a| (a.pod, a.container, a.part)).collect()
    }

    #[test]
    fn parts_of_a_claimed_device() {
        let of = |pod: &str, container: &str, part| (pod.to_owned(), container.to_owned(), part);
        assert_eq!(claimed(&[holder("a", &[&["x"]])]), [of("a", "c0", Some(1.0))]);
        // A claim of two pods: half of it each, whatever containers they have.
        let shared = [holder("a", &[&["x"]]), holder("b", &[&["x"], &["x"], &[]])];
        let parts = [of("a", "c0", Some(0.5)), of("b", "c0", Some(0.25)), of("b", "c1", Some(0.25))];
        assert_eq!(claimed(&shared), parts);
        // Two claims of one device, two of one container, shares of its capacity: nobody tells.
        for unknown in [
            vec![holder("a", &[&["x"]]), holder("b", &[&["y"]])],
            vec![holder("a", &[&["x", "y"]])],
            vec![holder("a", &[&["x/1"]]), holder("b", &[&["x/2"]])],
            vec![holder("a", &[&["x/1"]])],
        ] {
            let parts = claimed(&unknown);
            assert!(!parts.is_empty() && parts.iter().all(|(.., part)| part.is_none()), "{parts:?}");
        }
        assert_eq!(Allocations::from_list(&shared, &[], None), Allocations::default());
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
