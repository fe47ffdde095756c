//! Who holds a GPU, and how much of it, from the kubelet's list to the number that an HPA reads.

use std::process::Command;

use podgauge_sim::aggregator::Aggregator;
use podgauge_sim::apiserver::Exporter as Endpoint;
use podgauge_tests::cluster::{Cluster, number};
use podgauge_tests::wait::until;

/// The value of a pod, or the text of the 404.
async fn ask(aggregator: &Aggregator, pod: &str, metric: &str) -> Result<f64, String> {
    let answer = aggregator.metric_request(&format!("namespaces/{pod}/{metric}"), vec![]).await.unwrap();
    match answer.status.as_u16() {
        200 => Ok(number(&answer.json().unwrap()["items"][0]["value"])),
        404 => Err(answer.text()),
        status => panic!("{status}: {}", answer.text()),
    }
}

/// Another exporter takes the place of the cluster's.
async fn exchange_exporter(cluster: &mut Cluster, configure: impl FnOnce(&mut Command)) {
    cluster.exporter = None;
    let exporter = cluster
        .node
        .exporter_with(|command| {
            cluster.node.in_kubernetes(command);
            configure(command);
        })
        .await;
    let address = exporter.address.parse().unwrap();
    cluster.server.set_exporters(&[Endpoint { node: Some("gpu-node-0".to_owned()), address, ready: true }]);
    cluster.exporter = Some(exporter);
}

/// Nobody has counted the replicas of a time-sliced GPU that was unhealthy from the start: 20 % of the
/// device could be 20, 40 or 80 % of what the pod was given.
#[tokio::test]
async fn a_part_that_is_not_known_is_the_reason_until_it_is_known() {
    let node = |healthy: bool| {
        format!(
            "
gpus: [{{replicas: 4, healthy: {healthy}}}, {{load: {{constant: 70}}}}]
pods:
  - {{name: a, containers: [{{devices: ['0::0'], processes: [{{pid: 4100001, gpu: 0, load: {{constant: 20}}}}]}}]}}
  - {{name: b, containers: [{{devices: ['1']}}]}}
"
        )
    };
    let cluster = Cluster::start(&node(false)).await;
    let aggregator = cluster.aggregator();
    let b = cluster.value(&aggregator, "b", "gpu_utilization").await;
    assert!((b - 70.0).abs() <= 0.5, "{b}");
    let share =
        until("the use of the device", || ask(&aggregator, "demo/pods/a", "gpu_utilization_share")).await;
    assert!((share - 20.0).abs() <= 4.0, "{share}");
    let missing = "the part of its device that it was given is not known";
    let text = until("the reason", || async {
        match ask(&aggregator, "demo/pods/a", "gpu_utilization").await {
            Err(text) if text.contains(missing) => Ok(text),
            Err(text) => Err(text),
            Ok(value) => panic!("{value} of a part that is not known"),
        }
    })
    .await;
    assert!(!text.contains("\"items\""), "{text}");
    let explained = aggregator
        .metric_request("namespaces/demo/pods/a/gpu_utilization/explain", vec![])
        .await
        .unwrap()
        .json()
        .unwrap();
    assert_eq!(explained["pods"][0]["omitted"]["reason"], "part_unknown", "{explained}");

    cluster.node.play(&node(true));
    let value = until("the value", || ask(&aggregator, "demo/pods/a", "gpu_utilization")).await;
    assert!((value - 80.0).abs() <= 8.0, "{value}");
}

/// A pod that watches a claimed GPU by admin access, and the exporter's own pod, which is listed with
/// every GPU, come and hold nothing: no value changes, not even for a moment.
#[tokio::test]
async fn pods_that_watch_change_no_value() {
    const ALONE: &str = "
gpus: [{load: {constant: 30}}, {load: {constant: 60}}]
claims: [{name: mine, devices: ['0']}, {namespace: ops, name: all, devices: ['0'], admin: true}]
resource_slices: {}
pods:
  - {name: a, containers: [{claims: [mine]}]}
  - {name: b, containers: [{devices: ['1']}]}
";
    const WATCHERS: &str = "  - {namespace: ops, name: monitor, containers: [{claims: [all]}]}
  - {namespace: ops, name: exporter-x7, containers: [{devices: ['0', '1']}]}
";
    let mut cluster = Cluster::start(ALONE).await;
    let kubeconfig = cluster.admin_kubeconfig();
    exchange_exporter(&mut cluster, |command| {
        command.arg("--kubernetes-enable-dra").arg("--kubeconfig").arg(&kubeconfig);
        command.env("POD_NAMESPACE", "ops").env("POD_NAME", "exporter-x7");
    })
    .await;
    let aggregator = cluster.aggregator();
    let are_true = async || {
        for (pod, truth) in [("a", 30.0), ("b", 60.0)] {
            let value = ask(&aggregator, &format!("demo/pods/{pod}"), "gpu_utilization").await?;
            assert!((value - truth).abs() <= 0.5, "{pod}: {value}, {truth} true");
        }
        Ok::<_, String>(())
    };
    until("both values", &are_true).await;

    cluster.node.play(&format!("{ALONE}{WATCHERS}"));
    let before = cluster.kubelet.calls().list;
    until("three lists with the pods that watch", || async {
        are_true().await?;
        let more = cluster.kubelet.calls().list - before;
        if more > 3 { Ok(()) } else { Err(more.to_string()) }
    })
    .await;
    let exporter = cluster.exporter.as_ref().unwrap();
    let page = exporter.page().await;
    for gpu in ["0", "1"] {
        assert_eq!(page.value("podgauge_gpu_owners", &[("gpu", gpu)]), Some(1.0), "{}", page.text);
    }
    assert!(!page.text.contains("monitor") && !page.text.contains("exporter-x7"), "{}", page.text);
    for watcher in ["monitor", "exporter-x7"] {
        until(&format!("{watcher} to have no GPU"), || async {
            match ask(&aggregator, &format!("ops/pods/{watcher}"), "gpu_utilization").await {
                Err(text) if text.contains("knows of no GPU") => Ok(()),
                Err(text) => Err(text),
                Ok(value) => panic!("{watcher} holds no GPU and has {value}"),
            }
        })
        .await;
    }
}
