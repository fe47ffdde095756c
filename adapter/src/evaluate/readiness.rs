//! Owns the rule of who counts yet: a pod that has once been Ready.

use jiff::SignedDuration;

use super::Omission;
use crate::cluster::pods::{ContainerRecord, PodRecord, Second};

/// A Ready condition that changed later than this after the start tells that the pod has been
/// Ready: the first thing a kubelet writes is that it is not.
const SETTLING: SignedDuration = SignedDuration::from_secs(10);

/// Whether the pod is Ready or has been. Every replica of the adapter sees the same, because it
/// follows from the pod's status alone.
pub(super) fn has_been_ready(pod: &PodRecord) -> Result<(), Omission> {
    if pod.ready {
        return Ok(());
    }
    match (pod.ready_changed, pod.started) {
        (Some(changed), Some(started)) if changed.duration_since(started) > SETTLING => Ok(()),
        _ => Err(Omission::NotReadyYet),
    }
}

/// Whether no container that holds a GPU restarted since the pod was last Ready. The pod is not Ready now.
/// `containers` empty: all are looked at.
pub(super) fn not_restarted(pod: &PodRecord, containers: &[&str]) -> Result<(), Omission> {
    debug_assert!(!pod.ready, "nobody asks of a pod that is Ready");
    let holds_gpu = |name: &str| containers.is_empty() || containers.contains(&name);
    let restarted = |since: Option<Second>| match (since, pod.ready_changed) {
        // The kubelet writes the condition a moment after the restart it follows from.
        (Some(since), Some(changed)) => changed.duration_since(since) <= SETTLING,
        _ => true,
    };
    // An init container that goes on may hold a GPU, too. Of one that ended nothing goes on.
    let named = |container: &&ContainerRecord| !container.ended && !containers.is_empty();
    match pod.containers.iter().chain(pod.init_containers.iter().filter(named)).find(|container| {
        container.restarts > 0 && holds_gpu(&container.name) && restarted(container.running_since)
    }) {
        Some(container) => Err(Omission::Restarted { container: container.name.clone() }),
        None => Ok(()),
    }
}
