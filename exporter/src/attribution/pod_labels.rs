//! Owns the labels of this node's pods, for `--kubernetes-enable-pod-labels`: a watch of the pods of
//! one node, and their label keys made into names that Prometheus takes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use podgauge_common::cluster;
use podgauge_common::cluster::outages::{Cause, Watches};
use regex::Regex;
use serde::{Deserialize, Serialize};

/// Most labels of one pod that are printed.
const MAX_LABELS: usize = 64;
/// Most pods that are kept: more than any node runs.
const MAX_PODS: usize = 10_000;
/// Names that samples carry already, which no pod's label may take.
const RESERVED: [&str; 27] = [
    "gpu",
    "UUID",
    "uuid",
    "pci_bus_id",
    "device",
    "modelName",
    "GPU_I_PROFILE",
    "GPU_I_ID",
    "hostname",
    "Hostname",
    "container",
    "namespace",
    "pod",
    "pod_uid",
    "container_name",
    "pod_name",
    "pod_namespace",
    "vgpu",
    "err_code",
    "err_msg",
    "window_size_in_ms",
    "xid",
    "clock_event",
    "hpc_job",
    "nvlink",
    "job",
    "instance",
];
/// Prefixes of such names.
const RESERVED_PREFIXES: [&str; 3] = ["DCGM_FI_", "dra_", "exported_"];

/// Which label keys are printed.
#[derive(Debug, Clone, Default)]
pub(crate) struct AllowList(Vec<Regex>);

/// Labels by namespace and pod, as they are printed. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodLabels(Arc<ArcSwap<Index>>);

/// The part of a pod that is read: serde skips the rest.
#[derive(Debug, Clone, Default, Serialize, Deserialize, kube::Resource)]
#[resource(inherit = "Pod")]
struct LabelledPod {
    metadata: ObjectMeta,
}

type Index = HashMap<(String, String), Arc<Vec<(String, String)>>>;

// === impl AllowList ===

impl AllowList {
    /// A pattern that is none is left out with a warning; if none is left, everything is printed,
    /// as dcgm-exporter has it.
    pub(crate) fn new(patterns: &[String]) -> Self {
        let compiled = patterns.iter().filter_map(|pattern| {
            Regex::new(pattern)
                .map_err(|error| {
                    // Its text shows the pattern over several lines; the last one says what is wrong.
                    let error = error.to_string();
                    let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                    tracing::warn!(
                        "--kubernetes-pod-label-allowlist-regex: {pattern:?} is left out: {reason}"
                    );
                })
                .ok()
        });
        Self(compiled.collect())
    }

    fn allows(&self, key: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| pattern.is_match(key))
    }
}

// === impl PodLabels ===

impl PodLabels {
    /// The labels of a pod: none if it is not known.
    pub(crate) fn of(&self, namespace: &str, pod: &str) -> Arc<Vec<(String, String)>> {
        self.0.load().get(&(namespace.to_owned(), pod.to_owned())).cloned().unwrap_or_default()
    }

    /// Follows the pods of a node until the program ends. The last state stays while the watch fails.
    pub(crate) async fn watch(self, client: Client, watches: Watches, node: String, allowed: AllowList) {
        let config = watcher::Config::default().fields(&format!("spec.nodeName={node}")).any_semantic();
        let watched = watches.add_with_advice(format!("pods of {node}"), advice);
        let mut pods = Index::new();
        cluster::watch::follow(Api::<LabelledPod>::all(client), config, watched, |event| {
            if event.is_ok_and(|event| apply(event, &mut pods, &allowed)) {
                self.0.store(Arc::new(pods.clone()));
            }
        })
        .await;
    }
}

/// The remedy for a watch that the API server refuses.
fn advice(cause: Cause) -> Option<&'static str> {
    matches!(cause, Cause::Refused(401 | 403)).then_some(
        "--kubernetes-enable-pod-labels needs a ClusterRole that lets this service account list and watch pods",
    )
}

