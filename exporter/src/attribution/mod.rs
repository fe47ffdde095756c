//! Owns whose a device is: allocations from the kubelet and processes from NVML, turned into owners.
//!
//! ```text
//! ResourceSlices ─► Claims ─┐
//! kubelet poll ─────────────┴► Allocations ────────┐
//! process lists ─► ProcessTable ─► Processes ──────┼─► attribute(device) ─► Attribution
//! (NVML thread)    (cgroups, log folders' names)   │
//! credited slots ─► Confidence ────────────────────┘
//! ```

pub(crate) mod allocations;
pub(crate) mod cgroup;
pub(crate) mod claims;
pub(crate) mod confidence;
pub(crate) mod device_id;
pub(crate) mod kubelet;
pub(crate) mod own_pod;
pub(crate) mod pod_labels;
pub(crate) mod pod_names;
pub(crate) mod pod_uid;
pub(crate) mod process_table;
pub(crate) mod processes;
pub(crate) mod resource_claims;
pub(crate) mod slices;
mod socket;
pub(crate) mod unmatched;

use std::sync::Arc;

use allocations::{Allocation, Allocations};
use confidence::User;
pub(crate) use processes::{Processes, Whose};

use crate::gpu::{Identity, Unmeasured};

/// A container that owns a device or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    /// Empty if it cannot be told which container of the pod it is.
    pub(crate) container: String,
}

/// Why a device's use cannot be given to pods. The text is the label `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// The kubelet has not answered for so long that its last answer no longer counts.
    Kubelet,
    /// This process is not in the host's PID namespace: NVML hides processes from it.
    NoHostPidNamespace,
    /// Processes run on the device whose pods cannot be read from `/proc`.
    ProcessesUnreadable,
    /// Too many of the driver's samples of processes were not seen for what is left to be fair.
    SamplesMissed,
    /// The device is used, and the driver returns no samples of processes at all.
    NoProcessSamples,
    /// The trace of context switches cannot be had, and nothing else may be used.
    NotTraced,
    /// The driver has no call for the lists of processes that this program knows.
    DriverTooOld,
    /// NVML does not say what each process uses.
    NoProcessUtilization,
    /// NVML credits the MPS server with what its clients use.
    MpsServer,
    /// NVML does not say how much memory each process uses: of memory alone.
    NoProcessMemory,
    /// The device's use is not read at all.
    Unmeasured(Unmeasured),
}

/// How a family that can be divided is divided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Division {
    /// The device's value, with this owner's labels or none.
    Whole(Option<Arc<Owner>>),
    /// A part for each of these, and one without labels for the rest.
    Among(Vec<Arc<Owner>>),
}

/// What is known of a device's owners.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attribution {
    /// The one allocated pod, whose labels the families carry that cannot be divided.
    pub(crate) owner: Option<Arc<Owner>>,
    pub(crate) utilization: Division,
    pub(crate) memory: Division,
    /// How many own the device, processes outside any pod counting as one; `None`: not known.
    pub(crate) owners: Option<usize>,
    /// Every container that holds the device or a part of it.
    pub(crate) allocations: Vec<Allocation>,
    /// Containers with processes on it that were given a virtual GPU, whose id names no card: how
    /// much of the device is theirs is not known here.
    pub(crate) virtual_gpus: Vec<Allocation>,
    pub(crate) unavailable: Vec<Unavailable>,
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
            Self::NoHostPidNamespace => "no_host_pid_namespace",
            Self::ProcessesUnreadable => "processes_unreadable",
            Self::SamplesMissed => "samples_missed",
            Self::NoProcessSamples => "no_process_samples",
            Self::NotTraced => "context_switches_not_traced",
            Self::DriverTooOld => "driver_too_old",
            Self::NoProcessUtilization => "no_process_utilization",
            Self::MpsServer => "mps_server",
            Self::NoProcessMemory => "no_process_memory",
            Self::Unmeasured(Unmeasured::MigWithoutGpm) => "mig_without_gpm",
            Self::Unmeasured(Unmeasured::MigNotPermitted) => "mig_gpm_not_permitted",
            Self::Unmeasured(Unmeasured::NotOpened) => "gpu_not_opened",
        }
    }
}

impl Default for Division {
    fn default() -> Self {
        Self::Whole(None)
    }
}

