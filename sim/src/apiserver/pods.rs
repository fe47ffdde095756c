//! Owns the making of the cluster's objects from scenarios: pods, nodes and namespaces as a
//! kubelet and a scheduler would have left them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use podgauge_sim_nvml::scenario::{Container, Pod, Scenario};
use serde_json::{Value, json};

/// How long a pod's containers take to become ready after it started, in seconds. Longer than
/// the 10 s after which a pod counts as having been ready once.
const READY_AFTER: SignedDuration = SignedDuration::from_secs(20);

/// What must be remembered of pods between two readings of a scenario.
#[derive(Debug, Default)]
pub(crate) struct PodHistory {
    pods: BTreeMap<String, Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    started: Timestamp,
    ready: bool,
    ready_changed: Timestamp,
    terminating_since: Option<Timestamp>,
}

// === impl PodHistory ===

impl PodHistory {
    /// The pods of a scenario as API objects. A pod's start is `now` less its age when it is
    /// first seen, and stays; its Ready condition changes when the scenario changes it.
    pub(crate) fn pods(&mut self, scenario: &Scenario, now: Timestamp) -> Vec<Value> {
        let uids: BTreeSet<String> = scenario.pods.iter().map(Pod::uid).collect();
        self.pods.retain(|uid, _| uids.contains(uid));
        scenario
            .pods
            .iter()
            .enumerate()
            .map(|(index, pod)| {
                let seen = self.see(pod, now);
                pod_object(scenario, index, pod, &seen)
            })
            .collect()
    }

    fn see(&mut self, pod: &Pod, now: Timestamp) -> Seen {
        let ready = pod.ready && pod.phase == "Running";
        let seen = self.pods.entry(pod.uid()).or_insert_with(|| {
            let started = now - SignedDuration::from_secs_f64(pod.age_s.max(0.0));
            // A pod that was never ready has had the condition since its start.
            let ready_changed = if ready { (started + READY_AFTER).min(now) } else { started };
            Seen { started, ready, ready_changed, terminating_since: None }
        });
        if seen.ready != ready {
            seen.ready = ready;
            seen.ready_changed = now;
        }
        if pod.terminating {
            seen.terminating_since.get_or_insert(now);
        } else {
            seen.terminating_since = None;
        }
        seen.clone()
    }
}

fn pod_object(scenario: &Scenario, index: usize, pod: &Pod, seen: &Seen) -> Value {
    let started = rfc3339(seen.started);
    let mut metadata = json!({
        "name": pod.name, "namespace": pod.namespace, "uid": pod.uid(),
        "creationTimestamp": rfc3339(seen.started - SignedDuration::from_secs(1)),
        "labels": pod.labels,
    });
    if !pod.annotations.is_empty() {
        metadata["annotations"] = json!(pod.annotations);
    }
    if let Some(since) = seen.terminating_since {
        metadata["deletionTimestamp"] = rfc3339(since + SignedDuration::from_secs(30)).into();
        metadata["deletionGracePeriodSeconds"] = 30.into();
    }
    let condition = |kind: &str, status: bool, since: Timestamp| {
        json!({
            "type": kind, "status": if status { "True" } else { "False" },
            "lastProbeTime": null, "lastTransitionTime": rfc3339(since),
        })
    };
    // Index 0 is the node's gateway.
    let address = format!("10.244.{}.{}", (index + 1) / 254, (index + 1) % 254 + 1);
    json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": metadata,
        "spec": {
            "nodeName": scenario.node,
            "restartPolicy": "Always", "serviceAccountName": "default", "schedulerName": "default-scheduler",
            "containers": pod.containers.iter().map(container_spec).collect::<Vec<_>>(),
        },
        "status": {
            "phase": pod.phase, "startTime": started, "qosClass": "BestEffort",
            "hostIP": "10.0.0.1", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [
                condition("PodScheduled", true, seen.started),
                condition("Initialized", true, seen.started),
                condition("ContainersReady", seen.ready, seen.ready_changed),
                condition("Ready", seen.ready, seen.ready_changed),
            ],
            "containerStatuses":
                pod.containers.iter().map(|container| container_status(pod, container, seen)).collect::<Vec<_>>(),
        },
    })
}

fn container_spec(container: &Container) -> Value {
    let mut spec = json!({
        "name": container.name, "image": "registry.example/workload:1", "imagePullPolicy": "IfNotPresent",
        "resources": {},
    });
    if !container.devices.is_empty() {
        let held = json!({ &container.resource: container.devices.len().to_string() });
        spec["resources"] = json!({"limits": held, "requests": held});
    }
    spec
}

fn container_status(pod: &Pod, container: &Container, seen: &Seen) -> Value {
    let started = rfc3339(seen.started);
    let id = format!("containerd://{}", container.id(pod));
    let finished = |code: i32, reason: &str| {
        json!({"terminated": {
            "exitCode": code, "reason": reason, "startedAt": started,
            "finishedAt": rfc3339(seen.ready_changed), "containerID": id,
        }})
    };
    let (state, running) = match pod.phase.as_str() {
        "Pending" => (json!({"waiting": {"reason": "ContainerCreating"}}), false),
        "Succeeded" => (finished(0, "Completed"), false),
        "Failed" => (finished(1, "Error"), false),
        _ => (json!({"running": {"startedAt": started}}), true),
    };
    let mut status = json!({
        "name": container.name, "image": "registry.example/workload:1",
        "imageID": "registry.example/workload@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "ready": running && seen.ready, "started": running, "restartCount": 0,
        "state": state, "lastState": {},
    });
    if pod.phase != "Pending" {
        status["containerID"] = id.into();
    }
    status
}

