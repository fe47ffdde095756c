//! Who owns a GPU, by evidence: device ids, the kernel's cgroups and the driver's lists count; names
//! that anybody can choose do not, and who only watches is no owner.

use podgauge_tests::cluster::{Cluster, number};
use podgauge_tests::node::Node;
use podgauge_tests::page::Page;
use podgauge_tests::program::Exporter;
use podgauge_tests::wait::until;

const UTIL: &str = "DCGM_FI_DEV_GPU_UTIL";
const TEMP: &str = "DCGM_FI_DEV_GPU_TEMP";
const ALLOCATION: &str = "podgauge_gpu_allocation";
const PART_UNKNOWN: &str = "podgauge_gpu_part_unknown";

/// The value of a pod settles near the truth, and is never further off than `tolerance` on its way.
async fn reads(cluster: &Cluster, pod: &str, truth: f64, tolerance: f64) {
    let aggregator = cluster.aggregator();
    let good = std::cell::Cell::new(0);
    until(&format!("{pod} to read {truth}"), || {
        let aggregator = aggregator.clone();
        let path = format!("namespaces/demo/pods/{pod}/gpu_utilization");
        let good = &good;
        async move {
            let answer = aggregator.metric_request(&path, vec![]).await.map_err(|error| error.to_string())?;
            if answer.status != 200 {
                return Err(answer.text());
            }
            let value = number(&answer.json().unwrap()["items"][0]["value"]);
            assert!((value - truth).abs() <= tolerance, "{path}: {value}, {truth} true");
            good.set(good.get() + 1);
            if good.get() > 60 { Ok(()) } else { Err(value.to_string()) }
        }
    })
    .await;
}

async fn labelled(exporter: &Exporter, pod: &str) -> Page {
    exporter
        .until(&format!("{pod}'s samples"), |page| {
            if page.all(UTIL, &[("pod", pod)]).is_empty() { Err(page.text.clone()) } else { Ok(page.clone()) }
        })
        .await
}

/// A pod with a half of a GPU calls its process like the MPS server.
#[tokio::test]
async fn a_process_named_like_the_mps_server_is_charged_like_any_other() {
    let cluster = Cluster::start(
        "gpus: [{replicas: 2}]\npods:\n\
         - {name: victim, containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 40}}]}]}\n\
         - {name: attacker, containers: [{devices: ['0::1'], processes: [{pid: 4100002, gpu: 0, comm: nvidia-cuda-mps-server, load: {constant: 10}}]}]}\n",
    )
    .await;
    reads(&cluster, "victim", 80.0, 8.0).await;
    reads(&cluster, "attacker", 20.0, 8.0).await;
}

/// The same beside a pod that holds all of its GPU, from a pod that holds none.
#[tokio::test]
async fn a_bypassing_process_named_like_the_mps_server_raises_nobody() {
    let cluster = Cluster::start(
        "gpus: [{}]\npods:\n\
         - {name: victim, containers: [{devices: ['0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 30}}]}]}\n\
         - {name: attacker, containers: [{processes: [{pid: 4100002, gpu: 0, comm: nvidia-cuda-mps-server, load: {constant: 50}}]}]}\n",
    )
    .await;
    reads(&cluster, "victim", 30.0, 6.0).await;
    reads(&cluster, "attacker", 50.0, 6.0).await;
}

/// A container moves its process into a child cgroup that it names after another pod.
#[tokio::test]
async fn a_child_cgroup_named_after_another_pod_changes_nothing() {
    let yaml = "gpus: [{replicas: 2}]\npods:\n\
         - {name: victim, uid: 0f2e4a60-1111-4222-8333-444455556666, containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 10}}]}]}\n\
         - {name: attacker, containers: [{devices: ['0::1'], processes: [{pid: 4100002, gpu: 0, load: {constant: 60}}]}]}\n";
    let node = Node::new(yaml);
    let path = node.trees().join("proc/4100002/cgroup");
    let own = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{}/pod0f2e4a60-1111-4222-8333-444455556666/x\n", own.trim_end())).unwrap();
    let cluster = Cluster::on(node, |_| {}).await;
    reads(&cluster, "victim", 20.0, 6.0).await;
    reads(&cluster, "attacker", 120.0, 8.0).await;
}

