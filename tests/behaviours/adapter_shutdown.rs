//! The adapter's end: connections that are still sent to it are answered until nobody sends any more.

use http::{HeaderMap, Method};
use podgauge_sim::aggregator::{AdapterClient, Protocol};
use podgauge_tests::cluster::{Cluster, SERVICE, headers};
use podgauge_tests::wait::{LIMIT, until};

const NODE: &str =
    "gpus: [{load: {constant: 64}}]\npods: [{name: a, labels: {app: a}, containers: [{devices: [\"0\"]}]}]";
const METRIC: &str = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/a/gpu_utilization";
const SIGTERM: i32 = 15;

/// A cluster whose adapter has this delay, with a value.
async fn cluster(delay: &str) -> Cluster {
    let cluster = Cluster::start_with(NODE, |command| {
        command.args(["--shutdown-delay-duration", delay]);
    })
    .await;
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    cluster
}

/// The answer to a read of the API server over a new connection.
async fn read(cluster: &Cluster) -> Result<String, String> {
    let certificate = cluster.server.certificates().front_proxy_client.clone();
    let (address, ca) = (cluster.adapter.address, cluster.adapter.authority.pem());
    let client = AdapterClient::new(address, SERVICE, ca, Some(&certificate), Protocol::Http2).unwrap();
    let hpa = headers(&[("x-remote-user", "m"), ("x-remote-group", "system:masters")]);
    let answer = client.send(Method::GET, METRIC, hpa, LIMIT).await.map_err(|error| error.to_string())?;
    if answer.status == 200 { Ok(answer.text()) } else { Err(answer.text()) }
}

async fn unready(cluster: &Cluster) {
    until("/readyz to say that it ends", || async {
        let answer = cluster.adapter.get(None, "/readyz", HeaderMap::new()).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let text = answer.text();
        if answer.status == 503 && text.contains("ending") { Ok(()) } else { Err(text) }
    })
    .await;
}

#[tokio::test]
async fn after_sigterm_it_is_not_ready_and_answers_new_connections_for_the_delay() {
    let mut cluster = cluster("1h").await;
    cluster.adapter.program.signal(SIGTERM);
    unready(&cluster).await;
    for _ in 0..10 {
        let answer = read(&cluster).await.unwrap();
        assert!(answer.contains("\"value\""), "{answer}");
    }
    let alive = cluster.adapter.get(None, "/livez", HeaderMap::new()).await.unwrap();
    assert_eq!(alive.status, 200, "{}", alive.text());
    // Values go on: exporters are scraped, pods followed.
    let before = read(&cluster).await.unwrap();
    until("a newer value", || async {
        let now = read(&cluster).await?;
        if now == before { Err(now) } else { Ok(()) }
    })
    .await;
    // A second signal ends it at once.
    cluster.adapter.program.signal(SIGTERM);
    assert_eq!(cluster.adapter.program.ended().await.code(), Some(1));
}

#[tokio::test]
async fn after_the_delay_it_ends_with_success() {
    let mut cluster = cluster("1s").await;
    cluster.adapter.program.signal(SIGTERM);
    assert!(cluster.adapter.program.ended().await.success());
    let log = cluster.adapter.program.log();
    assert!(
        log.contains("not ready; accepting connections for 1s more (--shutdown-delay-duration)"),
        "{log}"
    );
}
