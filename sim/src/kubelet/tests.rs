//! The service as a client on the socket sees it.

use std::os::unix::fs::MetadataExt as _;

use tonic::transport::{Channel, Endpoint};

use super::v1::pod_resources_lister_client::PodResourcesListerClient;
use super::v1::{AllocatableResourcesRequest, ListPodResourcesRequest, ListPodResourcesResponse};
use super::*;

const SCENARIO: &str = "
gpus:
  - {}
  - { replicas: 2 }
  - { healthy: false }
pods:
  - name: one
    containers: [{ name: main, devices: ['0', '2'] }, { name: sidecar }]
  - name: shared
    containers: [{ devices: ['1::1'], resource: nvidia.com/gpu.shared }]
  - name: plain
    containers: [{}]
  - name: finished
    phase: Succeeded
    containers: [{ devices: ['0'] }]
";

struct Node {
    dir: tempfile::TempDir,
    kubelet: KubeletHandle,
}

async fn node(options: KubeletOptions) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("scenario.yaml");
    std::fs::write(&scenario, SCENARIO).unwrap();
    let kubelet =
        Kubelet::start(dir.path().join("pod-resources/kubelet.sock"), scenario, options).await.unwrap();
    Node { dir, kubelet }
}

fn at_once() -> KubeletOptions {
    KubeletOptions { empty_for: Duration::ZERO, ..KubeletOptions::default() }
}

async fn client(node: &Node) -> PodResourcesListerClient<Channel> {
    let url = format!("unix://{}", node.kubelet.socket().display());
    let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    PodResourcesListerClient::new(channel).max_decoding_message_size(64 << 20)
}

async fn list(
    client: &mut PodResourcesListerClient<Channel>,
) -> Result<ListPodResourcesResponse, tonic::Status> {
    client.list(ListPodResourcesRequest {}).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn list_has_every_active_pod_and_one_entry_per_container() {
    let node = node(at_once()).await;
    let pods = list(&mut client(&node).await).await.unwrap().pod_resources;
    assert_eq!(pods.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["one", "shared", "plain"]);
    let devices = &pods[0].containers[0].devices;
    assert_eq!(devices.len(), 1);
    assert_eq!(
        devices[0].device_ids,
        ["GPU-00000000-0000-0000-0000-000000000000", "GPU-00000000-0000-0000-0000-000000000002"]
    );
    assert_eq!(pods[0].containers[1].devices, []);
    assert_eq!(pods[1].containers[0].devices[0].device_ids, ["GPU-00000000-0000-0000-0000-000000000001::1"]);
    assert_eq!(pods[1].containers[0].devices[0].resource_name, "nvidia.com/gpu.shared");
}

#[tokio::test]
async fn allocatable_has_an_entry_per_replica_and_no_unhealthy_device() {
    let node = node(at_once()).await;
    let devices = client(&node)
        .await
        .get_allocatable_resources(AllocatableResourcesRequest {})
        .await
        .unwrap()
        .into_inner()
        .devices;
    let ids: Vec<_> = devices.iter().map(|d| (d.resource_name.as_str(), d.device_ids.join(","))).collect();
    assert_eq!(
        ids,
        [
            ("nvidia.com/gpu", "GPU-00000000-0000-0000-0000-000000000000".to_owned()),
            ("nvidia.com/gpu.shared", "GPU-00000000-0000-0000-0000-000000000001::0".to_owned()),
            ("nvidia.com/gpu.shared", "GPU-00000000-0000-0000-0000-000000000001::1".to_owned()),
        ]
    );
}

#[tokio::test]
async fn a_restart_is_another_file_kills_connections_and_is_empty_at_first() {
    let node = node(at_once()).await;
    let mut before = client(&node).await;
    assert_eq!(list(&mut before).await.unwrap().pod_resources.len(), 3);
    // Held open, so that the file system cannot give the new socket the old one's number.
    let held = node.dir.path().join("held");
    std::fs::hard_link(node.kubelet.socket(), &held).unwrap();
    node.kubelet.set_empty_for(Duration::from_secs(3600));
    node.kubelet.restart().await.unwrap();
    assert_ne!(
        std::fs::metadata(&held).unwrap().ino(),
        std::fs::metadata(node.kubelet.socket()).unwrap().ino()
    );
    assert_eq!(list(&mut client(&node).await).await.unwrap().pod_resources, []);
    assert_eq!(node.kubelet.calls().list, 2);
}

#[tokio::test]
async fn a_call_that_hangs_dies_with_the_old_kubelet() {
    let node = node(at_once()).await;
    node.kubelet.set_hang(Duration::from_secs(3600));
    let mut old = client(&node).await;
    let waiting = tokio::spawn(async move { list(&mut old).await });
    while node.kubelet.calls().list == 0 {
        tokio::task::yield_now().await;
    }
    node.kubelet.stop().await;
    assert!(!node.kubelet.socket().exists());
    waiting.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_hang_ends_when_it_is_switched_off() {
    let node = node(KubeletOptions { hang: Duration::from_secs(3600), ..at_once() }).await;
    let mut asking = client(&node).await;
    let waiting = tokio::spawn(async move { list(&mut asking).await });
    while node.kubelet.calls().list == 0 {
        tokio::task::yield_now().await;
    }
    node.kubelet.set_hang(Duration::ZERO);
    assert_eq!(waiting.await.unwrap().unwrap().pod_resources.len(), 3);
}

#[tokio::test]
async fn the_eleventh_call_at_once_is_rejected() {
    let node = node(KubeletOptions { calls_per_second: 0.001, ..at_once() }).await;
    let mut client = client(&node).await;
    for _ in 0..10 {
        list(&mut client).await.unwrap();
    }
    let status = list(&mut client).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (tonic::Code::ResourceExhausted, "rejected by rate limit"));
    assert_eq!(node.kubelet.calls(), Calls { list: 11, allocatable: 0, rejected: 1, pending: 0 });
}

#[tokio::test]
async fn padding_makes_the_answer_as_large_as_asked() {
    use prost::Message as _;
    let node = node(KubeletOptions { pad_to_bytes: 5 << 20, ..at_once() }).await;
    let answer = list(&mut client(&node).await).await.unwrap();
    assert!(answer.encoded_len() >= 5 << 20, "{}", answer.encoded_len());
    assert_eq!(answer.pod_resources[0].name, "one");
}

#[tokio::test]
async fn an_absent_kubelet_has_no_socket_until_it_is_started() {
    let node = node(KubeletOptions { absent: true, ..at_once() }).await;
    assert!(!node.kubelet.socket().exists());
    node.kubelet.restart().await.unwrap();
    assert_eq!(list(&mut client(&node).await).await.unwrap().pod_resources.len(), 3);
}

#[tokio::test]
async fn a_changed_scenario_is_listed() {
    let node = node(KubeletOptions { burst: 1e9, ..at_once() }).await;
    let mut client = client(&node).await;
    std::fs::write(node.dir.path().join("scenario.yaml"), "gpus: []\npods: [{ name: other }]\n").unwrap();
    let mut scenario = node.kubelet.scenario.clone();
    scenario.wait_for(|scenario| scenario.pods.len() == 1).await.unwrap();
    assert_eq!(list(&mut client).await.unwrap().pod_resources[0].name, "other");
}
