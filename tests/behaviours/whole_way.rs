//! From a GPU's load to the number an HPA reads, over every real station between.

use podgauge_sim::hpa;
use podgauge_tests::cluster::{Cluster, number};
use podgauge_tests::program::{run, tool};
use podgauge_tests::wait::until;
use serde_json::Value;

const NODE: &str = "
gpus: [{load: {constant: 85}}, {load: {constant: 71}}, {load: {square: {low: 20, high: 60, period_s: 2}}}, {load: {constant: 90}}, {load: {constant: 40}}, {replicas: 2}, {}, {replicas: 2, mps_server: 4100010}]
pods:
  - {name: chat-0, labels: {app: chat}, containers: [{devices: [\"0\"]}]}
  - {name: chat-1, labels: {app: chat}, containers: [{devices: [\"1\"]}]}
  - {name: wave-0, labels: {app: wave}, containers: [{devices: [\"2\"]}]}
  - {name: pair-0, labels: {app: pair}, containers: [{devices: [\"3\", \"4\"]}]}
  - {name: share-a, labels: {app: share}, containers: [{devices: [\"5::0\"], processes: [{pid: 4100001, gpu: 5, load: {constant: 30}, memory_mib: 12000}]}]}
  - {name: share-b, labels: {app: share}, containers: [{devices: [\"5::1\"], processes: [{pid: 4100002, gpu: 5, load: {constant: 15}, memory_mib: 8000}]}]}
  - {name: mps-a, labels: {app: mps}, containers: [{devices: [\"7::0\"], processes: [{pid: 4100011, gpu: 7, load: {constant: 40}, memory_mib: 6000}]}]}
  - {name: mps-b, labels: {app: mps}, containers: [{devices: [\"7::1\"], processes: [{pid: 4100012, gpu: 7, load: {constant: 20}, memory_mib: 4000}]}]}
  - {name: idle-0, labels: {app: idle}, containers: [{devices: [\"6\"]}]}
  - {name: web-0, labels: {app: web}, containers: [{}]}
";

#[tokio::test]
async fn an_hpa_reads_the_scenarios_truth() {
    let cluster = Cluster::start(NODE).await;
    let aggregator = cluster.aggregator();
    for (pod, truth, tolerance) in
        [("chat-0", 85.0, 0.5), ("chat-1", 71.0, 0.5), ("pair-0", 65.0, 0.5), ("idle-0", 0.0, 0.0)]
    {
        let value = cluster.value(&aggregator, pod, "gpu_utilization").await;
        assert!((value - truth).abs() <= tolerance, "{pod}: {value}, {truth} true");
    }
    // The window of 10 s holds five periods; a tick at either end may be of one half of it.
    until("the wave's mean", || async {
        let value = cluster.value(&aggregator, "wave-0", "gpu_utilization").await;
        if (value - 40.0).abs() <= 2.0 { Ok(()) } else { Err(value) }
    })
    .await;
    assert_eq!(cluster.value(&aggregator, "chat-0", "gpu_device_utilization").await, 85.0);
    let memory = cluster.value(&aggregator, "chat-0", "gpu_memory_used_bytes").await;
    let page = cluster.exporter.as_ref().unwrap().page().await;
    assert_eq!(memory, page.value("DCGM_FI_DEV_FB_USED", &[("gpu", "0")]).unwrap() * 1024.0 * 1024.0);

    // Of a shared GPU: 30 and 15 % of it are 60 and 30 % of the halves that the pods hold.
    for (pod, truth) in [("share-a", 60.0), ("share-b", 30.0)] {
        until("the share", || async {
            let value = cluster.value(&aggregator, pod, "gpu_utilization").await;
            if (value - truth).abs() <= 4.0 { Ok(()) } else { Err(format!("{pod}: {value}, {truth} true")) }
        })
        .await;
    }
    let share = cluster.value(&aggregator, "share-a", "gpu_utilization_share").await;
    assert!((share - 30.0).abs() <= 2.5, "{share}");
    assert_eq!(
        cluster.value(&aggregator, "share-a", "gpu_memory_used_bytes").await,
        12000.0 * 1024.0 * 1024.0
    );
    // Under MPS memory is told apart, though use is not.
    assert_eq!(cluster.value(&aggregator, "mps-b", "gpu_memory_used_bytes").await, 4000.0 * 1024.0 * 1024.0);

    // The HPA's own request, and what it makes of the answer: 78 against 60 on two pods is three.
    let answer = aggregator.hpa_request("demo", "app=chat", "gpu_utilization").await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let items = hpa::items(&answer.json().unwrap()).unwrap();
    assert_eq!(items.len(), 2, "{items:?}");
    let mean: f64 = items.values().map(|milli| *milli as f64 / 1000.0).sum::<f64>() / 2.0;
    assert!((mean - 78.0).abs() <= 0.5, "{mean}");
    assert_eq!((2.0 * mean / 60.0).ceil(), 3.0);
}

#[tokio::test]
async fn what_is_unknown_is_left_out_and_the_text_says_why() {
    let cluster = Cluster::start(NODE).await;
    let aggregator = cluster.aggregator();
    for pod in ["chat-0", "chat-1"] {
        cluster.value(&aggregator, pod, "gpu_utilization").await;
    }
    let ask =
        async |selector: &str| aggregator.hpa_request("demo", selector, "gpu_utilization").await.unwrap();
    let answer = until("the reason", || async {
        let answer = ask("app=mps").await;
        if answer.text().contains("mps_server") { Ok(answer) } else { Err(answer.text()) }
    })
    .await;
    assert_eq!(answer.status, 404, "{}", answer.text());
    let message = answer.json().unwrap()["message"].as_str().unwrap().to_owned();
    let words = "2 pods match, none has a value: the use of its device cannot be attributed";
    assert!(message.contains(words), "{message}");
    // A pod without a GPU, a selector that matches nothing, a metric that there is not.
    for (selector, words) in [("app=web", "GPU"), ("app=none", "")] {
        let answer = ask(selector).await;
        assert_eq!(answer.status, 404, "{selector}: {}", answer.text());
        assert!(answer.text().contains(words), "{}", answer.text());
    }
    let unknown = aggregator.hpa_request("demo", "app=chat", "gpu_nonsense").await.unwrap();
    assert_eq!(unknown.status, 404);
    // One of the matching pods has a value: it alone is in the list.
    let mixed = ask("app in (chat,mps)").await.json().unwrap();
    let names: Vec<&str> = mixed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["describedObject"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["chat-0", "chat-1"]);
}

/// A stopped exporter: the last value stands for `--staleness`, then it is unknown, never 0; it
/// is back by itself.
#[tokio::test]
async fn a_silent_exporter_is_never_zero() {
    let mut cluster = Cluster::start(NODE).await;
    let aggregator = cluster.aggregator();
    cluster.value(&aggregator, "chat-0", "gpu_utilization").await;
    cluster.exporter = None;
    until("the value to go, and its exporter to be named", || async {
        let answer = aggregator.hpa_request("demo", "app=chat", "gpu_utilization").await.unwrap();
        match answer.status.as_u16() {
            // Its reading is too old a moment before its exporter is.
            404 if answer.text().contains("exporter on node gpu-node-0") => Ok(()),
            404 => Err(answer.text()),
            _ => {
                for item in answer.json().unwrap()["items"].as_array().unwrap() {
                    assert!(number(&item["value"]) > 70.0, "{item}");
                }
                Err(answer.text())
            }
        }
    })
    .await;
}

#[tokio::test]
async fn kubectl_reads_what_the_hpa_reads() {
    let cluster = Cluster::start(NODE).await;
    let aggregator = cluster.aggregator();
    cluster.value(&aggregator, "chat-0", "gpu_utilization").await;
    let kubeconfig = cluster.admin_kubeconfig();
    for version in ["v1beta1", "v1beta2"] {
        for path in ["pods/*/gpu_utilization?labelSelector=app%3Dchat", "pods/chat-0/gpu_utilization"] {
            let path = format!("/apis/custom.metrics.k8s.io/{version}/namespaces/demo/{path}");
            let kubeconfig = kubeconfig.clone();
            // The stand-in runs in this process: it must go on answering meanwhile.
            let output = tokio::task::spawn_blocking(move || {
                run(tool("kubectl").arg("--kubeconfig").arg(kubeconfig).args(["get", "--raw", &path]))
            })
            .await
            .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let list: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(list["kind"], "MetricValueList");
            assert_eq!(list["items"][0]["describedObject"]["name"], "chat-0");
            assert!((number(&list["items"][0]["value"]) - 85.0).abs() <= 0.5, "{list}");
        }
    }
}