/// Whose the device is.
///
/// What cannot be divided is the one allocated pod's, whatever processes do. What can is divided
/// among all owners; where processes cannot tell how, a device of one allocated pod keeps its
/// labels, and one of several has none: nothing is guessed, and the reason is said.
pub(crate) fn attribute(
    knowledge: &Knowledge,
    identity: &Identity,
    processes: &Processes,
    undivided: Option<Unavailable>,
) -> Attribution {
    let all = match knowledge {
        Knowledge::NotAsked | Knowledge::Waiting => return Attribution::default(),
        Knowledge::Lost => {
            return Attribution { unavailable: vec![Unavailable::Kubelet], ..Attribution::default() };
        }
        Knowledge::Known(all) => all,
    };
    let allocations = allocations_of(all, identity, processes);
    let (owners, outside) = owners(all, &allocations, processes);
    let count = owners.len() + usize::from(outside);
    let pods = distinct_pods(&allocations);
    let owner = match (&allocations[..], pods) {
        ([only], _) => Some(Arc::new(only.owner())),
        ([first, ..], 1) => Some(Arc::new(Owner { container: String::new(), ..first.owner() })),
        _ => None,
    };
    let virtual_gpus = virtual_gpus(all, &allocations, processes);
    let mut attribution =
        Attribution { owner, owners: Some(count), allocations, virtual_gpus, ..Attribution::default() };
    if count <= 1 {
        let sole = Division::Whole(owners.into_iter().next());
        (attribution.utilization, attribution.memory) = (sole.clone(), sole);
        return attribution;
    }
    let no_utilization = processes
        .unavailable
        .or(undivided)
        .or(processes.no_utilization.then_some(Unavailable::NoProcessUtilization));
    let no_memory =
        processes.unavailable.or(processes.memory.is_none().then_some(Unavailable::NoProcessMemory));
    let divided = |reason: Option<Unavailable>| match reason {
        None => Division::Among(owners.clone()),
        Some(_) => Division::Whole(attribution.owner.clone()),
    };
    (attribution.utilization, attribution.memory) = (divided(no_utilization), divided(no_memory));
    // One allocated pod keeps its labels, and nothing is lacking.
    if pods != 1 {
        attribution.unavailable = no_memory.into_iter().chain(no_utilization).collect();
        attribution.unavailable.dedup();
    }
    attribution
}

/// The user that a process's use counts for.
pub(crate) fn user_of(knowledge: &Knowledge, whose: &Whose) -> User {
    match (whose, knowledge) {
        (Whose::Pod { owner, .. }, Knowledge::Known(all)) => User::Of(Some(with_container(all, owner))),
        (Whose::Pod { owner, .. }, _) => User::Of(Some(Arc::clone(owner))),
        // One that ended unseen has no owner, so that no owner's number rises or vanishes because of it.
        (Whose::Outside | Whose::Gone, _) => User::Of(None),
        (Whose::MpsServer, _) => User::MpsServer,
        (Whose::Unreadable, _) => User::Unreadable,
    }
}

/// How many own the device: from the second on its processes' use is asked for.
pub(crate) fn count_owners(knowledge: &Knowledge, identity: &Identity, processes: &Processes) -> usize {
    let Knowledge::Known(all) = knowledge else { return 0 };
    let (owners, outside) = owners(all, &allocations_of(all, identity, processes), processes);
    owners.len() + usize::from(outside)
}

/// The device's allocations. Where a kubelet lists a whole device for two pods, because one of
/// them has finished, that one has it which has processes on it, else the newest. Pods that hold it
/// by claims share it: kubelets that know claims of this version list no finished pod.
fn allocations_of(all: &Allocations, identity: &Identity, processes: &Processes) -> Vec<Allocation> {
    let mut allocations = all.of_device(identity);
    // A compute instance of several is no whole device.
    let is_whole = |allocation: &Allocation| {
        allocation.replicas.is_empty()
            && allocation.claims.is_empty()
            && allocation.device.part_of(identity) == Some(1.0)
    };
    if allocations.iter().all(is_whole) && distinct_pods(&allocations) > 1 {
        let is_live = |allocation: &Allocation| {
            processes
                .live()
                .any(|(owner, _)| (&owner.namespace, &owner.pod) == (&allocation.namespace, &allocation.pod))
        };
        if allocations.iter().any(is_live) {
            allocations.retain(is_live);
        } else {
            let newest = allocations.iter().enumerate().max_by_key(|(at, a)| (a.started, *at));
            let newest = newest.map(|(_, a)| (a.namespace.clone(), a.pod.clone()));
            allocations.retain(|a| Some((&a.namespace, &a.pod)) == newest.as_ref().map(|(n, p)| (n, p)));
        }
    }
    // Of two pods that had one name the living process knows which it is.
    for allocation in &mut allocations {
        let live = processes
            .live()
            .rfind(|(owner, _)| (&owner.namespace, &owner.pod) == (&allocation.namespace, &allocation.pod));
        if let Some((_, uid)) = live {
            allocation.pod_uid = Some(uid.to_owned());
        }
    }
    allocations
}

