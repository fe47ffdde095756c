//! An API server that is away for a while: one line in the log, answers that do not claim more than
//! is known, and a new list as soon as it is back.

use podgauge_sim::aggregator::{Aggregation, Answer};
use podgauge_sim::apiserver::{
    ADAPTER, ApiServer, ApiServerHandle, ApiServerOptions, Asked, Exporter as Endpoint,
};
use podgauge_tests::cluster::{Adapter, headers, number};
use podgauge_tests::fake_exporter::FakeExporter;
use podgauge_tests::fleet::told;
use podgauge_tests::managed::{Site, available};
use podgauge_tests::node::Node;
use podgauge_tests::wait::until;

/// A node with these pods, each on a GPU of its own.
fn scenario(pods: &[&str]) -> String {
    let pod = |(gpu, name): (usize, &&str)| {
        format!("{{name: {name}, uid: uid-{name}, containers: [{{devices: ['{gpu}']}}]}}")
    };
    let pods: Vec<String> = pods.iter().enumerate().map(pod).collect();
    format!("node: gpu-node-0\ngpus: [{{}}, {{}}]\npods: [{}]\n", pods.join(", "))
}

/// The adapter's requests for a resource since the first `before`, as verbs.
fn verbs(server: &ApiServerHandle, before: usize, resource: &str) -> Vec<String> {
    let of = |asked: &Asked| asked.user == ADAPTER && asked.wanted.resource == resource;
    server.requests().into_iter().skip(before).filter(of).map(|asked| asked.wanted.verb).collect()
}

/// The exporter knows of both pods all the while; the API server knows of the second one only after
/// it was away.
#[tokio::test]
async fn a_pod_made_while_the_api_server_was_away_is_known_by_the_first_list_after_it() {
    let exporter = FakeExporter::start(vec![told("a", 64.0), told("b", 32.0)]).await;
    let endpoint = Endpoint { node: Some("gpu-node-0".to_owned()), address: exporter.address, ready: true };
    let node = Node::new(&scenario(&["a"]));
    let options = ApiServerOptions {
        scenarios: vec![node.scenario()],
        exporters: vec![endpoint],
        ..ApiServerOptions::default()
    };
    let server = ApiServer::start(options).await.unwrap();
    let mut adapter = Adapter::start(&node, &server, |command| {
        command.args(["--exporter-service", "podgauge/podgauge-exporter"]);
        command.args(["--scrape-interval", "1s", "--window", "10s", "--staleness", "5s"]);
    })
    .await;
    let aggregator = server
        .aggregate(Aggregation::of_adapter(adapter.address, adapter.authority.pem().to_owned()))
        .unwrap();
    // A user of whom no API server is asked.
    let proxy = server.certificates().front_proxy_client.clone();
    let masters = headers(&[("x-remote-user", "m"), ("x-remote-group", "system:masters")]);
    let ask = async |adapter: &Adapter, path: &str| -> Answer {
        let path = format!("/apis/custom.metrics.k8s.io/v1beta2/{path}");
        adapter.get(Some(&proxy), &path, masters.clone()).await.unwrap()
    };
    let value = async |pod: &str| {
        until(&format!("a value of {pod}"), || async {
            let path = format!("namespaces/demo/pods/{pod}/gpu_utilization");
            let answer = aggregator.metric_request(&path, vec![]).await.map_err(|error| error.to_string())?;
            match answer.status.as_u16() {
                200 => Ok(number(&answer.json().unwrap()["items"][0]["value"])),
                _ => Err(answer.text()),
            }
        })
        .await
    };
    assert!((value("a").await - 64.0).abs() < 0.1);
    let answer = ask(&adapter, "namespaces/demo/pods/b/gpu_utilization").await;
    assert!(answer.text().contains("there is no pod b in namespace demo\""), "{}", answer.text());

    server.stop().await;
    node.play(&scenario(&["a", "b"]));
    for (path, known) in [
        ("namespaces/demo/pods/b/gpu_utilization", "no pod b is known in namespace demo"),
        (
            "namespaces/demo/pods/*/gpu_utilization?labelSelector=app%3Dy",
            "no known pod in namespace demo matches",
        ),
        ("nodes/other/gpu_utilization", "no node other is known"),
        ("namespaces/other/metrics/gpu_utilization", "no namespace other is known"),
        ("namespaces/demo/pods/b/gpu_utilization/explain", "no pod b is known in namespace demo"),
    ] {
        let text = until(known, || async {
            let answer = ask(&adapter, path).await;
            assert_eq!(answer.status, 404, "{}", answer.text());
            if answer.text().contains(known) { Ok(answer.text()) } else { Err(answer.text()) }
        })
        .await;
        assert!(text.contains(" fails, so what was added or deleted since is not seen: "), "{text}");
    }
    // The exporters' values of known pods are answered as ever.
    let answer = ask(&adapter, "namespaces/demo/pods/a/gpu_utilization").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let explained = ask(&adapter, "namespaces/demo/pods/a/gpu_utilization/explain").await.json().unwrap();
    assert!(explained["watchFailure"].as_str().unwrap().contains("the watch of pods fails"), "{explained}");
    let line = adapter.program.logged("the watches fail").await;
    assert!(line.contains("onnection refused"), "{line}");

    // An API server that starts knows no changes of before.
    server.expire_watches();
    let before = server.requests().len();
    server.restart().await.unwrap();
    assert!((value("b").await - 32.0).abs() < 0.1);
    for resource in ["pods", "nodes", "namespaces", "endpointslices", "configmaps"] {
        let verbs = until("the new watches", || async {
            let verbs = verbs(&server, before, resource);
            if verbs.len() >= 2 { Ok(verbs) } else { Err((resource, verbs)) }
        })
        .await;
        // No watch is resumed that can only be refused.
        assert_eq!(verbs[..2], ["list", "watch"], "{resource}");
    }
    let answer = ask(&adapter, "namespaces/demo/pods/c/gpu_utilization").await;
    assert!(answer.text().contains("there is no pod c in namespace demo\""), "{}", answer.text());
}

#[tokio::test]
async fn eight_watches_that_stop_for_one_cause_are_one_line_and_each_is_named_once_when_it_is_back() {
    let site = Site::start().await;
    let mut adapter = site.adapter(&[]).await;
    available(&site.aggregate(adapter.address)).await;
    adapter.ready().await;
    let watched = [
        "pods",
        "nodes",
        "namespaces",
        "EndpointSlices of Service podgauge/none",
        "ConfigMap kube-system/extension-apiserver-authentication",
        "Secret podgauge/podgauge-adapter-certificates",
        "APIService v1beta1.custom.metrics.k8s.io",
        "APIService v1beta2.custom.metrics.k8s.io",
    ];
    let is_recovery = |line: &&str| line.ends_with("work again") || line.ends_with("works again");
    site.server.stop().await;
    adapter.program.logged("the watches fail").await;
    site.server.restart().await.unwrap();
    // They need not all be back within the time that a line waits for more; each is named once.
    until("all eight to work again", || async {
        let log = adapter.program.log();
        let again: Vec<&str> = log.lines().filter(is_recovery).collect();
        let named = |what: &&str| again.iter().filter(|line| line.contains(*what)).count();
        if watched.iter().all(|what| named(what) == 1) { Ok(()) } else { Err(log) }
    })
    .await;
    let log = adapter.program.log();
    let others: Vec<&str> =
        log.lines().filter(|line| line.contains("the watch") && !is_recovery(line)).collect();
    assert_eq!(others.len(), 1, "{log}");
    assert!(others[0].contains("the watches fail") && watched.iter().all(|what| others[0].contains(what)));
}
