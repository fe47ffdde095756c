//! Answers requests for metrics of pods: selects, evaluates, writes the MetricValueList.

use std::sync::Arc;

use http::StatusCode;
use podgauge_common::http::Response;
use podgauge_common::quantity::Quantity;
use serde::Serialize;
use serde_json::Value as Json;

use super::path::{GROUP, MetricPath, Objects, Version};
use super::query::Query;
use super::respond;
use super::status::Status;
use crate::cluster::{PodIndex, PodRecord};
use crate::evaluate::{Now, Omission, Question, Rules, omission, pod_value};
use crate::metric::{Metric, Metrics};
use crate::self_metrics::SelfMetrics;
use crate::source::set::{ExporterSet, Published};

/// Most characters of a selector that a 404 repeats.
const MAX_SELECTOR_CHARS: usize = 200;

/// What answers are made of.
#[derive(Debug)]
pub struct CustomMetrics {
    pub pods: PodIndex,
    pub exporters: Arc<ExporterSet>,
    pub metrics: Arc<Metrics>,
    pub rules: Rules,
    pub self_metrics: SelfMetrics,
}

/// A pod's value as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PodValue {
    pod: Arc<str>,
    value: Quantity,
    /// RFC 3339, seconds.
    timestamp: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<Item> {
    kind: &'static str,
    api_version: String,
    metadata: Empty,
    items: Vec<Item>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedObject<'a> {
    kind: &'static str,
    namespace: &'a str,
    name: &'a str,
    api_version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ItemV1beta1<'a> {
    described_object: DescribedObject<'a>,
    metric_name: &'a str,
    timestamp: &'a str,
    window: u64,
    value: String,
    selector: &'a Json,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ItemV1beta2<'a> {
    described_object: DescribedObject<'a>,
    metric: MetricIdentifier<'a>,
    timestamp: &'a str,
    window_seconds: u64,
    value: String,
}

#[derive(Serialize)]
struct MetricIdentifier<'a> {
    name: &'a str,
    /// `null` without one: the field itself is required.
    selector: &'a Json,
}

impl CustomMetrics {
    /// Answers a request for a metric of objects.
    pub(super) fn answer(&self, path: &MetricPath, query: &Query) -> Result<Response, Status> {
        query.check_fields(&path.objects)?;
        let what = describe(path, query);
        let missing = |why: &str| Status::no_metric(&path.metric, &what, why);
        let namespace = match (path.resource.as_str(), &path.namespace) {
            ("pods", Some(namespace)) => namespace,
            ("pods", None) => {
                return Err(missing("pods are in namespaces: ask for …/namespaces/NAMESPACE/pods/…"));
            }
            _ => return Err(missing("only pods have metrics here")),
        };
        let metric = self.metrics.get(&path.metric).ok_or_else(|| {
            let served: Vec<&str> = self.metrics.served().iter().map(|metric| &*metric.name).collect();
            missing(&format!("this adapter serves {}", served.join(", ")))
        })?;
        let (values, omissions) = self.evaluate(namespace, path, query, metric, &Now::read());
        omissions.iter().for_each(|omission| self.self_metrics.omitted(omission));
        if values.is_empty() {
            let why = match (&omissions[..], &path.objects) {
                ([], Objects::Selected) if !self.pods.synced() => {
                    "the pods of the cluster are not known yet".to_owned()
                }
                ([], Objects::Named(name)) => format!("there is no pod {name} in namespace {namespace}"),
                ([], Objects::Selected) => format!("no pod in namespace {namespace} matches"),
                ([omission], Objects::Named(_)) => omission.to_string(),
                (omissions, _) => omission::summary(omissions),
            };
            return Err(missing(&why));
        }
        let selector = query.metric_label_selector.to_json();
        let window = self.rules.window.as_secs();
        Ok(write(path.version, namespace, &metric.name, &selector, window, &values, query.pretty))
    }

    fn evaluate(
        &self,
        namespace: &str,
        path: &MetricPath,
        query: &Query,
        metric: &Metric,
        now: &Now,
    ) -> (Vec<PodValue>, Vec<Omission>) {
        let exporters = self.exporters.current();
        let mut values = Vec::new();
        let mut omissions = Vec::new();
        let pods = match &path.objects {
            Objects::Selected => self.pods.select(namespace, &query.label_selector),
            Objects::Named(name) => {
                let pod = self.pods.pod(namespace, name);
                pod.map(|pod| (Arc::from(name.as_str()), pod)).into_iter().collect()
            }
        };
        for (name, pod) in pods {
            let question = Question { namespace, pod: &name, metric, devices: &query.metric_label_selector };
            match self.pod(&question, &pod, &exporters, now) {
                Ok((value, timestamp)) => values.push(PodValue { pod: name, value, timestamp }),
                Err(omission) => omissions.push(omission),
            }
        }
        (values, omissions)
    }

