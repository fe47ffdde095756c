//! Owns what is kept of a pod.

use std::num::NonZeroI64;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::gpu_grant::GpuGrant;
use super::slim::{ContainerStatus, SlimPod};
use crate::uid::Uid;

/// What is kept of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct PodRecord {
    pub uid: Uid,
    pub(super) labels: LabelSet,
    /// `spec.nodeName`; `None` until scheduled.
    pub node: Option<Arc<str>>,
    pub phase: Phase,
    /// It has a deletion timestamp.
    pub terminating: bool,
    /// `status.startTime`: the kubelet took it on.
    pub started: Option<Second>,
    pub ready: bool,
    /// When its Ready condition last changed.
    pub ready_changed: Option<Second>,
    pub containers: Box<[ContainerRecord]>,
    /// Also those that go on beside the others.
    pub init_containers: Box<[ContainerRecord]>,
    /// The parts of GPUs that its annotations state; `None` for most pods.
    pub grant: Option<Box<GpuGrant>>,
    /// The list that it was last seen in; see [`PodIndex::begin`](super::PodIndex::begin).
    pub(super) generation: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRecord {
    pub name: Box<str>,
    pub restarts: u32,
    /// It has ended, and none of its instances is running or about to.
    pub ended: bool,
    /// Start of the instance that is running; `None` while none is.
    pub running_since: Option<Second>,
    /// The earliest start of an instance that the status tells of.
    pub first_started: Option<Second>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

/// A time of a pod's status, in the seconds since 1970 that Kubernetes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Second(NonZeroI64);

pub(super) type Label = (Arc<str>, Arc<str>);

/// A pod's labels, sorted by key. Pods that are made of one template share them.
pub(super) type LabelSet = Arc<[Label]>;

/// The value of a label.
pub(super) fn label<'l>(labels: &'l LabelSet, key: &str) -> Option<&'l str> {
    let at = labels.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
    Some(&labels[at].1)
}

// === impl Second ===

impl Second {
    fn of(time: &Time) -> Option<Self> {
        NonZeroI64::new(time.0.as_second()).map(Self)
    }

    pub fn time(self) -> Timestamp {
        // Of a time that was one.
        Timestamp::from_second(self.0.get()).unwrap_or_default()
    }

    pub fn duration_since(self, earlier: Self) -> SignedDuration {
        SignedDuration::from_secs(self.0.get().saturating_sub(earlier.0.get()))
    }
}

// === impl PodRecord ===

impl PodRecord {
    /// When the first of its containers started, which may be an init container; before that
    /// nothing on a GPU was its own.
    pub fn first_container_started(&self) -> Option<Second> {
        let containers = self.containers.iter().chain(&self.init_containers);
        containers.filter_map(|container| container.first_started).min()
    }
}

impl From<&SlimPod> for PodRecord {
    fn from(pod: &SlimPod) -> Self {
        let time = |time: &Option<Time>| time.as_ref().and_then(Second::of);
        let ready = pod.status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
        let mut labels: Vec<Label> = pod
            .metadata
            .labels
            .iter()
            .flatten()
            .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
            .collect();
        labels.sort_unstable();
        Self {
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            labels: labels.into(),
            node: pod.spec.node_name.as_deref().filter(|node| !node.is_empty()).map(Into::into),
            phase: match pod.status.phase.as_deref() {
                Some("Running") => Phase::Running,
                Some("Succeeded") => Phase::Succeeded,
                Some("Failed") => Phase::Failed,
                Some("Pending") | None => Phase::Pending,
                Some(_) => Phase::Unknown,
            },
            terminating: pod.metadata.deletion_timestamp.is_some(),
            started: time(&pod.status.start_time),
            ready: ready.is_some_and(|condition| condition.status == "True"),
            ready_changed: ready.and_then(|condition| time(&condition.last_transition_time)),
            containers: pod.status.container_statuses.iter().flatten().map(Into::into).collect(),
            init_containers: pod.status.init_container_statuses.iter().flatten().map(Into::into).collect(),
            grant: GpuGrant::of(pod),
            generation: 0,
        }
    }
}

impl From<&ContainerStatus> for ContainerRecord {
    fn from(status: &ContainerStatus) -> Self {
        let started = |state: &Option<super::slim::Running>| {
            state.as_ref().and_then(|state| state.started_at.as_ref()).and_then(Second::of)
        };
        let running_since = started(&status.state.running);
        let earlier = [&status.state.terminated, &status.last_state.running, &status.last_state.terminated];
        Self {
            name: status.name.as_str().into(),
            restarts: status.restart_count,
            ended: status.state.terminated.is_some(),
            running_since,
            first_started: earlier.into_iter().filter_map(started).chain(running_since).min(),
        }
    }
}

impl Phase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Unknown => "Unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_what_a_kubelet_writes() {
        let pod: SlimPod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "demo", "name": "a", "uid": "u", "deletionTimestamp": "2026-11-21T16:00:09Z"},
            "spec": {"nodeName": "gpu-1", "containers": [{"name": "main", "image": "x"}]},
            "status": {
                "phase": "Running", "startTime": "2026-11-21T16:00:00Z",
                "conditions": [
                    {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-21T15:59:00Z"},
                    {"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-21T16:00:05Z", "reason": "x"}],
                "containerStatuses": [{
                    "name": "main", "restartCount": 2, "ready": false,
                    "state": {"running": {"startedAt": "2026-11-21T16:00:04Z"}},
                    "lastState": {"terminated": {"startedAt": "2026-11-21T16:00:02Z", "exitCode": 1}}}]
            },
        }))
        .unwrap();
        let record = PodRecord::from(&pod);
        let at = |second| Second::of(&Time(format!("2026-11-21T16:00:0{second}Z").parse().unwrap()));
        assert!(record.terminating && !record.ready);
        assert_eq!((record.started, record.ready_changed), (at(0), at(5)));
        assert_eq!(record.containers[0].running_since, at(4));
        assert_eq!(record.containers[0].restarts, 2);
        assert_eq!(record.first_container_started(), at(2));
    }
}