/// A cluster in one pod, and Docker in another one, start the processes: they are the outer pods'.
#[tokio::test]
async fn clusters_and_containers_in_a_pod_are_that_pods() {
    let yaml = "gpus: [{replicas: 2}]\npods:\n\
         - {name: cluster, containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 40}}]}]}\n\
         - {name: docker, containers: [{devices: ['0::1'], processes: [{pid: 4100002, gpu: 0, load: {constant: 20}}]}]}\n";
    let node = Node::new(yaml);
    let inner = "0123456789abcdef".repeat(4);
    for (pid, below) in [
        (4100001, format!("kubelet/kubepods/besteffort/pod0f2e4a60-1111-4222-8333-444455556666/{inner}")),
        (4100002, format!("docker/{inner}")),
    ] {
        let path = node.trees().join(format!("proc/{pid}/cgroup"));
        let own = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{}/{below}\n", own.trim_end())).unwrap();
    }
    let cluster = Cluster::on(node, |_| {}).await;
    reads(&cluster, "cluster", 80.0, 8.0).await;
    reads(&cluster, "docker", 40.0, 8.0).await;
    let page = cluster.exporter.as_ref().unwrap().page().await;
    for pod in ["cluster", "docker"] {
        assert_eq!(page.all(UTIL, &[("pod", pod), ("container", "main")]).len(), 1, "{}", page.text);
    }
}

/// A device plugin that calls its resource by a name that nobody configured.
#[tokio::test]
async fn a_renamed_resource_is_known_by_its_device_ids() {
    let cluster = Cluster::start(
        "gpus: [{replicas: 4}]\npods:\n\
         - {name: a, containers: [{devices: ['0::0'], resource: nvidia.com/gpu.shared, processes: [{pid: 4100001, gpu: 0, load: {constant: 20}}]}]}\n\
         - {name: b, containers: [{devices: ['0::1'], resource: shop.example/card, processes: [{pid: 4100002, gpu: 0, load: {constant: 10}}]}]}\n",
    )
    .await;
    reads(&cluster, "a", 80.0, 10.0).await;
    reads(&cluster, "b", 40.0, 10.0).await;
}

/// A time-sliced GPU is unhealthy since before the exporter started: its replicas were never counted.
#[tokio::test]
async fn a_part_that_was_never_known_is_said_to_be_unknown() {
    let node = Node::new(
        "gpus: [{replicas: 4, healthy: false}, {}]\npods:\n\
         - {name: a, containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 20}}]}]}\n\
         - {name: b, containers: [{devices: ['1']}]}\n",
    );
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page = labelled(&exporter, "a").await;
    assert_eq!(page.all(ALLOCATION, &[("pod", "a")]).len(), 0, "{}", page.text);
    let uid = page.all(PART_UNKNOWN, &[("pod", "a")])[0].labels.contains_key("pod_uid");
    assert_eq!((page.value(PART_UNKNOWN, &[("pod", "a")]), uid), (Some(1.0), true), "{}", page.text);
    assert_eq!(page.value(ALLOCATION, &[("pod", "b")]), Some(1.0));
    assert_eq!(page.all(PART_UNKNOWN, &[]).len(), 1, "{}", page.text);
    // The plugin counts it again: the part is known from the next count on.
    node.play(
        "gpus: [{replicas: 4}, {}]\npods:\n\
         - {name: a, containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 20}}]}]}\n\
         - {name: b, containers: [{devices: ['1']}]}\n",
    );
    let part = exporter.until("the part", |page| page.want(ALLOCATION, &[("pod", "a")])).await;
    assert_eq!(part, 0.25);
    assert_eq!(exporter.page().await.all(PART_UNKNOWN, &[]).len(), 0);
}

/// KAI's reservation pod holds the GPU; the pods that use it hold nothing.
#[tokio::test]
async fn a_reservation_pod_owns_nothing() {
    let yaml = "gpus: [{}]\npods:\n\
         - {name: gpu-reservation-x, namespace: NAMESPACE, containers: [{devices: ['0']}]}\n\
         - {name: a, containers: [{processes: [{pid: 4100001, gpu: 0, load: {constant: 30}}]}]}\n";
    for (namespace, flags) in
        [("kai-resource-reservation", &[][..]), ("held", &["--reservation-namespaces", "other, held"])]
    {
        let node = Node::new(&yaml.replace("NAMESPACE", namespace));
        let _kubelet = node.kubelet().await;
        let exporter = node
            .exporter_with(|command| {
                node.in_kubernetes(command);
                command.args(flags);
            })
            .await;
        let page = labelled(&exporter, "a").await;
        assert!(!page.text.contains("gpu-reservation-x"), "{namespace}\n{}", page.text);
        assert_eq!(page.value("podgauge_gpu_owners", &[]), Some(1.0), "{}", page.text);
        assert_eq!(page.all(TEMP, &[("pod", "")]).len(), 1, "{}", page.text);
    }
}

