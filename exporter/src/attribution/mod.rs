//! Owns whose a device is: allocations from the kubelet, turned into owners.
//!
//! ```text
//! kubelet poll ─► Allocations ─► attribute(device) ─► Attribution { printed owner, allocations, why not }
//! ```

pub(crate) mod allocations;
pub(crate) mod device_id;
pub(crate) mod kubelet;
pub(crate) mod pod_uid;

use std::sync::Arc;

use allocations::{Allocation, Allocations};

use crate::gpu::{Identity, Unmeasured};

/// A container that owns a device or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    /// Empty if several containers of the pod hold the device: then none of them can be named.
    pub(crate) container: String,
}

/// Why a device's use cannot be given to pods. The text is the label `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// The kubelet has not answered for so long that its last answer no longer counts.
    Kubelet,
    /// Several pods hold the device, and this version does not tell their processes apart.
    SharedDevice,
    /// The device's use is not read at all.
    Unmeasured(Unmeasured),
}

/// What is known of a device's owners.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attribution<'a> {
    /// The one owner whose labels the device's samples carry.
    pub(crate) owner: Option<Arc<Owner>>,
    /// Every container that holds the device or a part of it.
    pub(crate) allocations: Vec<&'a Allocation>,
    pub(crate) unavailable: Option<Unavailable>,
}

/// What is known of the node's allocations.
#[derive(Debug, Clone, Default)]
pub(crate) enum Knowledge {
    /// Pods are not asked for: samples have no pod labels.
    #[default]
    NotAsked,
    /// The kubelet has not answered yet; there is no page of devices before it has, or before it
    /// has been silent for too long.
    Waiting,
    Known(Arc<Allocations>),
    /// It has been silent for too long.
    Lost,
}

impl Unavailable {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Kubelet => "kubelet_unavailable",
            Self::SharedDevice => "shared_device_not_divided",
            Self::Unmeasured(Unmeasured::MigWithoutGpm) => "mig_without_gpm",
            Self::Unmeasured(Unmeasured::MigNotPermitted) => "mig_gpm_not_permitted",
        }
    }
}

/// Whose the device is.
///
/// Exactly one allocated pod gives its labels. With several, nothing is guessed: the samples have
/// no pod labels, and the reason is said.
pub(crate) fn attribute<'a>(knowledge: &'a Knowledge, identity: &Identity) -> Attribution<'a> {
    let allocations = match knowledge {
        Knowledge::NotAsked | Knowledge::Waiting => return Attribution::default(),
        Knowledge::Lost => {
            return Attribution { unavailable: Some(Unavailable::Kubelet), ..Attribution::default() };
        }
        Knowledge::Known(allocations) => allocations.of_device(identity),
    };
    let Some(first) = allocations.first() else { return Attribution::default() };
    if allocations.iter().any(|other| (&other.namespace, &other.pod) != (&first.namespace, &first.pod)) {
        return Attribution { owner: None, unavailable: Some(Unavailable::SharedDevice), allocations };
    }
    let container = if allocations.len() == 1 { first.container.clone() } else { String::new() };
    let owner = Owner { namespace: first.namespace.clone(), pod: first.pod.clone(), container };
    Attribution { owner: Some(Arc::new(owner)), allocations, unavailable: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::kubelet::api::{ContainerDevices, ContainerResources, PodResources};

    fn pod(name: &str, containers: &[(&str, &[&str])]) -> PodResources {
        PodResources {
            name: name.into(),
            namespace: "ml".into(),
            containers: containers
                .iter()
                .map(|(container, ids)| ContainerResources {
                    name: (*container).into(),
                    devices: vec![ContainerDevices {
                        resource_name: "nvidia.com/gpu".into(),
                        device_ids: ids.iter().map(|id| (*id).into()).collect(),
                    }],
                    ..ContainerResources::default()
                })
                .collect(),
        }
    }

    fn gpu(uuid: &str, index: u32) -> Identity {
        Identity { index, uuid: uuid.into(), pci_bus_id: String::new(), model: String::new(), instance: None }
    }

    fn known(pods: &[PodResources]) -> Knowledge {
        Knowledge::Known(Arc::new(Allocations::from_list(pods, &[])))
    }

    #[test]
    fn one_pod_gives_its_labels() {
        let knowledge =
            known(&[pod("a", &[("main", &["GPU-1", "GPU-2"])]), pod("b", &[("main", &["GPU-3"])])]);
        let owner = attribute(&knowledge, &gpu("GPU-2", 1)).owner.unwrap();
        assert_eq!((owner.pod.as_str(), owner.container.as_str()), ("a", "main"));
        assert!(attribute(&knowledge, &gpu("GPU-9", 9)).owner.is_none());
        assert_eq!(attribute(&knowledge, &gpu("GPU-9", 9)).unavailable, None);
    }

    #[test]
    fn two_pods_of_one_device_are_not_guessed_between() {
        let knowledge = known(&[pod("a", &[("main", &["GPU-1::0"])]), pod("b", &[("main", &["GPU-1::1"])])]);
        let attribution = attribute(&knowledge, &gpu("GPU-1", 0));
        assert_eq!(attribution.owner, None);
        assert_eq!(attribution.unavailable, Some(Unavailable::SharedDevice));
        assert_eq!(attribution.allocations.len(), 2);
    }

    #[test]
    fn two_containers_of_one_pod_share_its_labels_without_a_container() {
        let knowledge = known(&[pod("a", &[("x", &["GPU-1::0"]), ("y", &["GPU-1::1"])])]);
        let attribution = attribute(&knowledge, &gpu("GPU-1", 0));
        assert_eq!(attribution.owner.unwrap().container, "");
        assert_eq!(attribution.unavailable, None);
    }
}
