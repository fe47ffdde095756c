//! Owns one look at everything: the truth, the adapter's answers, and what an HPA makes of them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use podgauge_sim_nvml::scenario::Pod;

use super::truth::{Played, Truth};
use crate::aggregator::{AdapterError, Aggregator, Answer};
use crate::hpa::{self, HpaError, ScaledPod};

const METRIC: &str = "gpu_utilization";
/// The HPA of the public how-to: averageValue 60, min 1, max 3.
pub(super) const TARGET: i64 = 60;
pub(super) const MIN: i32 = 1;
pub(super) const MAX: i32 = 3;

/// One look.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reading {
    pub(super) rows: Vec<Row>,
    /// Indices of GPUs that no pod holds.
    pub(super) free: Vec<usize>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) truth: Truth,
    /// Percent; or why there is none.
    pub(super) answer: Result<f64, String>,
    /// What an HPA over the pods of this one's `app` label would do; in the first row of each.
    pub(super) scaling: Option<Scaling>,
}

/// What an HPA would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scaling {
    pub(super) app: String,
    pub(super) current: i32,
    /// Or why it leaves everything as it is.
    pub(super) wanted: Result<i32, String>,
}

/// Asks the adapter for every pod, and as the HPA does for every app.
pub(super) async fn read(played: &Played, aggregator: &Aggregator, now: Timestamp, window_s: f64) -> Reading {
    let scenario = played.now();
    let to = epoch_s(now);
    let mut apps: BTreeMap<(&str, &str), Vec<&Pod>> = BTreeMap::new();
    for pod in &scenario.pods {
        if let Some(app) = pod.labels.get("app") {
            apps.entry((&pod.namespace, app)).or_default().push(pod);
        }
    }
    let rows = scenario.pods.iter().map(|pod| {
        let first_of = pod.labels.get("app").and_then(|app| {
            let pods = &apps[&(pod.namespace.as_str(), app.as_str())];
            std::ptr::eq(pods[0], pod).then_some((app, pods))
        });
        async move {
            let scaling = match first_of {
                Some((app, pods)) => Some(scale(aggregator, &pod.namespace, app, pods).await),
                None => None,
            };
            Row {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                truth: Truth::of(played, pod, to - window_s, to),
                answer: ask(aggregator, pod).await,
                scaling,
            }
        }
    });
    let rows = futures::future::join_all(rows).await;
    let free = (0..scenario.gpus.len())
        .filter(|gpu| rows.iter().all(|row| !row.truth.devices.contains_key(gpu)))
        .collect();
    Reading { rows, free }
}

/// Seconds since the Unix epoch, the scenarios' time.
pub(super) fn epoch_s(time: Timestamp) -> f64 {
    time.as_microsecond() as f64 / 1e6
}

/// One pod's value.
async fn ask(aggregator: &Aggregator, pod: &Pod) -> Result<f64, String> {
    let below = format!("namespaces/{}/pods/{}/{METRIC}", pod.namespace, pod.name);
    let items = items(aggregator.metric_request(&below, Vec::new()).await)?;
    items
        .get(&pod.name)
        .map(|milli| *milli as f64 / 1000.0)
        .ok_or_else(|| "the answer has no item for it".to_owned())
}

/// What an HPA over these pods would do.
async fn scale(aggregator: &Aggregator, namespace: &str, app: &str, pods: &[&Pod]) -> Scaling {
    let scaled: Vec<ScaledPod> = pods
        .iter()
        .map(|pod| ScaledPod {
            name: pod.name.clone(),
            phase: pod.phase.clone(),
            terminating: pod.terminating,
        })
        .collect();
    let current = i32::try_from(scaled.iter().filter(|pod| !pod.terminating).count()).unwrap_or(i32::MAX);
    let wanted =
        items(aggregator.hpa_request(namespace, &format!("app={app}"), METRIC).await).and_then(|items| {
            hpa::propose(current, TARGET * 1000, hpa::TOLERANCE, &scaled, &items)
                .map(|proposal| hpa::bounded(proposal.replicas, MIN, MAX))
                .map_err(|error| error.to_string())
        });
    Scaling { app: app.to_owned(), current, wanted }
}

/// The items of an answer, or its Status message.
fn items(answer: Result<Answer, AdapterError>) -> Result<hpa::Items, String> {
    let answer = answer.map_err(|error| error.to_string())?;
    let body = answer.json().map_err(|_| format!("{}: {}", answer.status, answer.text().trim()))?;
    if answer.status.is_success() {
        return hpa::items(&body).map_err(|error: HpaError| error.to_string());
    }
    Err(match body["message"].as_str() {
        Some(message) => message.to_owned(),
        None => answer.status.to_string(),
    })
}