/// Takes an event; whether it is to be seen.
fn apply(event: Event<LabelledPod>, pods: &mut Index, allowed: &AllowList) -> bool {
    let key = |pod: &LabelledPod| {
        (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
    };
    // A list that is under way shows when it is whole.
    let is_seen = !matches!(event, Event::Init | Event::InitApply(_));
    match event {
        Event::Init => pods.clear(),
        Event::InitDone => {}
        Event::InitApply(pod) | Event::Apply(pod) => {
            let labels = sanitized(pod.metadata.labels.as_ref(), allowed);
            if pods.len() < MAX_PODS || pods.contains_key(&key(&pod)) {
                pods.insert(key(&pod), Arc::new(labels));
            }
        }
        Event::Delete(pod) => {
            pods.remove(&key(&pod));
        }
    }
    is_seen
}

/// Label keys as Prometheus takes them. A name that a sample has already, or that two keys make,
/// gets a prefix and then a number; which key gets which does not depend on chance.
fn sanitized(labels: Option<&BTreeMap<String, String>>, allowed: &AllowList) -> Vec<(String, String)> {
    let mut names: Vec<(String, String)> = Vec::new();
    let allowed =
        labels.into_iter().flatten().filter(|(key, value)| !value.is_empty() && allowed.allows(key));
    for (key, value) in allowed.take(MAX_LABELS) {
        let mut name: String = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        // A digit cannot come first, and two underscores are Prometheus' own.
        if name.starts_with(|c: char| c.is_ascii_digit()) || name.starts_with("__") {
            name.insert_str(0, "pod_label_");
        }
        let taken = |name: &str| {
            RESERVED.contains(&name)
                || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                || names.iter().any(|(other, _)| other == name)
        };
        if taken(&name) {
            name.insert_str(0, "pod_label_");
        }
        if taken(&name) {
            let free = (1..).map(|n| format!("{name}_conflict{n}")).find(|name| !taken(name));
            name = free.unwrap_or(name);
        }
        names.push((name, value.clone()));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(labels: &[(&str, &str)], allowed: &[&str]) -> Vec<(String, String)> {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let allowed: Vec<String> = allowed.iter().map(|p| (*p).to_owned()).collect();
        sanitized(Some(&labels), &AllowList::new(&allowed))
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn keys_become_names_and_none_takes_anothers_place() {
        assert_eq!(
            names(
                &[("app.kubernetes.io/name", "a"), ("key-with-dashes", "b"), ("3rd", "c"), ("empty", "")],
                &[]
            ),
            [pair("pod_label_3rd", "c"), pair("app_kubernetes_io_name", "a"), pair("key_with_dashes", "b")]
        );
        assert_eq!(
            names(&[("pod", "x"), ("UUID", "y"), ("DCGM_FI_DRIVER_VERSION", "z")], &[]),
            [
                pair("pod_label_DCGM_FI_DRIVER_VERSION", "z"),
                pair("pod_label_UUID", "y"),
                pair("pod_label_pod", "x")
            ]
        );
        assert_eq!(
            names(&[("a-b", "1"), ("a.b", "2"), ("a_b", "3")], &[]),
            [pair("a_b", "1"), pair("pod_label_a_b", "2"), pair("pod_label_a_b_conflict1", "3")]
        );
    }

    #[test]
    fn the_allow_list_and_what_is_left_of_a_bad_one() {
        let labels = [("app", "a"), ("team/x", "b")];
        assert_eq!(names(&labels, &["^app$"]), [pair("app", "a")]);
        assert_eq!(names(&labels, &["^app$", "(", "team"]).len(), 2);
        assert_eq!(names(&labels, &["("]).len(), 2, "none left: no filter");
        assert_eq!(names(&labels, &["nothing"]), []);
    }

    proptest::proptest! {
        #[test]
        fn names_are_valid_and_each_is_there_once(
            labels in proptest::collection::btree_map("[a-z0-9A-Z./_-]{1,12}", "[a-z]{1,3}", 0..12)
        ) {
            let names = sanitized(Some(&labels), &AllowList::default());
            let mut seen = std::collections::HashSet::new();
            for (name, _) in &names {
                proptest::prop_assert!(seen.insert(name.clone()) && !RESERVED.contains(&name.as_str()));
                proptest::prop_assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
                proptest::prop_assert!(!name.starts_with(|c: char| c.is_ascii_digit()));
            }
            proptest::prop_assert_eq!(names.len(), labels.len());
        }
    }
}
