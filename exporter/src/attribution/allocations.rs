//! Allocations: the containers that the kubelet gave devices, and how much of each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::Owner;
use super::claims::{Claim, ClaimedDevice, Claims};
use super::device_id::{Device, DeviceId};
use super::kubelet::api::{ContainerDevices, PodResources};
use super::own_pod::PodName;
use crate::gpu::Identity;

/// Most devices of one node that are kept, of whatever kind.
const MAX_ALLOCATIONS: usize = 16_384;

/// A container and a device that it was given, whole or in part.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Allocation {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
    pub(crate) device: Device,
    /// The extended resource and the first id under which a device plugin gave it.
    pub(crate) given_as: Option<Given>,
    /// Held replicas, as the plugin numbers them; none means the whole device, which has none.
    pub(crate) replicas: Vec<String>,
    /// The claims by which it is held, in order, each once; none: a device plugin gave it.
    pub(crate) claims: Vec<Arc<Claim>>,
    /// Part of the device: 1, or the replicas held ÷ the device's, or the claim's consumed capacity ÷
    /// the device's, or of a claim that several pods share the pod's part. `None`: not known.
    pub(crate) part: Option<f64>,
    /// From the pod's processes, else its logs; `None` if neither names it.
    pub(crate) pod_uid: Option<String>,
    /// When its log folder was written to; tells the newest of pods.
    pub(crate) started: Option<SystemTime>,
}

/// The words in which a device plugin gave a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) resource: String,
    pub(crate) id: String,
}

/// Pods that hold devices and use none of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watchers {
    /// This exporter's own.
    pub(crate) own: Option<PodName>,
    /// `--reservation-namespaces`: fractional schedulers hold devices for others there.
    pub(crate) reservation_namespaces: Vec<String>,
}

/// Every allocation of the node.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Allocations {
    all: Vec<Allocation>,
    /// How many were left out because of [`MAX_ALLOCATIONS`].
    pub(crate) beyond: usize,
}

/// How many replicas each device has, from GetAllocatableResources. Keeps the last count that was
/// not zero: an unhealthy device leaves that list while pods still hold it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReplicaCounts(HashMap<Device, u32>);

// === impl Watchers ===

impl Watchers {
    fn include(&self, pod: &PodResources) -> bool {
        let is_own = |(namespace, name): &PodName| (namespace, name) == (&pod.namespace, &pod.name);
        self.own.as_ref().is_some_and(is_own) || self.reservation_namespaces.contains(&pod.namespace)
    }
}

// === impl Allocations ===

