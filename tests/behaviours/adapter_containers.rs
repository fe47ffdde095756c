//! A pod has one value per device, whatever containers its series are printed for: two that share a
//! device, names that become known late, and series of the pod as a whole.

use std::time::{Duration, Instant};

use podgauge_sim::aggregator::Aggregator;
use podgauge_sim::apiserver::Exporter as Endpoint;
use podgauge_tests::cluster::{Cluster, number};
use podgauge_tests::wait::{until, until_within};

use crate::adapter_parts::{Exporter, Part, Row, row, scenario};
use podgauge_tests::fleet::{Fleet, near};

const ACTIVE: &str = "podgauge_gpu_active_seconds_total";

/// Two containers with a process each, on a GPU of which each holds a quarter, and on a whole GPU of
/// the first one alone.
fn pair(more: &str) -> String {
    format!(
        "
gpus: [{{replicas: 4{more}}}, {{}}]
pods:
  - name: pair
    containers:
      - {{name: x, devices: ['0::0'], processes: [{{pid: 4100001, gpu: 0, load: {{constant: 20}}}}]}}
      - {{name: y, devices: ['0::1'], processes: [{{pid: 4100002, gpu: 0, load: {{constant: 10}}}}]}}
  - name: guest
    containers:
      - {{name: x, devices: ['1'], processes: [{{pid: 4100003, gpu: 1, load: {{constant: 40}}}}]}}
      - {{name: y, processes: [{{pid: 4100004, gpu: 1, load: {{constant: 20}}}}]}}
"
    )
}

async fn ask(aggregator: &Aggregator, pod: &str, metric: &str) -> Result<f64, String> {
    let path = format!("namespaces/demo/pods/{pod}/{metric}");
    let answer = aggregator.metric_request(&path, vec![]).await.map_err(|error| error.to_string())?;
    match answer.status.as_u16() {
        200 => Ok(number(&answer.json().unwrap()["items"][0]["value"])),
        _ => Err(answer.text()),
    }
}

/// Seconds back to the oldest reading in a pod's value.
async fn reach(aggregator: &Aggregator, pod: &str) -> Result<f64, String> {
    let path = format!("namespaces/demo/pods/{pod}/gpu_utilization/explain");
    let answer = aggregator.metric_request(&path, vec![]).await.map_err(|error| error.to_string())?;
    let explanation = answer.json().map_err(|error| error.to_string())?;
    explanation["pods"][0]["devices"][0]["oldestSeconds"].as_f64().ok_or_else(|| explanation.to_string())
}

/// Asks until the value is made of what was received since now alone. Each answer is near the truth;
/// before that the value may be unknown for a while.
async fn is_after_a_window(aggregator: &Aggregator, pod: &str, truth: f64, within: f64) {
    let began = Instant::now();
    until(&format!("a window of {pod} since now"), || async {
        match ask(aggregator, pod, "gpu_utilization").await {
            Ok(value) => {
                assert!((value - truth).abs() <= within, "{pod} is {value}, {truth} is true");
                let reach = reach(aggregator, pod).await?;
                let since = began.elapsed().as_secs_f64();
                if since > reach { Ok(()) } else { Err(format!("{reach} s back, {since} s ago")) }
            }
            Err(text) => Err(text),
        }
    })
    .await;
}