/// Containers that own the device, each once, and whether processes outside any pod do.
fn owners(all: &Allocations, allocations: &[Allocation], processes: &Processes) -> (Vec<Arc<Owner>>, bool) {
    let mut owners: Vec<Arc<Owner>> = allocations.iter().map(|held| Arc::new(held.owner())).collect();
    let mut outside = false;
    if processes.unavailable.is_none() {
        for holder in &processes.holders {
            match &holder.whose {
                Whose::Pod { owner, .. } => owners.push(with_container(all, owner)),
                Whose::Outside => outside = true,
                Whose::MpsServer | Whose::Gone | Whose::Unreadable => {}
            }
        }
    }
    owners.sort_unstable();
    owners.dedup();
    (owners, outside)
}

/// The holders of virtual GPUs that have processes on the device, and no allocation of it.
fn virtual_gpus(all: &Allocations, allocations: &[Allocation], processes: &Processes) -> Vec<Allocation> {
    let mut holders: Vec<Allocation> = Vec::new();
    // Of two pods that had one name the one with a process, and of two such the later one.
    let of_live = |live: bool| processes.holders.iter().rev().filter(move |holder| holder.live == live);
    let pods = of_live(true).chain(of_live(false)).filter_map(|holder| match &holder.whose {
        Whose::Pod { owner, uid } => Some((with_container(all, owner), uid)),
        _ => None,
    });
    for (owner, uid) in pods {
        let is_owners = |a: &Allocation| {
            (&a.namespace, &a.pod, &a.container) == (&owner.namespace, &owner.pod, &owner.container)
        };
        if allocations.iter().chain(&holders).any(is_owners) {
            continue;
        }
        if let Some(given) = all.virtual_gpu(&owner.namespace, &owner.pod, &owner.container) {
            holders.push(Allocation { part: None, pod_uid: Some(uid.to_string()), ..given.clone() });
        }
    }
    holders
}

/// A process's container that nothing names is the pod's only allocated one.
fn with_container(all: &Allocations, owner: &Arc<Owner>) -> Arc<Owner> {
    if !owner.container.is_empty() {
        return Arc::clone(owner);
    }
    match all.only_container(&owner.namespace, &owner.pod) {
        Some(container) => Arc::new(Owner { container: container.to_owned(), ..Owner::clone(owner) }),
        None => Arc::clone(owner),
    }
}

