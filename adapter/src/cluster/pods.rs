//! Owns the index of the cluster's pods: written by the one task that folds watch events, read by
//! every request.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::RwLock;

use super::gpu_grant::GpuGrant;
use super::selector::{Condition, Requirement, Selector};
use super::slim::{ContainerStatus, SlimPod};

/// What is kept of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct PodRecord {
    pub uid: Box<str>,
    /// Sorted by key; strings are shared between the pods of a namespace.
    labels: Box<[Label]>,
    /// `spec.nodeName`; `None` until scheduled.
    pub node: Option<Arc<str>>,
    pub phase: Phase,
    /// It has a deletion timestamp.
    pub terminating: bool,
    /// `status.startTime`: the kubelet took it on.
    pub started: Option<Timestamp>,
    pub ready: bool,
    /// When its Ready condition last changed.
    pub ready_changed: Option<Timestamp>,
    pub containers: Box<[ContainerRecord]>,
    /// Also those that go on beside the others.
    pub init_containers: Box<[ContainerRecord]>,
    /// The parts of GPUs that its annotations state; `None` for most pods.
    pub grant: Option<Box<GpuGrant>>,
    /// The list that it was last seen in; see [`PodIndex::begin`].
    generation: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRecord {
    pub name: Box<str>,
    pub restarts: u32,
    /// It has ended, and none of its instances is running or about to.
    pub ended: bool,
    /// Start of the instance that is running; `None` while none is.
    pub running_since: Option<Timestamp>,
    /// The earliest start of an instance that the status tells of.
    pub first_started: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

type Label = (Arc<str>, Arc<str>);

/// Every pod of the cluster. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct PodIndex {
    inner: Arc<RwLock<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    namespaces: HashMap<Box<str>, Namespace>,
    nodes: HashMap<Arc<str>, usize>,
    generation: u32,
    synced: bool,
}

#[derive(Debug, Default)]
struct Namespace {
    pods: Pods,
    /// The pods that carry a label, so that a selector looks at few pods only.
    by_label: HashMap<Label, Pods>,
}

/// Pods by name.
type Pods = BTreeMap<Arc<str>, Arc<PodRecord>>;

// === impl PodRecord ===

impl PodRecord {
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.labels[at].1)
    }

    /// When the first of its containers started, which may be an init container; before that
    /// nothing on a GPU was its own.
    pub fn first_container_started(&self) -> Option<Timestamp> {
        let containers = self.containers.iter().chain(&self.init_containers);
        containers.filter_map(|container| container.first_started).min()
    }
}