/// Waits for a value near the truth.
async fn comes(aggregator: &Aggregator, pod: &str, metric: &str, truth: f64, within: f64) {
    until(&format!("{metric} of {pod} to be {truth}"), || async {
        match ask(aggregator, pod, metric).await {
            Ok(value) if (value - truth).abs() <= within => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

#[tokio::test]
async fn two_containers_on_one_gpu_have_one_value() {
    let cluster = Cluster::start(&pair("")).await;
    let aggregator = cluster.aggregator();
    // 30 % of the GPU, of which the pod holds a half.
    comes(&aggregator, "pair", "gpu_utilization", 60.0, 8.0).await;
    is_after_a_window(&aggregator, "pair", 60.0, 12.0).await;
    comes(&aggregator, "guest", "gpu_utilization", 60.0, 4.0).await;
    // It is printed for the container that holds the GPU.
    let power = until("the power", || ask(&aggregator, "guest", "gpu_power_watts")).await;
    assert!(power > 0.0);
}

/// An MPS server starts: containers cannot be told apart any more, and their pod, which has the GPU
/// alone, has its series as a whole. Until the exporter is sure of it, a fifth of 5 s is nobody's: a tenth
/// of this window.
#[tokio::test]
async fn an_mps_server_that_starts_changes_no_value() {
    let apart = pair("");
    let together = pair(", mps_server: 4100009");
    let cluster = Cluster::start(&apart).await;
    let aggregator = cluster.aggregator();
    comes(&aggregator, "pair", "gpu_utilization", 60.0, 8.0).await;
    let exporter = cluster.exporter.as_ref().unwrap();
    cluster.node.play(&together);
    let labels = [("pod", "pair"), ("container", "")];
    until_within(Duration::from_secs(120), "series of the whole pod", || async {
        if let Ok(value) = ask(&aggregator, "pair", "gpu_utilization").await {
            assert!((value - 60.0).abs() <= 9.0, "{value} before there are series of the whole pod");
        }
        exporter.page().await.want(ACTIVE, &labels)
    })
    .await;
    is_after_a_window(&aggregator, "pair", 60.0, 9.0).await;
}

/// The exporter restarts while the logs of containers, which have their names, are away; then they
/// are there.
#[tokio::test]
async fn names_that_become_known_late_change_no_value() {
    let mut cluster = Cluster::start(&pair("")).await;
    let aggregator = cluster.aggregator();
    comes(&aggregator, "pair", "gpu_utilization", 60.0, 8.0).await;
    let logs = cluster.node.trees().join("container-logs");
    let away = cluster.node.path().join("container-logs-away");
    std::fs::rename(&logs, &away).unwrap();
    std::fs::create_dir(&logs).unwrap();
    cluster.exporter = None;
    let exporter = cluster.node.exporter_in_kubernetes().await;
    let address = exporter.address.parse().unwrap();
    cluster.server.set_exporters(&[Endpoint { node: Some("gpu-node-0".to_owned()), address, ready: true }]);
    let labels = [("pod", "pair"), ("container", "")];
    exporter.until("series without a name", |page| page.want(ACTIVE, &labels)).await;
    is_after_a_window(&aggregator, "pair", 60.0, 12.0).await;
    std::fs::remove_dir(&logs).unwrap();
    std::fs::rename(&away, &logs).unwrap();
    exporter
        .until("series with names alone", |page| match page.value(ACTIVE, &labels) {
            None => page.want(ACTIVE, &[("pod", "pair"), ("container", "x")]),
            Some(_) => Err(page.text.clone()),
        })
        .await;
    is_after_a_window(&aggregator, "pair", 60.0, 12.0).await;
}

/// A page that ceases to tell containers apart, and begins again.
#[tokio::test]
async fn series_under_another_container_label_go_on_where_the_others_ended() {
    let by_name = vec![row(0, "a", "main", Part::Size(1.0), 60.0)];
    let without_use = Row { load: None, ..by_name[0].clone() };
    let as_a_whole = vec![without_use, row(0, "a", "", Part::None, 60.0)];
    let exporter = Exporter::start(by_name.clone()).await;
    let fleet = Fleet::of(&scenario(&[("a", "")]), &exporter.arguments()).await;
    near(fleet.value("a").await, 60.0);
    for rows in [&as_a_whole, &by_name] {
        exporter.rows.lock().clone_from(rows);
        is_after_a_window(&fleet.aggregator, "a", 60.0, 0.05).await;
    }
}