/// The node of a scenario.
pub(crate) fn node(scenario: &Scenario, since: Timestamp) -> Value {
    let gpus: u32 = scenario.gpus.iter().filter(|gpu| gpu.healthy).map(|gpu| gpu.replicas.unwrap_or(1)).sum();
    let resources =
        json!({"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": gpus.to_string()});
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {
            "name": scenario.node, "uid": format!("node-{}", scenario.node),
            "creationTimestamp": rfc3339(since), "labels": {"kubernetes.io/hostname": scenario.node},
        },
        "spec": {},
        "status": {
            "capacity": resources, "allocatable": resources,
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "simulated",
                "lastHeartbeatTime": rfc3339(since), "lastTransitionTime": rfc3339(since),
            }],
        },
    })
}

/// How far a namespace's life is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Lifetime {
    #[default]
    Active,
    /// Its deletion began then.
    Terminating(Timestamp),
}

/// A namespace.
pub(crate) fn namespace(name: &str, since: Timestamp, lifetime: Lifetime) -> Value {
    let mut object = json!({
        "kind": "Namespace", "apiVersion": "v1",
        "metadata": {
            "name": name, "uid": format!("namespace-{name}"), "creationTimestamp": rfc3339(since),
            "labels": {"kubernetes.io/metadata.name": name},
        },
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    });
    if let Lifetime::Terminating(began) = lifetime {
        object["metadata"]["deletionTimestamp"] = rfc3339(began).into();
        object["status"]["phase"] = "Terminating".into();
    }
    object
}

/// RFC 3339 in UTC with whole seconds, as the API writes times.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;

    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_795_000_000, 0);

    fn pods(history: &mut PodHistory, yaml: &str, now: Timestamp) -> Vec<core::Pod> {
        let scenario = Scenario::parse(yaml).unwrap();
        history.pods(&scenario, now).into_iter().map(|pod| serde_json::from_value(pod).unwrap()).collect()
    }

    fn ready(pod: &core::Pod) -> (String, Timestamp) {
        let conditions = pod.status.as_ref().unwrap().conditions.as_ref().unwrap();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        (ready.status.clone(), ready.last_transition_time.as_ref().unwrap().0)
    }

    #[test]
    fn a_pod_is_what_a_cluster_would_show() {
        let made = pods(
            &mut PodHistory::default(),
            "node: n1\ngpus: [{}]\npods: [{name: a, labels: {app: x}, age_s: 100, containers: [{devices: ['0']}]}]",
            NOW,
        );
        let pod = &made[0];
        assert_eq!(pod.spec.as_ref().unwrap().node_name.as_deref(), Some("n1"));
        assert_eq!(pod.metadata.labels.as_ref().unwrap()["app"], "x");
        let status = pod.status.as_ref().unwrap();
        assert_eq!(status.start_time.as_ref().unwrap().0, NOW - SignedDuration::from_secs(100));
        assert_eq!(ready(pod), ("True".to_owned(), NOW - SignedDuration::from_secs(80)));
        let container = &status.container_statuses.as_ref().unwrap()[0];
        let id = container.container_id.as_deref().unwrap().strip_prefix("containerd://").unwrap();
        assert_eq!(id.len(), 64);
        assert!(container.state.as_ref().unwrap().running.as_ref().unwrap().started_at.is_some());
    }

    #[test]
    fn a_pod_that_stops_being_ready_was_ready_before() {
        let mut history = PodHistory::default();
        let scenario = |ready: bool| format!("pods: [{{name: a, ready: {ready}, age_s: 100}}]");
        pods(&mut history, &scenario(true), NOW);
        let later = NOW + SignedDuration::from_secs(60);
        let made = pods(&mut history, &scenario(false), later);
        assert_eq!(ready(&made[0]), ("False".to_owned(), later));
        assert_eq!(
            made[0].status.as_ref().unwrap().start_time.as_ref().unwrap().0,
            NOW - SignedDuration::from_secs(100)
        );
    }

    #[test]
    fn a_pod_that_was_never_ready_has_been_so_since_its_start() {
        let made = pods(&mut PodHistory::default(), "pods: [{name: a, ready: false, age_s: 100}]", NOW);
        assert_eq!(ready(&made[0]), ("False".to_owned(), NOW - SignedDuration::from_secs(100)));
    }

    #[test]
    fn a_finished_and_a_terminating_pod() {
        let made = pods(
            &mut PodHistory::default(),
            "pods: [{name: a, phase: Succeeded, containers: [{}]}, {name: b, terminating: true}]",
            NOW,
        );
        let state = &made[0].status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0].state;
        assert_eq!(state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 0);
        assert!(made[1].metadata.deletion_timestamp.is_some());
    }
}