impl From<&SlimPod> for PodRecord {
    fn from(pod: &SlimPod) -> Self {
        let time = |time: &Option<Time>| time.as_ref().map(|time| time.0);
        let ready = pod.status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
        let mut labels: Box<[Label]> = pod
            .metadata
            .labels
            .iter()
            .flatten()
            .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
            .collect();
        labels.sort_unstable();
        Self {
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            labels,
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
            state.as_ref().and_then(|state| state.started_at.as_ref()).map(|time| time.0)
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

// === impl PodIndex ===

impl PodIndex {
    /// A whole list begins. Pods not seen again before [`end`](Self::end) are gone.
    pub fn begin(&self) {
        let mut inner = self.inner.write();
        inner.generation = inner.generation.wrapping_add(1);
    }

    /// The list is complete.
    pub fn end(&self) {
        let mut inner = self.inner.write();
        let generation = inner.generation;
        let gone: Vec<(Box<str>, Arc<str>)> = inner
            .namespaces
            .iter()
            .flat_map(|(namespace, pods)| pods.pods.iter().map(move |(name, pod)| (namespace, name, pod)))
            .filter(|(_, _, pod)| pod.generation != generation)
            .map(|(namespace, name, _)| (namespace.clone(), Arc::clone(name)))
            .collect();
        for (namespace, name) in gone {
            inner.remove(&namespace, &name);
        }
        inner.synced = true;
    }

    /// A pod is there, or changed.
    pub fn apply(&self, pod: &SlimPod) {
        let (Some(namespace), Some(name)) = (&pod.metadata.namespace, &pod.metadata.name) else { return };
        let record = PodRecord::from(pod);
        self.inner.write().apply(namespace, name, record);
    }

    /// A pod is gone.
    pub fn delete(&self, pod: &SlimPod) {
        let (Some(namespace), Some(name)) = (&pod.metadata.namespace, &pod.metadata.name) else { return };
        self.inner.write().remove(namespace, name);
    }

    /// Whether a whole list has been read since start.
    pub fn synced(&self) -> bool {
        self.inner.read().synced
    }

    /// Number of pods.
    pub fn len(&self) -> usize {
        self.inner.read().namespaces.values().map(|namespace| namespace.pods.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pod of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<PodRecord>> {
        self.inner.read().namespaces.get(namespace)?.pods.get(name).map(Arc::clone)
    }

    /// The pods of the namespace that the selector matches, by name. They are handed out so that
    /// what is made of them holds no watch event up.
    pub fn select(&self, namespace: &str, selector: &Selector) -> Vec<(Arc<str>, Arc<PodRecord>)> {
        let inner = self.inner.read();
        let Some(namespace) = inner.namespaces.get(namespace) else { return Vec::new() };
        let (met, candidates) = namespace.candidates(selector);
        let matching =
            candidates.iter().filter(|(_, pod)| selector.matches_beside(met, |key| pod.label(key)));
        matching.map(|(name, pod)| (Arc::clone(name), Arc::clone(pod))).collect()
    }
}

// === impl Inner ===

impl Inner {
    fn apply(&mut self, namespace: &str, name: &str, mut record: PodRecord) {
        self.remove(namespace, name);
        record.generation = self.generation;
        if let Some(node) = &mut record.node {
            match self.nodes.get_key_value(&**node).map(|(known, _)| Arc::clone(known)) {
                Some(known) => *node = known,
                None => {
                    self.nodes.insert(Arc::clone(node), 0);
                }
            }
            if let Some(pods) = self.nodes.get_mut(&**node) {
                *pods += 1;
            }
        }
        if !self.namespaces.contains_key(namespace) {
            self.namespaces.insert(namespace.into(), Namespace::default());
        }
        let pods = self.namespaces.get_mut(namespace).expect("because it was inserted if it was missing");
        let name: Arc<str> = name.into();
        for label in &mut record.labels {
            match pods.by_label.get_key_value(label).map(|(known, _)| known.clone()) {
                Some(known) => *label = known,
                None => {
                    pods.by_label.insert(label.clone(), Pods::new());
                }
            }
        }
        let record = Arc::new(record);
        for label in &record.labels {
            if let Some(labelled) = pods.by_label.get_mut(label) {
                labelled.insert(Arc::clone(&name), Arc::clone(&record));
            }
        }
        pods.pods.insert(name, record);
    }

    fn remove(&mut self, namespace: &str, name: &str) {
        let Some(pods) = self.namespaces.get_mut(namespace) else { return };
        let Some((name, record)) = pods.pods.remove_entry(name) else { return };
        for label in &record.labels {
            if let Some(names) = pods.by_label.get_mut(label) {
                names.remove(&name);
                if names.is_empty() {
                    pods.by_label.remove(label);
                }
            }
        }
        if pods.pods.is_empty() {
            self.namespaces.remove(namespace);
        }
        if let Some(node) = &record.node
            && let Some(count) = self.nodes.get_mut(&**node)
        {
            *count -= 1;
            if *count == 0 {
                self.nodes.remove(&**node);
            }
        }
    }
}

// === impl Namespace ===

impl Namespace {
    /// The fewest pods that hold all that can match, by the equalities of the selector, and the
    /// requirement that all of them meet; every pod if it has none.
    fn candidates(&self, selector: &Selector) -> (Option<usize>, &Pods) {
        static NONE: Pods = Pods::new();
        let labelled = |(at, requirement): (usize, &Requirement)| match &requirement.condition {
            Condition::Equals(value) => {
                let label: Label = (requirement.key.as_str().into(), value.as_str().into());
                Some((Some(at), self.by_label.get(&label).unwrap_or(&NONE)))
            }
            _ => None,
        };
        let fewest = selector.requirements().iter().enumerate().filter_map(labelled);
        fewest.min_by_key(|(_, pods)| pods.len()).unwrap_or((None, &self.pods))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, labels: &serde_json::Value) -> SlimPod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "demo", "name": name, "uid": format!("uid-{name}"), "labels": labels},
            "spec": {"nodeName": "gpu-1", "containers": []},
            "status": {"phase": "Running"},
        }))
        .unwrap()
    }

    fn names(index: &PodIndex, selector: &str) -> Vec<String> {
        let pods = index.select("demo", &Selector::parse(selector).unwrap());
        pods.into_iter().map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn selects_by_name_order_through_equalities_or_a_walk() {
        let index = PodIndex::default();
        for (name, labels) in [
            ("c", json!({"app": "web", "tier": "1"})),
            ("a", json!({"app": "web", "tier": "2"})),
            ("b", json!({"app": "db"})),
        ] {
            index.apply(&pod(name, &labels));
        }
        assert_eq!(names(&index, "app=web"), ["a", "c"]);
        assert_eq!(names(&index, "app=web,tier=1"), ["c"]);
        assert_eq!(names(&index, "app=web,tier!=1"), ["a"]);
        assert_eq!(names(&index, "app in (web,db)"), ["a", "b", "c"]);
        assert_eq!(names(&index, "app=none"), [""; 0]);
        assert_eq!(names(&index, ""), ["a", "b", "c"]);
    }

    #[test]
    fn a_change_of_labels_and_a_delete_leave_nothing_behind() {
        let index = PodIndex::default();
        index.apply(&pod("a", &json!({"app": "web"})));
        index.apply(&pod("a", &json!({"app": "db"})));
        assert_eq!(names(&index, "app=web"), [""; 0]);
        assert_eq!(names(&index, "app=db"), ["a"]);
        index.delete(&pod("a", &json!({})));
        let inner = index.inner.read();
        assert!(inner.namespaces.is_empty() && inner.nodes.is_empty());
    }

    #[test]
    fn a_new_list_drops_what_it_does_not_hold() {
        let index = PodIndex::default();
        assert!(!index.synced());
        index.begin();
        index.apply(&pod("a", &json!({})));
        index.apply(&pod("b", &json!({})));
        index.end();
        assert!(index.synced());
        index.begin();
        index.apply(&pod("b", &json!({})));
        assert_eq!(index.len(), 2);
        index.end();
        assert_eq!(names(&index, ""), ["b"]);
    }

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
        let at = |second| Some(format!("2026-11-21T16:00:0{second}Z").parse().unwrap());
        assert!(record.terminating && !record.ready);
        assert_eq!((record.started, record.ready_changed), (at(0), at(5)));
        assert_eq!(record.containers[0].running_since, at(4));
        assert_eq!(record.containers[0].restarts, 2);
        assert_eq!(record.first_container_started(), at(2));
    }
}
