//! More than one adapter, and when one is ready.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::HeaderMap;
use podgauge_sim::apiserver::{ApiServer, ApiServerHandle, ApiServerOptions, Exporter as Endpoint};
use podgauge_sim::{Port, hpa};
use podgauge_tests::cluster::{Adapter, Cluster, headers};
use podgauge_tests::node::Node;
use podgauge_tests::wait::{LIMIT, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;

const NODE: &str = "
gpus: [{load: {constant: 85}}, {load: {constant: 40}}, {load: {square: {low: 20, high: 60, period_s: 0.5}}}]
pods:
  - {name: a, labels: {app: x}, containers: [{devices: [\"0\"]}]}
  - {name: b, labels: {app: x}, containers: [{devices: [\"1\"]}]}
  - {name: c, labels: {app: x}, containers: [{devices: [\"2\"]}]}
";

/// Replicas know nothing of each other: they scrape at other times, and one has just begun.
#[tokio::test]
async fn replicas_answer_within_a_point_of_each_other() {
    let cluster = Cluster::start(NODE).await;
    let first = cluster.aggregator();
    let pods = ["a", "b", "c"];
    for pod in pods {
        cluster.value(&first, pod, "gpu_utilization").await;
    }
    // A folder of its own for the second one's certificate.
    let folder = Node::new(NODE);
    let second = Adapter::start(&folder, &cluster.server, |command| {
        command.args(["--exporter-service", "podgauge/podgauge-exporter"]);
        command.args(["--scrape-interval", "1s", "--window", "10s", "--staleness", "5s"]);
    })
    .await;
    let ask = async |adapter: &Adapter| {
        let path = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/%2A/gpu_utilization?labelSelector=app%3Dx";
        let answer =
            adapter.get(None, path, headers(&[("authorization", "Bearer sim-admin")])).await.unwrap();
        let list = answer.json().unwrap();
        let newest = list["items"][0]["timestamp"].as_str().unwrap_or_default().to_owned();
        (hpa::items(&list).unwrap_or_default(), newest)
    };
    until("all values of the second", || async {
        let (items, _) = ask(&second).await;
        if items.len() == pods.len() { Ok(()) } else { Err(format!("{items:?}")) }
    })
    .await;
    // Until each has had new readings ten times: of the first answers the windows are of other lengths.
    let (start, mut renewed, mut before) = (Instant::now(), 0, String::new());
    while renewed < 10 {
        assert!(start.elapsed() < LIMIT, "no new readings");
        let ((one, _), (two, newest)) = (ask(&cluster.adapter).await, ask(&second).await);
        // One that had no time to scrape has no value for a while.
        if pods.iter().all(|pod| one.contains_key(*pod) && two.contains_key(*pod)) {
            for pod in pods {
                let apart = (one[pod] - two[pod]).abs();
                assert!(apart <= 1000, "{pod}: {} and {} thousandths", one[pod], two[pod]);
            }
            renewed += usize::from(newest != before);
            before = newest;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// An exporter that has nothing to tell. Says how often it was asked.
async fn exporter() -> (SocketAddr, watch::Receiver<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, answers) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|read| read > 0)
            {
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            if stream.write_all(answer).await.is_ok() {
                asked.send_modify(|asked| *asked += 1);
            }
        }
    });
    (address, answers)
}

async fn api_server(exporters: &[SocketAddr]) -> ApiServerHandle {
    let endpoint =
        |address: &SocketAddr| Endpoint { node: Some("n".to_owned()), address: *address, ready: true };
    let exporters = exporters.iter().map(endpoint).collect();
    ApiServer::start(ApiServerOptions { exporters, ..ApiServerOptions::default() }).await.unwrap()
}

async fn adapter(folder: &Node, server: &ApiServerHandle, interval: &str) -> Adapter {
    Adapter::launch(folder, server, |command| {
        command.args(["--exporter-service", "podgauge/podgauge-exporter", "--scrape-interval", interval]);
    })
    .await
}

/// `/readyz`: nothing if it is ready, else why not.
async fn missing(adapter: &Adapter) -> Option<String> {
    let answer = adapter.get(None, "/readyz", HeaderMap::new()).await.unwrap();
    (answer.status != 200).then(|| answer.text())
}

#[tokio::test]
async fn without_exporters_an_adapter_is_ready() {
    let (folder, server) = (Node::new("gpus: []"), api_server(&[]).await);
    let mut adapter = adapter(&folder, &server, "5s").await;
    adapter.ready().await;
    adapter.program.logged("ready: 0 pods, 0 exporters").await;
    assert_eq!(adapter.program.count_logged("although"), 0, "{}", adapter.program.log());
}

#[tokio::test]
async fn each_exporter_must_have_answered_twice() {
    let (address, mut asked) = exporter().await;
    let (folder, server) = (Node::new("gpus: []"), api_server(&[address]).await);
    // The second scrape comes three seconds after the first at least.
    let mut adapter = adapter(&folder, &server, "6s").await;
    asked.wait_for(|asked| *asked >= 1).await.unwrap();
    let reason = until("the one that is missing", || async {
        let reason = missing(&adapter).await.unwrap_or_default();
        if reason.contains("exporters: 1 have") { Ok(reason) } else { Err(reason) }
    })
    .await;
    assert_eq!(reason.trim(), "exporters: 1 have not answered twice yet");
    adapter.ready().await;
    assert!(*asked.borrow() >= 2, "asked {} times", *asked.borrow());
    adapter.program.logged("ready: 0 pods, 1 exporters").await;
    assert_eq!(adapter.program.count_logged("although"), 0, "{}", adapter.program.log());
}

#[tokio::test]
async fn an_exporter_that_failed_once_is_waited_for_no_longer() {
    let port = Port::reserve("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = port.address();
    let (folder, server) = (Node::new("gpus: []"), api_server(&[address]).await);
    let mut adapter = adapter(&folder, &server, "5s").await;
    adapter.ready().await;
    adapter.program.logged("ready: 0 pods, 1 exporters").await;
    assert_eq!(adapter.program.count_logged("although"), 0, "{}", adapter.program.log());
}

#[tokio::test]
async fn pods_must_be_listed() {
    let (folder, server) = (Node::new("gpus: []"), api_server(&[]).await);
    server.set_delay(Duration::from_secs(600));
    let mut adapter = adapter(&folder, &server, "5s").await;
    let reason = missing(&adapter).await.unwrap_or_default();
    assert!(reason.contains("pods: not listed yet"), "{reason:?}");
    server.set_delay(Duration::ZERO);
    adapter.ready().await;
    adapter.program.logged("ready: 0 pods, 0 exporters").await;
    assert_eq!(adapter.program.count_logged("although"), 0, "{}", adapter.program.log());
}

/// While an adapter is not available no namespace can be deleted: it must not wait for ever.
#[tokio::test]
async fn after_fifteen_seconds_an_adapter_is_ready_whatever_it_lacks() {
    let (folder, server) = (Node::new("gpus: []"), api_server(&[]).await);
    server.set_delay(Duration::from_secs(600));
    let mut adapter = adapter(&folder, &server, "5s").await;
    assert!(missing(&adapter).await.is_some());
    adapter.ready().await;
    adapter.program.logged("ready after 15s although: not listed yet").await;
}
