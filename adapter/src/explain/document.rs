//! Owns the form of an explanation: written by the adapter, read by `explain`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Why pods have the values they have, or none. Seconds of age count back from the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `MetricExplanation`.
    pub kind: String,
    pub namespace: String,
    pub label_selector: String,
    pub metric_label_selector: String,
    pub metric: String,
    /// Unit of the values and means, such as `%` or `bytes`; empty if the metric has none.
    pub unit: String,
    /// What becomes of several devices' values: `mean`, `sum`, `max`.
    pub aggregation: String,
    pub window_seconds: f64,
    pub staleness_seconds: f64,
    /// Which watch of the cluster fails and why: what was added or deleted since is not in here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch_failure: Option<String>,
    /// By name.
    pub pods: Vec<Pod>,
    /// What an HPA would compute, if a target was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hpa: Option<Hpa>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    pub phase: String,
    pub ready: bool,
    pub terminating: bool,
    /// As the API answers it; absent if the pod is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Of the newest reading in the value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub omitted: Option<Omitted>,
    pub exporters: Vec<Exporter>,
    pub devices: Vec<Device>,
    /// Annotations about GPUs that cannot be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored_annotations: Vec<IgnoredAnnotation>,
}

/// An annotation that cannot be used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IgnoredAnnotation {
    pub annotation: String,
    pub reason: String,
}

/// Why a pod is left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Omitted {
    /// As `podgauge_adapter_omissions_total` counts it.
    pub reason: String,
    pub message: String,
}

/// An exporter whose word counts for the pod's node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exporter {
    pub name: String,
    /// It has podgauge's counters, so that use is integrated and not averaged.
    pub podgauge: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_answer_seconds: Option<f64>,
    /// Why the newest scrape failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The limit that its page exceeds, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
}

/// An exporter's report of a pod on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    pub exporter: String,
    /// UUID, with `/GI` for a MIG instance.
    pub device: String,
    pub labels: BTreeMap<String, String>,
    /// The pod's containers on it, separated by commas; empty if the exporter does not know them.
    pub container: String,
    /// The part of the device that the pod was given; absent if it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<f64>,
    /// Where the part comes from, or why it is not known.
    pub part_source: String,
    /// The newest page reports the pod on it.
    pub present: bool,
    /// Since a page did; absent for a GPU that an annotation names and the pod does not use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen_seconds: Option<f64>,
    /// For which the pod's use of it was observed, ever.
    pub observed_seconds: f64,
    /// The source of the mean: `exporter`, its own sums of the last seconds, or `readings`, the
    /// adapter's; absent without a mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Of the window, gaps left out.
    pub covered_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<f64>,
    /// The window's mean in the unit of the metric. A percentage is of the whole device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
}

/// What a HorizontalPodAutoscaler would compute of these values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hpa {
    pub target_average_value: String,
    pub tolerance: f64,
    pub current_replicas: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replicas: Option<i32>,
    /// Of the pods that have a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average_value: Option<String>,
    /// Average over target, before the unknown pods are taken in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Running pods without a value: on target for shrinking, idle for growing.
    pub missing: Vec<String>,
    /// Pending pods: idle for growing, else left out.
    pub unready: Vec<String>,
    /// Terminating and failed pods.
    pub ignored: Vec<String>,
    /// Within the bounds that were given. Absent where the HPA would fail and hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub not_modelled: String,
}