/// The exporter's pod is listed with every GPU: by its variables, or by the mounts of its own process.
#[tokio::test]
async fn the_exporters_own_pod_owns_nothing() {
    const UID: &str = "0f2e4a60-1111-4222-8333-444455556666";
    let node = Node::new(&format!(
        "gpus: [{{load: {{constant: 30}}}}, {{}}]\npods:\n\
         - {{name: exporter-x7, namespace: gpu-operator, uid: {UID}, containers: [{{devices: ['0', '1']}}]}}\n\
         - {{name: a, containers: [{{devices: ['0']}}]}}\n"
    ));
    let _kubelet = node.kubelet().await;
    let check = async |exporter: &Exporter| {
        let page = labelled(exporter, "a").await;
        assert!(!page.text.contains("exporter-x7"), "{}", page.text);
        assert_eq!(page.all(TEMP, &[("gpu", "0"), ("pod", "a")]).len(), 1, "{}", page.text);
        assert_eq!(page.value("podgauge_gpu_owners", &[("gpu", "1")]), Some(0.0), "{}", page.text);
    };
    let exporter = node
        .exporter_with(|command| {
            node.in_kubernetes(command);
            command.env("POD_NAMESPACE", "gpu-operator").env("POD_NAME", "exporter-x7");
        })
        .await;
    check(&exporter).await;
    let own = node.trees().join("proc/self");
    std::fs::write(own.join("cgroup"), "0::/\n").unwrap();
    std::fs::write(
        own.join("mountinfo"),
        format!("700 610 8:1 /var/lib/kubelet/pods/{UID}/etc-hosts /etc/hosts rw - ext4 /dev/sda1 rw\n"),
    )
    .unwrap();
    let exporter = node.exporter_in_kubernetes().await;
    check(&exporter).await;
}

/// HAMi's ids name a card that need not be the one in use: the processes tell where the pod is.
#[tokio::test]
async fn virtual_gpus_name_no_card() {
    let node = Node::new(
        "gpus: [{uuid: GPU-13719f71-412c-d11e-b236-a262f530a4fc}, {uuid: GPU-23719f71-412c-d11e-b236-a262f530a4fc}]\npods:\n\
         - {name: a, containers: [{device_ids: [GPU-13719f71-412c-d11e-b236-a262f530a4fc-3], processes: [{pid: 4100001, gpu: 1, load: {constant: 30}}]}]}\n\
         - {name: idle, containers: [{device_ids: [GPU-13719f71-412c-d11e-b236-a262f530a4fc-4]}]}\n",
    );
    let _kubelet = node.kubelet().await;
    let mut exporter = node.exporter_in_kubernetes_with_own_metrics().await;
    let page = labelled(&exporter, "a").await;
    assert_eq!(page.all(UTIL, &[("gpu", "1"), ("pod", "a")]).len(), 1, "{}", page.text);
    assert_eq!(page.value(PART_UNKNOWN, &[("gpu", "1"), ("pod", "a")]), Some(1.0), "{}", page.text);
    assert_eq!(page.all(PART_UNKNOWN, &[]).len(), 1, "{}", page.text);
    for family in [TEMP, UTIL, ALLOCATION] {
        assert_eq!(page.all(family, &[("gpu", "0"), ("pod", "a")]).len(), 0, "{family}\n{}", page.text);
    }
    assert!(!page.text.contains("pod=\"idle\""), "{}", page.text);
    assert_eq!(page.value("podgauge_exporter_device_ids_unmatched", &[]), Some(0.0));
    exporter.program.logged("are virtual GPUs of HAMi or Volcano and name no card").await;
    assert_eq!(exporter.program.count_logged("name no card"), 1);
}

/// Ids that NVML does not know: one warning that names them, and a gauge.
#[tokio::test]
async fn ids_that_match_no_device_are_reported() {
    let node = Node::new(
        "gpus: [{replicas: 2}]\npods:\n\
         - {name: a, containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 30}}]}]}\n\
         - {name: b, containers: [{devices: ['0::1'], processes: [{pid: 4100002, gpu: 0, load: {constant: 10}}]}]}\n\
         - {name: lost, containers: [{device_ids: [GPU-99999999-0000-0000-0000-000000000000]}]}\n\
         - {name: nic, containers: [{device_ids: [mlx5_0], resource: rdma/hca}]}\n",
    );
    let _kubelet = node.kubelet().await;
    let mut exporter = node.exporter_in_kubernetes_with_own_metrics().await;
    let line = exporter.program.logged("the kubelet lists device ids that match no GPU").await;
    assert!(
        line.contains("GPU-99999999-0000-0000-0000-000000000000") && line.contains("demo/lost"),
        "{line}"
    );
    assert!(!line.contains("mlx5_0"), "{line}");
    let page = exporter.page().await;
    assert_eq!(page.value("podgauge_exporter_device_ids_unmatched", &[]), Some(1.0), "{}", page.text);
    // A shared GPU that is divided counts as labelled.
    exporter
        .until("the divided GPU to count", |page| {
            let count = |name: &str| page.want(&format!("podgauge_exporter_devices_{name}"), &[]);
            match (count("allocated")?, count("labelled")?) {
                (1.0, 1.0) => Ok(()),
                counts => Err(format!("{counts:?}")),
            }
        })
        .await;
    assert_eq!(exporter.program.count_logged("match no GPU"), 1);
}