impl Allocations {
    /// Reads the kubelet's list. Devices of every resource are kept: an id that names a GPU of this
    /// node is a GPU, whatever its resource is called. Without `claims` devices that are held by
    /// claims are left out.
    pub(crate) fn from_list(pods: &[PodResources], watchers: &Watchers, claims: Option<&Claims>) -> Self {
        let mut all: Vec<Allocation> = Vec::new();
        let mut beyond = 0;
        for pod in pods.iter().filter(|pod| !watchers.include(pod)) {
            for container in &pod.containers {
                let first_of_container = all.len();
                let given = container.devices.iter().flat_map(|devices| {
                    let resource = &devices.resource_name;
                    devices
                        .device_ids
                        .iter()
                        .map(move |id| Given { resource: resource.clone(), id: id.clone() })
                });
                let claimed = claims
                    .into_iter()
                    .flat_map(|claims| container.dynamic_resources.iter().flat_map(|claim| claims.of(claim)));
                let held = given.map(Held::Given).chain(claimed.map(Held::Claimed));
                for held in held {
                    let new = held.allocation(pod, &container.name);
                    let same = all[first_of_container..].iter().position(|other| other.device == new.device);
                    match same {
                        Some(at) => all[first_of_container + at].take(new),
                        None if all.len() < MAX_ALLOCATIONS => all.push(new),
                        None => beyond += 1,
                    }
                }
            }
        }
        Self { all, beyond }
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
    pub(crate) fn only_container<'a>(&'a self, namespace: &'a str, pod: &'a str) -> Option<&'a str> {
        let mut containers = self.of_pod(namespace, pod).map(|a| a.container.as_str());
        let first = containers.next()?;
        containers.all(|other| other == first).then_some(first)
    }

    /// Whether a pod was given a device that may be a GPU.
    pub(crate) fn is_holder(&self, namespace: &str, pod: &str) -> bool {
        self.of_pod(namespace, pod).next().is_some()
    }

    /// The virtual GPU that a container was given, whose id names no card.
    pub(crate) fn virtual_gpu<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        container: &str,
    ) -> Option<&'a Allocation> {
        let is_virtual = |a: &&Allocation| matches!(a.device, Device::Virtual(_)) && a.container == container;
        self.of_pod(namespace, pod).find(is_virtual)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Allocation> {
        self.all.iter()
    }

    /// The allocations of one GPU or MIG instance, or of parts of it, one for each container: a
    /// plugin may have written it in two forms, and a container may hold several compute instances.
    pub(crate) fn of_device(&self, identity: &Identity) -> Vec<Allocation> {
        let mut of_device: Vec<Allocation> = Vec::new();
        for held in self.all.iter().filter(|a| a.device.is_of(identity)) {
            let part = held.part.zip(held.device.part_of(identity)).map(|(part, of)| part * of);
            let allocation = Allocation { part, ..held.clone() };
            match of_device.iter_mut().find(|known| known.is_of_same_container(held)) {
                Some(known) => known.merge(allocation),
                None => of_device.push(allocation),
            }
        }
        of_device
    }

    /// The GPUs that a pod holds, as far as the ids tell.
    fn of_pod<'a>(&'a self, namespace: &'a str, pod: &'a str) -> impl Iterator<Item = &'a Allocation> {
        let of_gpu =
            |a: &&Allocation| a.given_as.as_ref().is_none_or(|given| a.device.is_like_gpu(&given.resource));
        self.all.iter().filter(move |a| a.namespace == namespace && a.pod == pod).filter(of_gpu)
    }
}

/// One entry of the kubelet's list.
enum Held {
    Given(Given),
    Claimed(ClaimedDevice),
}

// === impl Held ===

impl Held {
    fn allocation(self, pod: &PodResources, container: &str) -> Allocation {
        let (device, replica, claim, part, given_as) = match self {
            Self::Given(given) => {
                let DeviceId { device, replica } = DeviceId::parse(&given.id);
                (device, replica, None, None, Some(given))
            }
            Self::Claimed(ClaimedDevice { device, claim, part }) => (device, None, Some(claim), part, None),
        };
        Allocation {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            container: container.to_owned(),
            device,
            given_as,
            replicas: replica.into_iter().collect(),
            claims: claim.into_iter().collect(),
            part,
            pod_uid: None,
            started: None,
        }
    }
}

// === impl Allocation ===

impl Allocation {
    fn add_claims(&mut self, more: impl IntoIterator<Item = Arc<Claim>>) {
        self.claims.extend(more);
        self.claims.sort_unstable();
        self.claims.dedup();
    }

    /// Adds what the same container holds of the same device besides.
    fn take(&mut self, other: Self) {
        for replica in other.replicas {
            if !self.replicas.contains(&replica) {
                self.replicas.push(replica);
            }
        }
        self.add_claims(other.claims);
        // With one unknown the sum is, too.
        self.part = self.part.zip(other.part).map(|(part, more)| part + more);
    }

    fn name_of_pod(&self) -> (&str, &str) {
        (&self.namespace, &self.pod)
    }

    fn is_of_same_container(&self, other: &Self) -> bool {
        self.name_of_pod() == other.name_of_pod() && self.container == other.container
    }

    /// As [`take`](Self::take), of parts of one device, which is all that there is.
    fn merge(&mut self, other: Self) {
        self.take(other);
        self.part = self.part.map(|part| part.min(1.0));
    }

    /// The container that holds it.
    pub(crate) fn owner(&self) -> Owner {
        Owner { namespace: self.namespace.clone(), pod: self.pod.clone(), container: self.container.clone() }
    }
}

