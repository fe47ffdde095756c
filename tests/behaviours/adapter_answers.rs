//! Every kind of object that has metrics, in both versions, and what is said where there is no answer.

use http::HeaderMap;
use podgauge_sim::apiserver::{
    Access, ApiServer, ApiServerOptions, Exporter as Endpoint, Review, Rule, User, Wanted,
};
use podgauge_sim::hpa;
use podgauge_tests::cluster::{Adapter, Cluster, headers, number};
use podgauge_tests::node::Node;
use podgauge_tests::wait::until;
use serde_json::{Value, json};

const NODE: &str = "
gpus: [{load: {constant: 80}}, {load: {constant: 20}}, {load: {constant: 50}}, {load: {constant: 10}}]
pods:
  - {name: a, labels: {app: a}, containers: [{devices: [\"0\"]}]}
  - {name: b, labels: {app: b}, containers: [{devices: [\"1\"]}]}
  - {name: web, labels: {app: web}, containers: [{}]}
  - {name: far, namespace: other, labels: {app: a}, containers: [{devices: [\"2\"]}]}
";

fn admin() -> HeaderMap {
    headers(&[("authorization", "Bearer sim-admin")])
}

/// GETs below a version until the answer is 200, and gives its body.
async fn answered(cluster: &Cluster, version: &str, below: &str) -> Value {
    until(below, || async {
        let path = format!("/apis/custom.metrics.k8s.io/{version}/{below}");
        let answer = cluster.adapter.get(None, &path, admin()).await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(answer.json().unwrap()) } else { Err(answer.text()) }
    })
    .await
}

/// The list with what changes from second to second taken out.
fn timeless(mut list: Value) -> Value {
    for item in list["items"].as_array_mut().unwrap() {
        let timestamp = item["timestamp"].take();
        let timestamp = timestamp.as_str().unwrap();
        assert!(timestamp.len() == 20 && timestamp.ends_with('Z'), "{timestamp}");
    }
    list
}

/// The list as it is once all of the window is covered.
fn of_a_whole_window(mut list: Value) -> Value {
    for item in list["items"].as_array_mut().unwrap() {
        for name in ["window", "windowSeconds"] {
            if let Some(window) = item.get_mut(name) {
                *window = json!(10);
            }
        }
    }
    list
}

fn v1beta1(kind: &str, name: &str, value: &str) -> Value {
    json!({"kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta1", "metadata": {}, "items": [
        {"describedObject": {"kind": kind, "name": name, "apiVersion": "v1"}, "metricName": "gpu_utilization",
         "timestamp": null, "window": 10, "value": value, "selector": null}]})
}

fn v1beta2(kind: &str, name: &str, value: &str) -> Value {
    json!({"kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta2", "metadata": {}, "items": [
        {"describedObject": {"kind": kind, "name": name, "apiVersion": "v1"}, "metric": {"name": "gpu_utilization", "selector": null},
         "timestamp": null, "windowSeconds": 10, "value": value}]})
}

#[tokio::test]
async fn nodes_and_namespaces_are_answered_in_both_versions() {
    let cluster = Cluster::start(NODE).await;
    let aggregator = cluster.aggregator();
    for pod in ["a", "b"] {
        cluster.value(&aggregator, pod, "gpu_utilization").await;
    }
    // Four devices, the free one too; two pods with a value, the one without a GPU left out.
    for (below, kind, name, value) in [
        ("nodes/gpu-node-0/gpu_utilization", "Node", "gpu-node-0", "40"),
        ("nodes/%2A/gpu_utilization", "Node", "gpu-node-0", "40"),
        (
            "nodes/%2A/gpu_utilization?labelSelector=kubernetes.io%2Fhostname%3Dgpu-node-0",
            "Node",
            "gpu-node-0",
            "40",
        ),
        ("namespaces/demo/metrics/gpu_utilization", "Namespace", "demo", "50"),
        ("namespaces/other/metrics/gpu_utilization", "Namespace", "other", "50"),
        (
            "namespaces/%2A/metrics/gpu_utilization?labelSelector=kubernetes.io%2Fmetadata.name%3Ddemo",
            "Namespace",
            "demo",
            "50",
        ),
    ] {
        for (version, expected) in
            [("v1beta1", v1beta1(kind, name, value)), ("v1beta2", v1beta2(kind, name, value))]
        {
            // It takes a window until all of the window is covered.
            until(&format!("{below} in {version}, of the whole window"), || async {
                let answer = timeless(answered(&cluster, version, below).await);
                assert_eq!(of_a_whole_window(answer.clone()), expected, "{below}");
                if answer == expected { Ok(()) } else { Err(answer) }
            })
            .await;
        }
    }
    let all = answered(&cluster, "v1beta2", "namespaces/%2A/metrics/gpu_utilization").await;
    let names: Vec<&str> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["describedObject"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["demo", "other"]);
    // Of the devices that a metricLabelSelector leaves.
    let free =
        answered(&cluster, "v1beta2", "nodes/gpu-node-0/gpu_utilization?metricLabelSelector=gpu%3D3").await;
    assert_eq!(free["items"][0]["value"], "10");
    assert_eq!(free["items"][0]["metric"]["selector"], json!({"matchLabels": {"gpu": "3"}}));
    // The HPA asks for a Namespace object like this, and reads one item.
    let answer = aggregator.metric_request("namespaces/demo/metrics/gpu_utilization", vec![]).await.unwrap();
    assert_eq!(hpa::items(&answer.json().unwrap()).unwrap()["demo"], 50_000, "{}", answer.text());
    let power = answered(&cluster, "v1beta2", "nodes/gpu-node-0/gpu_power_watts").await;
    assert!(number(&power["items"][0]["value"]) > 0.0, "{power}");
}

#[tokio::test]
async fn where_there_is_no_answer_the_404_says_why() {
    let cluster = Cluster::start(NODE).await;
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    let not_found = async |below: &str| {
        let path = format!("/apis/custom.metrics.k8s.io/v1beta2/{below}");
        let answer = cluster.adapter.get(None, &path, admin()).await.unwrap();
        let status = answer.json().unwrap();
        assert_eq!(
            (answer.status.as_u16(), &status["kind"], &status["reason"]),
            (404, &json!("Status"), &json!("NotFound")),
            "{below}"
        );
        assert_eq!(
            (&status["apiVersion"], &status["status"], &status["code"]),
            (&json!("v1"), &json!("Failure"), &json!(404))
        );
        status["message"].as_str().unwrap().to_owned()
    };
    for (below, message) in [
        (
            "nodes/gpu-node-9/gpu_utilization",
            "the server could not find the metric gpu_utilization for nodes gpu-node-9: there is no node gpu-node-9",
        ),
        (
            "nodes/%2A/gpu_utilization?labelSelector=pool%3Dcpu",
            "the server could not find the metric gpu_utilization for nodes: no node matches",
        ),
        (
            "namespaces/nowhere/metrics/gpu_utilization",
            "the server could not find the metric gpu_utilization for namespaces nowhere: there is no namespace nowhere",
        ),
        (
            "namespaces/podgauge/metrics/gpu_utilization",
            "the server could not find the metric gpu_utilization for namespaces podgauge: no pod in namespace podgauge matches",
        ),
        (
            "namespaces/demo/pods/web/gpu_utilization",
            "the server could not find the metric gpu_utilization for pods web: exporter on node gpu-node-0 knows of no GPU that it uses",
        ),
        (
            "namespaces/demo/pods/%2A/gpu_utilization?labelSelector=app%3Dnone",
            "the server could not find the metric gpu_utilization for pods: no pod in namespace demo matches",
        ),
        (
            "namespaces/demo/nodes/gpu-node-0/gpu_utilization",
            "the server could not find the metric gpu_utilization for nodes gpu-node-0: nodes are in no namespace: ask for …/nodes/…",
        ),
        (
            "namespaces/demo/deployments.apps/a/gpu_utilization",
            "the server could not find the metric gpu_utilization for deployments.apps a: only pods, nodes and namespaces have metrics here",
        ),
    ] {
        assert_eq!(not_found(below).await, message, "{below}");
    }
    let unknown = not_found("nodes/%2A/gpu_nonsense").await;
    assert!(unknown.contains("this adapter serves gpu_utilization, "), "{unknown}");
}

/// The labels that there are, and a model's name as a selector can hold it.
#[tokio::test]
async fn a_selector_that_matches_no_device_is_answered_with_the_labels_that_there_are() {
    let cluster = Cluster::start(NODE).await;
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    cluster.value(&cluster.aggregator(), "b", "gpu_utilization").await;
    let page = cluster.exporter.as_ref().unwrap().page().await;
    let model = page.all("podgauge_gpu_up", &[])[0].labels["modelName"].clone();
    assert!(model.contains(' '), "{model}");
    let dashed = model.replace(' ', "-");
    let ask = async |below: &str, selector: &str| {
        until("an answer", || async {
            let query = vec![("metricLabelSelector".to_owned(), selector.to_owned())];
            let answer = cluster.aggregator().metric_request(below, query).await.unwrap();
            match answer.status.as_u16() {
                // The API server has not said in time whether this is allowed.
                500 => Err(answer.text()),
                status => Ok((status, answer.text())),
            }
        })
        .await
    };
    let pods = "namespaces/demo/pods/*/gpu_utilization";
    for below in [pods, "nodes/gpu-node-0/gpu_utilization"] {
        assert_eq!(ask(below, &format!("modelName={dashed}")).await.0, 200, "{dashed}");
        assert_eq!(ask(below, &format!("modelName in (x,{dashed}),gpu=0")).await.0, 200, "{dashed}");
        assert_eq!(ask(below, &format!("modelName!={dashed}")).await.0, 404, "{dashed}");
        // The values of the labels that are asked for; each pod has other devices.
        let (status, text) = ask(below, "modelName=A100,gpu in (7,8)").await;
        assert_eq!(status, 404);
        let gpus = if below == pods { "gpu=0|1," } else { "gpu=0|1|2|3," };
        assert!(text.contains(gpus) && text.contains(&format!("modelName={dashed}")), "{text}");
        // A label that there is not: all of those that there are.
        let (status, text) = ask(below, "pool=gpu").await;
        assert_eq!(status, 404);
        for words in ["no device has the label pool", "UUID=GPU-", "hostname=gpu-node-0", &dashed] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
    let path = format!("{pods}/explain");
    let query = vec![("metricLabelSelector".to_owned(), "pool=gpu".to_owned())];
    let explained = cluster.aggregator().metric_request(&path, query).await.unwrap().json().unwrap();
    let message = explained["pods"][0]["omitted"]["message"].as_str().unwrap();
    assert!(message.contains("no device has the label pool, there is UUID=GPU-"), "{message}");
}

#[tokio::test]
async fn selectors_that_kubernetes_refuses_are_refused() {
    let cluster = Cluster::start(NODE).await;
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    for selector in [
        "app in ()",
        "app notin ( )",
        "-x.io/k",
        "x-.io/k=1",
        "x.io/-k",
        "app=a\u{a0}",
        "app\u{3000}in (a)",
        "\u{b}app",
    ] {
        for parameter in ["labelSelector", "metricLabelSelector"] {
            let query = vec![(parameter.to_owned(), selector.to_owned())];
            let below = "namespaces/demo/pods/*/gpu_utilization";
            let answer = cluster.aggregator().metric_request(below, query).await.unwrap();
            assert_eq!(answer.status, 400, "{parameter}={selector:?}: {}", answer.text());
            assert!(answer.text().contains(&format!("unable to parse {parameter}")), "{}", answer.text());
        }
    }
    let query = vec![("labelSelector".to_owned(), "\t app in (a,)\n".to_owned())];
    let answer = cluster.aggregator().metric_request("namespaces/demo/pods/*/gpu_utilization", query).await;
    assert_eq!(answer.unwrap().status, 200, "blanks of ASCII separate words");
}

/// HEAD, pretty, watch and fieldSelector, for each kind of object.
#[tokio::test]
async fn requests_are_read_as_an_api_server_reads_them() {
    let cluster = Cluster::start(NODE).await;
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    let base = "/apis/custom.metrics.k8s.io/v1beta2";
    for below in ["namespaces/demo/pods/a", "namespaces/demo/metrics", "nodes/gpu-node-0", "nodes/%2A"] {
        let path = format!("{base}/{below}/gpu_utilization");
        let get =
            async |query: &str| cluster.adapter.get(None, &format!("{path}?{query}"), admin()).await.unwrap();
        let plain = get("").await;
        assert_eq!(plain.status, 200, "{below}: {}", plain.text());
        assert_eq!(get("watch=true&timeoutSeconds=600").await.json().unwrap()["kind"], "MetricValueList");
        assert!(get("pretty=true").await.text().starts_with("{\n  \"kind\": \"MetricValueList\""), "{below}");
        assert_eq!(get("labelSelector=a%3D%3D%3Db").await.status, 400, "{below}");
        assert_eq!(get("fieldSelector=metadata.name%3Dnobody").await.status, 400, "{below}");
        assert_eq!(get("fieldSelector=spec.nodeName%3Dx").await.status, 400, "{below}");
        // Protobuf is asked for first, and anything is taken: never a 406.
        for accept in
            ["application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf, */*", "text/html"]
        {
            let mut asked = admin();
            asked.insert("accept", accept.parse().unwrap());
            let answer = cluster.adapter.get(None, &path, asked).await.unwrap();
            assert_eq!(
                (answer.status.as_u16(), answer.content_type()),
                (200, Some("application/json")),
                "{accept}"
            );
        }
    }
    let path = format!("{base}/nodes/gpu-node-0/gpu_utilization?fieldSelector=metadata.name%3Dgpu-node-0");
    assert_eq!(cluster.adapter.get(None, &path, admin()).await.unwrap().status, 200);
    let client = podgauge_sim::aggregator::AdapterClient::new(
        cluster.adapter.address,
        podgauge_tests::cluster::SERVICE,
        cluster.adapter.authority.pem(),
        None,
        podgauge_sim::aggregator::Protocol::Http2,
    )
    .unwrap();
    for (method, code) in [(http::Method::HEAD, 200), (http::Method::POST, 405), (http::Method::DELETE, 405)]
    {
        let limit = std::time::Duration::from_secs(20);
        let answer = client.send(method.clone(), &path, admin(), limit).await.unwrap();
        assert_eq!(answer.status, code, "{method}");
        if method == http::Method::HEAD {
            assert!(answer.body.is_empty());
        } else {
            assert_eq!(answer.json().unwrap()["reason"], "MethodNotAllowed");
        }
    }
}

/// What is authorized, row by row: as kube-apiserver's authorizer reads the same path.
#[tokio::test]
async fn each_path_is_authorized_as_what_it_is() {
    let cluster = Cluster::start(NODE).await;
    let proxy = cluster.server.certificates().front_proxy_client.clone();
    let base = "/apis/custom.metrics.k8s.io/v1beta1";
    for (at, (below, namespace, resource, name, subresource)) in [
        ("nodes/n1/m", "", "nodes", "n1", "m"),
        ("nodes/%2A/m?labelSelector=a%3Db", "", "nodes", "*", "m"),
        ("namespaces/demo/pods/a/m", "demo", "pods", "a", "m"),
        ("namespaces/demo/pods/%2A/m", "demo", "pods", "*", "m"),
        ("namespaces/demo/pods/%2A/m/explain", "demo", "pods", "*", "m"),
        ("namespaces/demo/services/web/m", "demo", "services", "web", "m"),
        ("namespaces/demo/metrics/m", "demo", "metrics", "m", ""),
        ("namespaces/%2A/metrics/m", "*", "metrics", "m", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let user = format!("user-{at}");
        let asked = headers(&[("x-remote-user", &user)]);
        let answer = cluster.adapter.get(Some(&proxy), &format!("{base}/{below}"), asked).await.unwrap();
        assert_eq!(answer.status, 403, "{below}: {}", answer.text());
        assert_eq!(answer.json().unwrap()["reason"], "Forbidden");
        let wanted = cluster.server.reviews().into_iter().find_map(|review| match review {
            Review::Access { user: User { username, .. }, wanted: Wanted::Resource(wanted), .. }
                if username == user =>
            {
                Some(wanted)
            }
            _ => None,
        });
        let wanted = wanted.unwrap_or_else(|| panic!("{below} was not asked about"));
        assert_eq!(
            [&wanted.verb, &wanted.namespace, &wanted.resource, &wanted.name, &wanted.subresource]
                .map(String::as_str),
            ["get", namespace, resource, name, subresource],
            "{below}"
        );
        assert_eq!((wanted.group.as_str(), wanted.version.as_str()), ("custom.metrics.k8s.io", "v1beta1"));
    }
}

/// The HPA takes whatever is in the list: what it must not see must not be there.
#[tokio::test]
async fn foreign_pods_are_never_in_the_list_and_no_list_is_empty() {
    let cluster = Cluster::start(NODE).await;
    let aggregator = cluster.aggregator();
    for pod in ["a", "b"] {
        cluster.value(&aggregator, pod, "gpu_utilization").await;
    }
    for (selector, expected) in [
        ("app=a", &["a"][..]),
        ("app in (a,b)", &["a", "b"]),
        ("app!=a", &["b"]),
        ("app in (a,web),app notin (a)", &[]),
        ("app=web", &[]),
        ("!app", &[]),
    ] {
        let answer = aggregator.hpa_request("demo", selector, "gpu_utilization").await.unwrap();
        if expected.is_empty() {
            assert_eq!(answer.status, 404, "{selector}: never a 200 without items: {}", answer.text());
            assert_eq!(answer.json().unwrap()["kind"], "Status");
            continue;
        }
        let items = hpa::items(&answer.json().unwrap()).unwrap();
        assert_eq!(items.keys().map(String::as_str).collect::<Vec<_>>(), expected, "{selector}");
    }
}

/// The HPA asks for the version that the APIServices prefer, whichever it is.
#[tokio::test]
async fn an_hpa_reads_either_version() {
    let cluster = Cluster::start(NODE).await;
    for version in ["v1beta1", "v1beta2"] {
        let aggregator =
            cluster.aggregator_with(|settings| settings.api_services.retain(|api| api.version == version));
        cluster.value(&aggregator, "a", "gpu_utilization").await;
        let answer = aggregator.hpa_request("demo", "app=a", "gpu_utilization").await.unwrap();
        assert_eq!(answer.json().unwrap()["apiVersion"], format!("custom.metrics.k8s.io/{version}"));
        assert_eq!(hpa::items(&answer.json().unwrap()).unwrap()["a"], 80_000, "{}", answer.text());
        // As an HPA reads a Service's metric: an error, with the reason.
        let object =
            aggregator.metric_request("namespaces/demo/services/web/gpu_utilization", vec![]).await.unwrap();
        assert_eq!((object.status.as_u16(), &object.json().unwrap()["kind"]), (404, &json!("Status")));
    }
}

#[tokio::test]
async fn a_metrics_window_and_aggregation_are_the_operators() {
    let node = "
gpus: [{load: {constant: 80}}, {load: {constant: 40}}]
pods: [{name: a, labels: {app: a}, containers: [{devices: [\"0\", \"1\"]}]}]";
    let cluster = Cluster::start_with(node, |command| {
        command.args(["--metric", "gpu_utilization,aggregation=max,window=5s"]);
        command.args(["--metric", "gpu_power_watts,aggregation=mean", "--metric", "DCGM_FI_DEV_GPU_TEMP"]);
    })
    .await;
    let answer = async |metric: &str| {
        let list = answered(&cluster, "v1beta2", &format!("namespaces/demo/pods/a/{metric}")).await;
        (number(&list["items"][0]["value"]), list["items"][0]["windowSeconds"].as_u64().unwrap())
    };
    for (metric, value, window) in [("gpu_utilization", 80.0, 5), ("gpu_utilization_share", 60.0, 10)] {
        // It takes a window until all of the window is covered.
        until(&format!("{metric} of {window} s"), || async {
            let answer = answer(metric).await;
            assert_eq!(answer.0, value, "{metric}");
            if answer.1 == window { Ok(()) } else { Err(answer) }
        })
        .await;
    }
    let page = cluster.exporter.as_ref().unwrap().page().await;
    let watts = |gpu| page.value("DCGM_FI_DEV_POWER_USAGE", &[("gpu", gpu)]).unwrap();
    let mean = (watts("0") + watts("1")) / 2.0;
    let (power, _) = answer("gpu_power_watts").await;
    assert!((power - mean).abs() < mean / 10.0, "{power} W, about {mean} W each");
    assert!(answer("DCGM_FI_DEV_GPU_TEMP").await.0 > 10.0);
    let node = answered(&cluster, "v1beta2", "nodes/gpu-node-0/gpu_utilization").await;
    assert_eq!(node["items"][0]["value"], "80", "of a node's devices, too");
}

/// An HPA waits a minute for an answer; who cannot decide says so at once.
#[tokio::test]
async fn a_hanging_api_server_is_an_error_soon_and_the_text_says_which() {
    let cluster = Cluster::start(NODE).await;
    cluster.server.set_delay(std::time::Duration::from_secs(60));
    let proxy = cluster.server.certificates().front_proxy_client.clone();
    let asked = headers(&[("x-remote-user", "alice")]);
    let path = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/%2A/gpu_utilization";
    // The client gives up after 20 s.
    let answer = cluster.adapter.get(Some(&proxy), path, asked).await.unwrap();
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert_eq!(answer.json().unwrap()["reason"], "InternalError");
    cluster.server.set_delay(std::time::Duration::ZERO);
}

/// Nodes have their own metadata watch: labels are followed, and a node without a GPU has no value.
#[tokio::test]
async fn nodes_without_gpus_are_left_out() {
    let gpu_node = Node::new(NODE);
    let plain_node = Node::new("node: plain\npods: [{name: web-2, containers: [{}]}]");
    let kubelet = gpu_node.kubelet().await;
    let exporter = gpu_node.exporter_in_kubernetes().await;
    let endpoint = Endpoint {
        node: Some("gpu-node-0".to_owned()),
        address: exporter.address.parse().unwrap(),
        ready: true,
    };
    let server = ApiServer::start(ApiServerOptions {
        scenarios: vec![gpu_node.scenario(), plain_node.scenario()],
        exporters: vec![endpoint],
        ..ApiServerOptions::default()
    })
    .await
    .unwrap();
    let adapter = Adapter::start(&gpu_node, &server, |command| {
        command.args(["--exporter-service", "podgauge/podgauge-exporter"]);
        command.args(["--scrape-interval", "1s", "--window", "10s", "--staleness", "5s"]);
    })
    .await;
    let cluster = Cluster { node: gpu_node, kubelet, exporter: Some(exporter), server, adapter };
    let list = answered(&cluster, "v1beta2", "nodes/%2A/gpu_utilization").await;
    assert_eq!(of_a_whole_window(timeless(list)), v1beta2("Node", "gpu-node-0", "40"));
    let path = "/apis/custom.metrics.k8s.io/v1beta2/nodes/plain/gpu_utilization";
    let plain = cluster.adapter.get(None, path, admin()).await.unwrap();
    assert_eq!(plain.status, 404);
    assert!(plain.text().contains("no exporter is known on node plain"), "{}", plain.text());
    // A node that leaves the cluster leaves the answers.
    plain_node.play("node: plain-2\npods: []");
    until("the node to go", || async {
        let answer = cluster.adapter.get(None, path, admin()).await.unwrap();
        if answer.text().contains("there is no node plain") { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

/// The adapter counts its requests by verb, resource and code, with their durations, and whom it left out.
#[tokio::test]
async fn requests_and_omissions_are_counted() {
    let cluster = Cluster::start(NODE).await;
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    let base = "/apis/custom.metrics.k8s.io/v1beta2";
    for below in [
        "nodes/gpu-node-0/gpu_utilization",
        "namespaces/demo/metrics/gpu_utilization",
        "namespaces/demo/pods/web/gpu_utilization",
    ] {
        cluster.adapter.get(None, &format!("{base}/{below}"), admin()).await.unwrap();
    }
    let metrics = cluster.adapter.get(None, "/metrics", admin()).await.unwrap().text();
    for line in [
        "podgauge_adapter_requests_total{verb=\"get\",resource=\"nodes\",code=\"200\"} 1",
        "podgauge_adapter_requests_total{verb=\"get\",resource=\"namespaces\",code=\"200\"} 1",
        "podgauge_adapter_requests_total{verb=\"get\",resource=\"pods\",code=\"404\"}",
        "podgauge_adapter_request_duration_seconds_count{verb=\"get\",resource=\"nodes\"} 1",
        "podgauge_adapter_request_duration_seconds_bucket{le=\"+Inf\",verb=\"get\",resource=\"namespaces\"} 1",
        "podgauge_adapter_omissions_total{reason=\"no_gpu\"}",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

/// Whoever may view a namespace's pod metrics may have them explained, and nobody else.
#[tokio::test]
async fn explaining_is_the_right_to_the_metric() {
    let cluster = Cluster::start(NODE).await;
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    let strings = |texts: &[&str]| texts.iter().copied().map(String::from).collect::<Vec<_>>();
    cluster.server.extend_access(Access {
        rules: vec![Rule {
            role: "reader".into(),
            users: strings(&["reader"]),
            verbs: strings(&["get"]),
            groups: strings(&["custom.metrics.k8s.io"]),
            resources: strings(&["pods/gpu_utilization"]),
            namespaces: strings(&["demo"]),
            ..Rule::default()
        }],
        ..Access::default()
    });
    let proxy = cluster.server.certificates().front_proxy_client.clone();
    let explain = async |user: &str, namespace: &str, metric: &str| {
        let path =
            format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/pods/%2A/{metric}/explain");
        let asked = headers(&[("x-remote-user", user)]);
        cluster.adapter.get(Some(&proxy), &path, asked).await.unwrap().status.as_u16()
    };
    assert_eq!(explain("reader", "demo", "gpu_utilization").await, 200);
    assert_eq!(explain("reader", "other", "gpu_utilization").await, 403);
    assert_eq!(explain("reader", "demo", "gpu_power_watts").await, 403);
    assert_eq!(explain("mallory", "demo", "gpu_utilization").await, 403);
}
