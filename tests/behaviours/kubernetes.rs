//! Pod labels by the kubelet's allocations, and what happens when the kubelet does not answer.

use std::time::{Duration, Instant};

use podgauge_tests::node::Node;
use podgauge_tests::page::Sample;
use podgauge_tests::wait::LIMIT;

const NODE: &str = "
gpus: [{load: {constant: 10}}, {load: {constant: 20}}, {load: {constant: 30}}, {replicas: 4}, {}]
pods:
  - {namespace: ml, name: single, containers: [{name: main, devices: [\"0\"]}]}
  - {namespace: ml, name: pair, containers: [{name: main, devices: [\"1\", \"2\"]}]}
  - {namespace: ml, name: shared-a, containers: [{name: main, devices: [\"3::0\"], processes: [{pid: 4100001, gpu: 3, load: {constant: 10}}]}]}
  - {namespace: ml, name: shared-b, containers: [{name: main, devices: [\"3::1\", \"3::2\"]}]}
  - {namespace: kube-system, name: no-gpu, containers: [{name: main}]}
";

fn none() -> Vec<&'static Sample> {
    Vec::new()
}

#[tokio::test]
async fn samples_carry_the_pod_that_holds_the_gpu() {
    let node = Node::new(NODE);
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page = exporter
        .until("labels", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[("pod", "single")]).map(|_| page.clone()))
        .await;
    for family in ["DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_MEM_COPY_UTIL"] {
        let owner = |gpu: &str| {
            let sample = page.all(family, &[("gpu", gpu)]);
            assert_eq!(sample.len(), 1, "{family} of gpu {gpu}");
            ["namespace", "pod", "container"]
                .map(|label| sample[0].labels.get(label).cloned().unwrap_or_default())
        };
        assert_eq!(owner("0"), ["ml", "single", "main"], "{family}");
        assert_eq!(owner("1"), ["ml", "pair", "main"], "{family}");
        assert_eq!(owner("2"), ["ml", "pair", "main"], "{family}");
        assert_eq!(owner("3"), ["", "", ""], "{family}");
        assert_eq!(owner("4"), ["", "", ""], "{family}");
    }
    // What can be divided is, and nothing is lacking.
    let used = |pod| page.value("DCGM_FI_DEV_FB_USED", &[("gpu", "3"), ("pod", pod)]);
    assert_eq!([used("shared-a"), used("shared-b"), used("")], [Some(512.0), Some(0.0), Some(0.0)]);
    assert_eq!(page.all("podgauge_attribution_unavailable", &[]).len(), 0, "{}", page.text);
    let owners = |gpu| page.value("podgauge_gpu_owners", &[("gpu", gpu)]);
    assert_eq!([owners("0"), owners("3"), owners("4")], [Some(1.0), Some(2.0), Some(0.0)]);
    let part = |pod| page.value("podgauge_gpu_allocation", &[("gpu", "3"), ("pod", pod)]);
    assert_eq!([part("shared-a"), part("shared-b")], [Some(0.25), Some(0.5)]);
    let allocation = page.all("podgauge_gpu_allocation", &[("pod", "single")])[0];
    let pod = podgauge_sim_nvml::scenario::Scenario::parse(NODE).unwrap().pods[0].clone();
    assert_eq!((allocation.value, allocation.labels["pod_uid"].as_str()), (1.0, pod.uid().as_str()));
    // Families of the whole device never carry a pod.
    for family in ["podgauge_gpu_utilization", "podgauge_gpu_device_active_seconds_total", "podgauge_gpu_up"]
    {
        assert_eq!(page.all(family, &[("pod", "")]).len(), 5, "{family}");
    }
}

#[tokio::test]
async fn c4_labels_follow_pods_that_come_and_go() {
    let node =
        Node::new("gpus: [{load: {constant: 50}}]\npods: [{name: first, containers: [{devices: [\"0\"]}]}]");
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    const ACTIVE: &str = "podgauge_gpu_active_seconds_total";
    exporter
        .until("work of the first pod", |page| match page.want(ACTIVE, &[("pod", "first")])? {
            active if active > 4.0 => Ok(()),
            active => Err(active.to_string()),
        })
        .await;
    let played = Instant::now();
    node.play("gpus: [{load: {constant: 50}}]\npods: [{name: second, containers: [{devices: [\"0\"]}]}]");
    let page = exporter
        .until("labels of the second pod", |page| {
            page.want(ACTIVE, &[("pod", "second")]).map(|_| page.clone())
        })
        .await;
    // Its account begins with it: it inherits nothing.
    let observed = page.value("podgauge_gpu_observed_seconds_total", &[("pod", "second")]).unwrap();
    assert!(observed <= played.elapsed().as_secs_f64() + 1.0, "{}", page.text);
    let active = page.value(ACTIVE, &[("pod", "second")]).unwrap();
    assert!((active - observed / 2.0).abs() < 0.1, "{}", page.text);
    assert_eq!(page.all(ACTIVE, &[("pod", "first")]), none());
    assert_eq!(page.all("DCGM_FI_DEV_GPU_UTIL", &[("pod", "first")]), none());
}

/// The kubelet answers an empty list for a second after its restart, on a socket of another inode.
#[tokio::test]
async fn c3_a_restarted_kubelet_takes_no_label_away() {
    let node =
        Node::new("gpus: [{load: {constant: 50}}]\npods: [{name: a, containers: [{devices: [\"0\"]}]}]");
    let kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    exporter.until("labels", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[("pod", "a")])).await;
    let before = kubelet.calls().list;
    kubelet.restart().await.unwrap();
    // Until it has been asked often enough to have met the empty answer and the end of it.
    let start = Instant::now();
    while kubelet.calls().list < before + 4 || exporter.get("/ready").await.status() != 200 {
        let page = exporter.page().await;
        assert_eq!(page.all("DCGM_FI_DEV_GPU_TEMP", &[("pod", "a")]).len(), 1, "{}", page.text);
        assert!(start.elapsed() < LIMIT, "the kubelet is not asked again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    exporter.program.logs("kubelet.sock: List has no pod at all", 1).await;
}

#[tokio::test]
async fn c3_without_a_kubelet_samples_have_no_pod_and_the_reason_is_said() {
    let node =
        Node::new("gpus: [{load: {constant: 50}}]\npods: [{name: a, containers: [{devices: [\"0\"]}]}]");
    let exporter = node.exporter_in_kubernetes().await;
    let page = exporter
        .until("a page without pods", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[]).map(|_| page.clone()))
        .await;
    assert_eq!(page.all("DCGM_FI_DEV_GPU_UTIL", &[("pod", "")]).len(), 1);
    let reason = [("reason", "kubelet_unavailable")];
    assert_eq!(page.value("podgauge_attribution_unavailable", &reason), Some(1.0));
    exporter.unready(&["kubelet.sock"]).await;
    let _kubelet = node.kubelet().await;
    exporter.ready(200).await;
    let page = exporter
        .until("labels", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[("pod", "a")]).map(|_| page.clone()))
        .await;
    assert_eq!(page.value("podgauge_attribution_unavailable", &reason), None);
}