    fn pod(
        &self,
        question: &Question<'_>,
        pod: &PodRecord,
        exporters: &Published,
        now: &Now,
    ) -> Result<(Quantity, String), Omission> {
        let node = pod.node.as_deref().unwrap_or_default();
        let states: Vec<_> = exporters
            .of_node(node, now.instant, self.rules.staleness)
            .map(|exporter| exporter.state.read())
            .collect();
        let states: Vec<_> = states.iter().map(|state| &**state).collect();
        let value = pod_value(question, pod, &states, &self.rules, now)?;
        let quantity = Quantity::from_f64(value.value).ok_or(Omission::OutOfRange)?;
        Ok((quantity, now.wall_time(value.at).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()))
    }
}

/// Resource, object and selector, as the text of a 404 names them.
fn describe(path: &MetricPath, query: &Query) -> String {
    let mut what = path.resource.clone();
    if let Objects::Named(name) = &path.objects {
        what.push(' ');
        what.push_str(name);
    }
    if !query.metric_label_selector.is_empty() {
        what.push_str(" with selector ");
        // The reason that follows is what people need to see.
        what.extend(query.metric_labels.chars().take(MAX_SELECTOR_CHARS));
    }
    what
}

fn write(
    version: Version,
    namespace: &str,
    metric: &str,
    selector: &Json,
    window: u64,
    values: &[PodValue],
    pretty: bool,
) -> Response {
    let object = |pod| DescribedObject { kind: "Pod", namespace, name: pod, api_version: "v1" };
    let api_version = format!("{GROUP}/{}", version.as_str());
    match version {
        Version::V1beta1 => list(api_version, pretty, values, |value| ItemV1beta1 {
            described_object: object(&value.pod),
            metric_name: metric,
            timestamp: &value.timestamp,
            window,
            value: value.value.to_string(),
            selector,
        }),
        Version::V1beta2 => list(api_version, pretty, values, |value| ItemV1beta2 {
            described_object: object(&value.pod),
            metric: MetricIdentifier { name: metric, selector },
            timestamp: &value.timestamp,
            window_seconds: window,
            value: value.value.to_string(),
        }),
    }
}

fn list<'v, Item: Serialize>(
    api_version: String,
    pretty: bool,
    values: &'v [PodValue],
    item: impl Fn(&'v PodValue) -> Item,
) -> Response {
    let items = values.iter().map(item).collect();
    let list = List { kind: "MetricValueList", api_version, metadata: Empty {}, items };
    respond::json(StatusCode::OK, &list, pretty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Selector;
    use http_body_util::BodyExt as _;

    async fn body(version: Version, selector: &str, value: f64) -> String {
        let values = [PodValue {
            pod: "p".into(),
            value: Quantity::from_f64(value).unwrap(),
            timestamp: "2026-11-21T16:23:02Z".to_owned(),
        }];
        let selector = Selector::parse(selector).unwrap().to_json();
        let response = write(version, "demo", "gpu_utilization", &selector, 60, &values, false);
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_404_names_the_selector_but_does_not_drown_in_it() {
        let path =
            crate::apiserver::path::Path::parse("/apis/custom.metrics.k8s.io/v1beta2/namespaces/n/pods/p/m");
        let super::super::path::Route::Metric(path) = path.unwrap().route() else { panic!() };
        let what = |query: &str| describe(&path, &Query::parse(Some(query)).unwrap());
        assert_eq!(what(""), "pods p");
        assert_eq!(what("metricLabelSelector=gpu%3D0,device"), "pods p with selector gpu=0,device");
        let long = format!("metricLabelSelector={}", vec!["abcdefghi"; 500].join(","));
        assert!(what(&long).len() < 250);
    }

    #[tokio::test]
    async fn v1beta2_is_written_as_clients_read_it() {
        assert_eq!(
            body(Version::V1beta2, "", 63.5).await,
            concat!(
                r#"{"kind":"MetricValueList","apiVersion":"custom.metrics.k8s.io/v1beta2","metadata":{},"items":["#,
                r#"{"describedObject":{"kind":"Pod","namespace":"demo","name":"p","apiVersion":"v1"},"#,
                r#""metric":{"name":"gpu_utilization","selector":null},"#,
                r#""timestamp":"2026-11-21T16:23:02Z","windowSeconds":60,"value":"63500m"}]}"#,
                "\n"
            )
        );
    }

    #[tokio::test]
    async fn v1beta1_is_written_as_clients_read_it() {
        assert_eq!(
            body(Version::V1beta1, "modelName=H100", 1000.0).await,
            concat!(
                r#"{"kind":"MetricValueList","apiVersion":"custom.metrics.k8s.io/v1beta1","metadata":{},"items":["#,
                r#"{"describedObject":{"kind":"Pod","namespace":"demo","name":"p","apiVersion":"v1"},"#,
                r#""metricName":"gpu_utilization","timestamp":"2026-11-21T16:23:02Z","window":60,"value":"1k","#,
                r#""selector":{"matchLabels":{"modelName":"H100"}}}]}"#,
                "\n"
            )
        );
    }
}