fn distinct_pods(allocations: &[Allocation]) -> usize {
    let mut pods: Vec<_> = allocations.iter().map(|a| (&a.namespace, &a.pod)).collect();
    pods.sort_unstable();
    pods.dedup();
    pods.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::allocations::{ReplicaCounts, Watchers};
    use crate::attribution::kubelet::api::{ContainerDevices, ContainerResources, PodResources};
    use crate::attribution::processes::Holder;
    use crate::gpu::{ComputeInstance, MigInstance};

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
        Identity {
            index,
            minor: Some(index),
            uuid: uuid.into(),
            pci_bus_id: String::new(),
            model: String::new(),
            instance: None,
        }
    }

    fn known(pods: &[PodResources]) -> Knowledge {
        Knowledge::Known(Arc::new(Allocations::from_list(pods, &Watchers::default(), None)))
    }

    fn owner(pod: &str, container: &str) -> Arc<Owner> {
        Arc::new(Owner { namespace: "ml".into(), pod: pod.into(), container: container.into() })
    }

    fn process(pod: &str, container: &str) -> Holder {
        Holder { whose: Whose::Pod { owner: owner(pod, container), uid: "u".into() }, live: true }
    }

    fn running(holders: &[Holder]) -> Processes {
        Processes { holders: holders.to_vec(), memory: Some(Vec::new()), ..Processes::default() }
    }

    fn on(knowledge: &Knowledge, uuid: &str, processes: &Processes) -> Attribution {
        attribute(knowledge, &gpu(uuid, 0), processes, None)
    }

    #[test]
    fn one_pod_gives_its_labels() {
        let knowledge =
            known(&[pod("a", &[("main", &["GPU-1", "GPU-2"])]), pod("b", &[("main", &["GPU-3"])])]);
        let attribution = on(&knowledge, "GPU-2", &running(&[process("a", "")]));
        assert_eq!(attribution.owner, Some(owner("a", "main")));
        assert_eq!(attribution.utilization, Division::Whole(Some(owner("a", "main"))));
        assert_eq!((attribution.owners, attribution.unavailable.len()), (Some(1), 0));
        let free = on(&knowledge, "GPU-9", &running(&[]));
        assert_eq!((free.owner, free.utilization, free.owners), (None, Division::Whole(None), Some(0)));
    }

    #[test]
    fn two_pods_of_one_device_divide_it() {
        let knowledge = known(&[pod("a", &[("main", &["GPU-1::0"])]), pod("b", &[("main", &["GPU-1::1"])])]);
        let both = Division::Among(vec![owner("a", "main"), owner("b", "main")]);
        let attribution = on(&knowledge, "GPU-1", &running(&[]));
        assert_eq!((&attribution.utilization, &attribution.memory), (&both, &both));
        assert_eq!(attribution.owner, None);
        assert_eq!((attribution.unavailable.len(), attribution.allocations.len()), (0, 2));

        // Where processes say nothing, neither do the samples, and the reason is there.
        let blind = Processes { unavailable: Some(Unavailable::NoHostPidNamespace), ..Processes::default() };
        let attribution = on(&knowledge, "GPU-1", &blind);
        assert_eq!(attribution.utilization, Division::Whole(None));
        assert_eq!(attribution.unavailable, [Unavailable::NoHostPidNamespace]);

        // Under MPS memory is divided, utilization is not.
        let mps = attribute(&knowledge, &gpu("GPU-1", 0), &running(&[]), Some(Unavailable::MpsServer));
        assert_eq!((mps.utilization, mps.memory), (Division::Whole(None), both.clone()));
        assert_eq!(mps.unavailable, [Unavailable::MpsServer]);
        let no_memory = Processes { memory: None, ..running(&[]) };
        let attribution = on(&knowledge, "GPU-1", &no_memory);
        assert_eq!((attribution.utilization, attribution.memory), (both, Division::Whole(None)));
        assert_eq!(attribution.unavailable, [Unavailable::NoProcessMemory]);
    }

    #[test]
    fn a_device_of_one_pod_keeps_its_labels_whatever_happens_to_processes() {
        let knowledge = known(&[pod("a", &[("main", &["GPU-1"])])]);
        let sole = Division::Whole(Some(owner("a", "main")));
        let outside = Holder { whose: Whose::Outside, live: true };
        let mut processes = running(&[process("a", ""), outside]);
        let attribution = on(&knowledge, "GPU-1", &processes);
        assert_eq!(attribution.utilization, Division::Among(vec![owner("a", "main")]));
        assert_eq!((attribution.owner, attribution.owners), (Some(owner("a", "main")), Some(2)));
        for reason in [Unavailable::MpsServer, Unavailable::ProcessesUnreadable] {
            let attribution = attribute(&knowledge, &gpu("GPU-1", 0), &processes, Some(reason));
            assert_eq!((attribution.utilization, attribution.unavailable.len()), (sole.clone(), 0));
        }
        processes.unavailable = Some(Unavailable::NoHostPidNamespace);
        let attribution = on(&knowledge, "GPU-1", &processes);
        assert_eq!((attribution.utilization, attribution.memory), (sole.clone(), sole));
        assert_eq!((attribution.unavailable.len(), attribution.owners), (0, Some(1)));
    }

    #[test]
    fn two_containers_of_one_pod_share_its_labels() {
        let knowledge = known(&[pod("a", &[("x", &["GPU-1::0"]), ("y", &["GPU-1::1"])])]);
        let attribution = on(&knowledge, "GPU-1", &running(&[process("a", "y")]));
        assert_eq!(attribution.owner, Some(owner("a", "")));
        assert_eq!(attribution.utilization, Division::Among(vec![owner("a", "x"), owner("a", "y")]));
    }

    #[test]
    fn a_pod_that_bypasses_the_device_plugin_owns_what_it_uses() {
        let knowledge = known(&[pod("a", &[("main", &["GPU-1"])])]);
        let bypass = running(&[process("b", "c")]);
        let attribution = on(&knowledge, "GPU-2", &bypass);
        assert_eq!(attribution.utilization, Division::Whole(Some(owner("b", "c"))));
        assert_eq!(attribution.owner, None, "what cannot be divided follows allocations alone");
        let attribution = on(&knowledge, "GPU-1", &bypass);
        assert_eq!(attribution.utilization, Division::Among(vec![owner("a", "main"), owner("b", "c")]));
        assert_eq!(attribution.owner, Some(owner("a", "main")));
    }

    #[test]
    fn two_pods_with_a_compute_instance_each_both_hold_the_instance() {
        let compute = |ci, uuid: &str| ComputeInstance { ci, uuid: uuid.into(), slices: Some((1, 2)) };
        let instance = MigInstance::of_test(7, vec![compute(0, "MIG-a"), compute(1, "MIG-b")]);
        let identity = Identity { instance: Some(instance), ..gpu("GPU-1", 0) };
        let list = [pod("a", &[("main", &["MIG-a"])]), pod("b", &[("main", &["MIG-b"])])];
        let list = Allocations::from_list(&list, &Watchers::default(), None)
            .completed(&ReplicaCounts::default(), |_, _| None);
        let knowledge = Knowledge::Known(Arc::new(list));
        let blind = Processes { no_utilization: true, ..Processes::default() };
        let attribution = attribute(&knowledge, &identity, &blind, None);
        let parts: Vec<_> = attribution.allocations.iter().map(|a| (a.pod.as_str(), a.part)).collect();
        assert_eq!(parts, [("a", Some(0.5)), ("b", Some(0.5))]);
        assert_eq!((attribution.owner, attribution.owners), (None, Some(2)));
        assert_eq!(attribution.utilization, Division::Whole(None));
        assert_eq!(
            attribution.unavailable,
            [Unavailable::NoProcessMemory, Unavailable::NoProcessUtilization]
        );
        // One container with both has all of it.
        let list =
            Allocations::from_list(&[pod("a", &[("main", &["MIG-a", "MIG-b"])])], &Watchers::default(), None);
        let list = list.completed(&ReplicaCounts::default(), |_, _| None);
        let attribution = attribute(&Knowledge::Known(Arc::new(list)), &identity, &blind, None);
        assert_eq!((attribution.owners, attribution.allocations[0].part), (Some(1), Some(1.0)));
    }

    #[test]
    fn a_whole_device_of_two_pods_is_the_living_ones_else_the_newest() {
        let knowledge = known(&[pod("done", &[("main", &["GPU-1"])]), pod("new", &[("main", &["GPU-1"])])]);
        let sole = |pod: &str| Division::Whole(Some(owner(pod, "main")));
        assert_eq!(on(&knowledge, "GPU-1", &running(&[])).utilization, sole("new"));
        let living = on(&knowledge, "GPU-1", &running(&[process("done", "main")]));
        assert_eq!((living.utilization, living.allocations.len()), (sole("done"), 1));
        assert_eq!(living.allocations[0].pod_uid.as_deref(), Some("u"));
    }

    #[test]
    fn of_two_pods_that_had_one_name_the_living_one_holds_the_virtual_gpu() {
        let knowledge = known(&[pod("a", &[("main", &["GPU-13719f71-412c-d11e-b236-a262f530a4fc-3"])])]);
        let holder = |uid: &str, live| Holder {
            whose: Whose::Pod { owner: owner("a", "main"), uid: uid.into() },
            live,
        };
        for (holders, uid) in [
            ([holder("u0", false), holder("u1", true)], "u1"),
            ([holder("u1", true), holder("u0", false)], "u1"),
            ([holder("u0", true), holder("u1", true)], "u1"),
        ] {
            let attribution = on(&knowledge, "GPU-9", &running(&holders));
            let uids: Vec<_> = attribution.virtual_gpus.iter().map(|held| held.pod_uid.as_deref()).collect();
            assert_eq!(uids, [Some(uid)], "{holders:?}");
        }
    }
}