/// The part of each allocation that a claim made, in order: the capacity that it consumes, if that is
/// known.
///
/// Else a claim that several pods share gives each the same right to the device, so each has the same
/// part of it, and so have a pod's containers of that. What several claims of one device have of it
/// the kubelet does not tell: one may be of a program that only watches the device.
fn claimed_parts(all: &[Allocation]) -> Vec<Option<f64>> {
    let mut by_device: HashMap<&Device, Vec<&Allocation>> = HashMap::new();
    for allocation in all.iter().filter(|allocation| !allocation.claims.is_empty()) {
        by_device.entry(&allocation.device).or_default().push(allocation);
    }
    let part = |allocation: &Allocation| -> Option<f64> {
        let [claim] = &allocation.claims[..] else { return None };
        let holders = by_device.get(&allocation.device)?;
        let (same, others): (Vec<&Allocation>, Vec<&Allocation>) =
            holders.iter().copied().partition(|it| it.claims == allocation.claims);
        let is_whole = claim.reference.share.is_none() && others.is_empty();
        let of_claim = allocation.part.or(is_whole.then_some(1.0))?;
        let mut pods: Vec<(&str, &str)> = same.iter().map(|it| it.name_of_pod()).collect();
        let containers = pods.iter().filter(|pod| **pod == allocation.name_of_pod()).count();
        pods.sort_unstable();
        pods.dedup();
        Some(of_claim / (pods.len() * containers) as f64)
    };
    all.iter().map(part).collect()
}

// === impl ReplicaCounts ===

impl ReplicaCounts {
    /// Takes a new list. Devices that are not in it keep their last count.
    pub(crate) fn learn(&mut self, devices: &[ContainerDevices]) {
        let mut counts: HashMap<Device, u32> = HashMap::new();
        let ids = devices.iter().flat_map(|devices| &devices.device_ids);
        for id in ids.map(|id| DeviceId::parse(id)) {
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
    use crate::attribution::resource_claims::ResourceClaims;
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
        let list = Allocations::from_list(&pods, &Watchers::default(), None);
        assert!(list.has_uncounted(&counts));
        let part =
            |allocations: &Allocations, uuid| allocations.of_device(&gpu(uuid)).first().and_then(|a| a.part);
        assert_eq!(part(&list.clone().completed(&counts, |_, _| None), "GPU-a"), None);
        for replica in 0..4 {
            counts.learn(&[devices("nvidia.com/gpu", &[&format!("GPU-a::{replica}")])]);
        }
        // One entry per device, as the kubelet answers; the device then turns unhealthy.
        counts.learn(
            &(0..4).map(|r| devices("nvidia.com/gpu.shared", &[&format!("GPU-a::{r}")])).collect::<Vec<_>>(),
        );
        counts.learn(&[]);
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
        let mut claims = Claims::new(watch::channel(Slices::Unknown).1, ResourceClaims::new(None));
        claims.learn(pods);
        assert_eq!(claims.untold(), 0);
        let list = Allocations::from_list(pods, &Watchers::default(), Some(&claims));
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
        assert_eq!(Allocations::from_list(&shared, &Watchers::default(), None), Allocations::default());
    }

    #[test]
    fn pods_that_only_watch_hold_nothing() {
        let pod = |namespace: &str, name: &str| PodResources {
            name: name.into(),
            namespace: namespace.into(),
            containers: vec![ContainerResources {
                name: "c".into(),
                devices: vec![devices("nvidia.com/gpu", &["GPU-a"])],
                ..ContainerResources::default()
            }],
        };
        let pods = [pod("kai", "gpu-reservation-x"), pod("ops", "exporter-1"), pod("ops", "train")];
        let watchers = Watchers {
            own: Some(("ops".into(), "exporter-1".into())),
            reservation_namespaces: vec!["kai".into()],
        };
        let list = Allocations::from_list(&pods, &watchers, None);
        assert_eq!(list.iter().map(|a| a.pod.as_str()).collect::<Vec<_>>(), ["train"]);
    }

    #[test]
    fn a_device_is_known_by_its_id_whatever_its_resource_is_called() {
        let pods = [PodResources {
            name: "p".into(),
            namespace: "ns".into(),
            containers: vec![ContainerResources {
                name: "c".into(),
                devices: vec![devices("example.com/card", &["GPU-a"]), devices("example.com/nic", &["eth0"])],
                ..ContainerResources::default()
            }],
        }];
        let list = Allocations::from_list(&pods, &Watchers::default(), None);
        assert_eq!(list.of_device(&gpu("GPU-a")).len(), 1);
        assert!(list.is_holder("ns", "p") && list.only_container("ns", "p") == Some("c"));
        assert!(!list.is_holder("ns", "other"));
    }
}
