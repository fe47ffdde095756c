//! The aggregated API: what kube-apiserver asks of it with no client asking, and the answers' form.

use http::HeaderMap;
use podgauge_sim::aggregator::Protocol;
use podgauge_tests::cluster::Cluster;
use podgauge_tests::wait::until;
use serde_json::json;

const NODE: &str =
    "gpus: [{load: {constant: 64}}]\npods: [{name: a, labels: {app: a}, containers: [{devices: [\"0\"]}]}]";

#[tokio::test]
async fn availability_discovery_and_openapi_are_answered_over_both_protocols() {
    let cluster = Cluster::start(NODE).await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let aggregator = cluster.aggregator_with(|settings| settings.protocol = protocol);
        until("the APIServices to be available", || async {
            let found = aggregator.check_availability().await;
            let available = found.len() == 2 && found.iter().all(|api| api.status.as_str() == "True");
            if available { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
        let discovery = aggregator.discovery_requests().await.unwrap();
        assert!(discovery.iter().all(|answer| answer.status == 200), "{discovery:?}");
        let listed: String = discovery.iter().map(podgauge_sim::aggregator::Answer::text).collect();
        assert!(listed.contains("gpu_utilization"), "{listed}");
        let v2 = aggregator.openapi_v2().await.unwrap();
        assert_eq!((v2.status.as_u16(), v2.json().unwrap()["swagger"].as_str()), (200, Some("2.0")));
        let v3 = aggregator.openapi_v3().await.unwrap();
        assert!(
            v3.json().unwrap()["paths"]["apis/custom.metrics.k8s.io/v1beta2"].is_object(),
            "{}",
            v3.text()
        );
    }
    // Clients that do not know the aggregated form get the plain one, never empty.
    let admin = headers_of_admin();
    for version in ["v1beta1", "v1beta2"] {
        let path = format!("/apis/custom.metrics.k8s.io/{version}");
        let list = cluster.adapter.get(None, &path, admin.clone()).await.unwrap().json().unwrap();
        let pods = json!({"name": "pods/gpu_utilization", "singularName": "", "namespaced": true, "kind": "MetricValueList", "verbs": ["get"]});
        assert!(list["resources"].as_array().unwrap().contains(&pods), "{list}");
        assert_eq!(list["groupVersion"], path["/apis/".len()..]);
    }
}

fn headers_of_admin() -> HeaderMap {
    podgauge_tests::cluster::headers(&[("authorization", "Bearer sim-admin"), ("accept", "application/json")])
}

#[tokio::test]
async fn both_versions_have_their_exact_form() {
    let cluster = Cluster::start(NODE).await;
    let aggregator = cluster.aggregator();
    cluster.value(&aggregator, "a", "gpu_utilization").await;
    let get = async |version: &str| {
        let path = format!(
            "/apis/custom.metrics.k8s.io/{version}/namespaces/demo/pods/%2A/gpu_utilization?labelSelector=app%3Da"
        );
        // It takes a window until all of the window is covered.
        let mut list = until("a whole window", || async {
            let answer = cluster.adapter.get(None, &path, headers_of_admin()).await.unwrap();
            assert_eq!(answer.content_type(), Some("application/json"));
            let list = answer.json().unwrap();
            let of_item = |name: &str| list["items"][0][name].as_u64();
            if of_item("windowSeconds").or(of_item("window")) == Some(10) { Ok(list) } else { Err(list) }
        })
        .await;
        let timestamp = list["items"][0]["timestamp"].take();
        assert!(
            timestamp.as_str().unwrap().len() == 20 && timestamp.as_str().unwrap().ends_with('Z'),
            "{timestamp}"
        );
        list
    };
    let object = json!({"kind": "Pod", "namespace": "demo", "name": "a", "apiVersion": "v1"});
    assert_eq!(
        get("v1beta2").await,
        json!({"kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta2", "metadata": {}, "items": [
            {"describedObject": object, "metric": {"name": "gpu_utilization", "selector": null}, "timestamp": null, "windowSeconds": 10, "value": "64"}
        ]})
    );
    assert_eq!(
        get("v1beta1").await,
        json!({"kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta1", "metadata": {}, "items": [
            {"describedObject": object, "metricName": "gpu_utilization", "selector": null, "timestamp": null, "window": 10, "value": "64"}
        ]})
    );
}

#[tokio::test]
async fn what_cannot_be_answered_is_a_status_with_its_code() {
    let cluster = Cluster::start(NODE).await;
    let base = "/apis/custom.metrics.k8s.io/v1beta2";
    for (path, code) in [
        ("/namespaces/demo/pods/%2A/gpu_utilization?labelSelector=app%3D%3D%3Da", 400),
        ("/namespaces/demo/pods/a/gpu_utilization?fieldSelector=metadata.name%3Db", 400),
        ("/namespaces/demo/services/web/gpu_utilization", 404),
        ("/namespaces/demo/pods/nobody/gpu_utilization", 404),
        ("/namespaces/demo/pods/a", 404),
        ("/nonsense", 404),
        ("/namespaces/demo/pods/..%2f..%2fsecrets/gpu_utilization", 400),
    ] {
        let answer = cluster.adapter.get(None, &format!("{base}{path}"), headers_of_admin()).await.unwrap();
        assert_eq!(answer.status, code, "{path}: {}", answer.text());
        let status = answer.json().unwrap_or_else(|error| panic!("{path}: {error}: {}", answer.text()));
        assert_eq!(
            (status["kind"].as_str(), status["code"].as_u64()),
            (Some("Status"), Some(u64::from(code))),
            "{status}"
        );
        assert_eq!(status["status"], "Failure");
    }
}
