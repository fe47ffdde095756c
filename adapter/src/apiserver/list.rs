//! Owns the form of a MetricValueList, in both versions.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use podgauge_common::http::Response;
use podgauge_common::quantity::Quantity;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use super::path::{GROUP, Version};
use super::respond;

/// An object's value as it is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) name: Arc<str>,
    pub(super) value: Quantity,
    /// RFC 3339, seconds.
    pub(super) timestamp: Arc<str>,
    /// Seconds of the window that the value is made of.
    pub(super) covered: f64,
}

/// What all items of an answer have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Described<'a> {
    /// `Pod`, `Node` or `Namespace`.
    pub(super) kind: &'static str,
    pub(super) namespace: Option<&'a str>,
    pub(super) metric: &'a str,
    /// `metricLabelSelector` as an object, or null.
    pub(super) selector: &'a Json,
    /// The time that the values are means over.
    pub(super) window: Duration,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
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
    #[serde(serialize_with = "as_text")]
    value: Quantity,
    selector: &'a Json,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ItemV1beta2<'a> {
    described_object: DescribedObject<'a>,
    metric: MetricIdentifier<'a>,
    timestamp: &'a str,
    window_seconds: u64,
    #[serde(serialize_with = "as_text")]
    value: Quantity,
}

/// Without a text of its own for each of thousands.
fn as_text<S: Serializer>(value: &Quantity, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

#[derive(Serialize)]
struct MetricIdentifier<'a> {
    name: &'a str,
    /// `null` without one: the field itself is required.
    selector: &'a Json,
}

impl Item {
    /// The time that the value is really a mean over: the window, or what is covered of it.
    fn seconds_of(&self, window: Duration) -> u64 {
        (self.covered.round() as u64).min(window.as_secs()).max(1)
    }
}

/// The answer that holds these items.
pub(super) fn write(version: Version, what: &Described<'_>, items: &[Item], pretty: bool) -> Response {
    let Described { kind, namespace, metric, selector, window } = *what;
    let object = |name| DescribedObject { kind, namespace, name, api_version: "v1" };
    let api_version = format!("{GROUP}/{}", version.as_str());
    match version {
        Version::V1beta1 => list(api_version, pretty, items, |item| ItemV1beta1 {
            described_object: object(&item.name),
            metric_name: metric,
            timestamp: &item.timestamp,
            window: item.seconds_of(window),
            value: item.value,
            selector,
        }),
        Version::V1beta2 => list(api_version, pretty, items, |item| ItemV1beta2 {
            described_object: object(&item.name),
            metric: MetricIdentifier { name: metric, selector },
            timestamp: &item.timestamp,
            window_seconds: item.seconds_of(window),
            value: item.value,
        }),
    }
}

fn list<'v, Written: Serialize>(
    api_version: String,
    pretty: bool,
    items: &'v [Item],
    item: impl Fn(&'v Item) -> Written,
) -> Response {
    let items = items.iter().map(item).collect();
    let list = List { kind: "MetricValueList", api_version, metadata: Empty {}, items };
    respond::json(StatusCode::OK, &list, pretty)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::cluster::Selector;

    async fn body(version: Version, kind: &'static str, selector: &str, value: f64) -> String {
        let items = [Item {
            name: "p".into(),
            value: Quantity::from_f64(value).unwrap(),
            timestamp: "2026-11-21T16:23:02Z".into(),
            covered: 59.8,
        }];
        let selector = &Selector::parse(selector).unwrap().to_json();
        let namespace = (kind == "Pod").then_some("demo");
        let window = Duration::from_secs(60);
        let what = Described { kind, namespace, metric: "gpu_utilization", selector, window };
        let response = write(version, &what, &items, false);
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn v1beta2_is_written_as_clients_read_it() {
        assert_eq!(
            body(Version::V1beta2, "Pod", "", 63.5).await,
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
            body(Version::V1beta1, "Pod", "modelName=H100", 1000.0).await,
            concat!(
                r#"{"kind":"MetricValueList","apiVersion":"custom.metrics.k8s.io/v1beta1","metadata":{},"items":["#,
                r#"{"describedObject":{"kind":"Pod","namespace":"demo","name":"p","apiVersion":"v1"},"#,
                r#""metricName":"gpu_utilization","timestamp":"2026-11-21T16:23:02Z","window":60,"value":"1k","#,
                r#""selector":{"matchLabels":{"modelName":"H100"}}}]}"#,
                "\n"
            )
        );
    }

    #[test]
    fn the_window_is_what_is_covered_of_it() {
        let seconds = |covered: f64| {
            let value = Quantity::from_f64(1.0).unwrap();
            Item { name: "p".into(), value, timestamp: "".into(), covered }
                .seconds_of(Duration::from_secs(60))
        };
        assert_eq!([0.2, 4.9, 59.4, 59.6, 74.0].map(seconds), [1, 5, 59, 60, 60]);
    }

    #[tokio::test]
    async fn what_is_in_no_namespace_names_none() {
        for kind in ["Node", "Namespace"] {
            let object = format!(r#""describedObject":{{"kind":"{kind}","name":"p","apiVersion":"v1"}}"#);
            for version in [Version::V1beta1, Version::V1beta2] {
                let body = body(version, kind, "", 0.0).await;
                assert!(body.contains(&object) && body.contains(r#""value":"0""#), "{body}");
            }
        }
    }
}
