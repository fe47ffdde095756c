//! `podgauge-adapter explain`: what a value is made of, and what an HPA makes of the values.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use podgauge_sim::apiserver::{ADAPTER_TOKEN, Credentials, NOBODY_TOKEN};
use podgauge_tests::built;
use podgauge_tests::cluster::Cluster;
use podgauge_tests::program::run;
use podgauge_tests::wait::until;
use serde_json::Value;

/// Runs `explain` with a kubeconfig; the stand-in API server goes on answering meanwhile.
async fn explain(kubeconfig: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(built("podgauge-adapter"));
    command.env_remove("RUST_LOG").env("KUBECONFIG", kubeconfig).arg("explain").args(args);
    tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap()
}

async fn explained(kubeconfig: &Path, args: &[&str]) -> Value {
    let output = explain(kubeconfig, &[args, &["-o", "json"]].concat()).await;
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn kubeconfig(cluster: &Cluster, name: &str, token: &str) -> PathBuf {
    let path = cluster.node.path().join(name);
    cluster.server.write_kubeconfig(&path, &Credentials::Token(token.to_owned())).unwrap();
    path
}

/// Five services with the loads of the controller's own worked numbers; `still` has a pod that has
/// no GPU yet, and one of `uneven` stops being Ready.
fn services(uneven_ready: bool) -> String {
    let loads = [
        ("steady", &[20, 21, 21][..]),
        ("still", &[10, 10]),
        ("spread", &[20, 10, 30]),
        ("five", &[12, 12, 12, 12, 12]),
        ("uneven", &[50, 10, 30]),
    ];
    let (mut gpus, mut pods) = (String::new(), String::new());
    let mut gpu = 0;
    for (app, loads) in loads {
        for (at, load) in loads.iter().enumerate() {
            let ready = uneven_ready || (app, at) != ("uneven", 0);
            gpus.push_str(&format!("  - {{load: {{constant: {load}}}}}\n"));
            pods.push_str(&format!(
                "  - {{name: {app}-{at}, labels: {{app: {app}}}, ready: {ready}, containers: [{{name: main, devices: [\"{gpu}\"]}}]}}\n"
            ));
            gpu += 1;
        }
    }
    pods.push_str("  - {name: still-2, labels: {app: still}, containers: [{}]}\n");
    format!("gpus:\n{gpus}pods:\n{pods}")
}

#[tokio::test]
async fn the_controllers_worked_numbers_come_out() {
    let cluster = Cluster::start(&services(true)).await;
    let aggregator = cluster.aggregator();
    for pod in ["steady-2", "still-1", "spread-2", "five-4", "uneven-0"] {
        cluster.value(&aggregator, pod, "gpu_utilization").await;
    }
    // Running and not Ready: to an HPA no matter for a custom metric.
    cluster.node.play(&services(false));
    let admin = cluster.admin_kubeconfig();
    for (app, target, current, average, desired) in [
        ("steady", "20", "3", 20.666, 3),
        ("still", "17", "2", 10.0, 2),
        ("spread", "15", "3", 20.0, 4),
        ("five", "20", "5", 12.0, 3),
        ("uneven", "15", "3", 30.0, 6),
    ] {
        let selector = format!("app={app}");
        let args =
            ["pods", "demo", &selector, "gpu_utilization", "--target", target, "--current-replicas", current];
        let explanation = until("every value", || async {
            let explanation = explained(&admin, &args).await;
            let unknown = explanation["hpa"]["missing"].as_array().unwrap().len();
            let ready = explanation["pods"].as_array().unwrap().iter().all(|pod| pod["ready"] == true);
            // One pod of `still` has no GPU, and one of `uneven` is not Ready.
            let expected = (usize::from(app == "still"), app != "uneven");
            if (unknown, ready) == expected { Ok(explanation) } else { Err(explanation.to_string()) }
        })
        .await;
        let hpa = &explanation["hpa"];
        let quantity = hpa["averageValue"].as_str().unwrap();
        let found = podgauge_sim::hpa::milli(quantity).unwrap() as f64 / 1000.0;
        assert!((found - average).abs() <= 0.1, "{app}: {hpa}");
        assert_eq!(hpa["desiredReplicas"], desired, "{app}: {hpa}");
        assert!(hpa["notModelled"].as_str().unwrap().contains("stabilization"), "{hpa}");
    }
    // Bounds apply as the HPA applies them.
    let args = ["pods", "demo", "app=uneven", "gpu_utilization", "--target=15", "--min=1", "--max=4"];
    let bounded = explained(&admin, &args).await;
    assert_eq!(
        (&bounded["hpa"]["desiredReplicas"], &bounded["hpa"]["currentReplicas"]),
        (&4.into(), &3.into())
    );
}

const NODE: &str = "
gpus: [{load: {constant: 80}}, {load: {constant: 40}}, {replicas: 2}]
pods:
  - name: pair
    labels: {app: chat}
    containers:
      - {name: main, devices: [\"0\", \"1\"], processes: [{pid: 4100002, gpu: 0, memory_mib: 4096}, {pid: 4100003, gpu: 1, memory_mib: 2048}]}
  - {name: web, labels: {app: chat}, containers: [{}]}
  - {name: share, labels: {app: share}, containers: [{name: main, devices: [\"2::0\"], processes: [{pid: 4100001, gpu: 2, load: {constant: 30}}]}]}
";

#[tokio::test]
async fn each_pod_shows_its_devices_their_readings_or_the_reason() {
    let cluster = Cluster::start(NODE).await;
    let aggregator = cluster.aggregator();
    cluster.value(&aggregator, "pair", "gpu_utilization").await;
    cluster.value(&aggregator, "share", "gpu_utilization").await;
    // As the adapter's own service account may, in its pod.
    let own = kubeconfig(&cluster, "own.kubeconfig", ADAPTER_TOKEN);
    let explanation = until("a window full of readings", || async {
        let explanation = explained(&own, &["pods", "demo", "", "gpu_utilization"]).await;
        let covered = explanation["pods"][0]["devices"][0]["coveredSeconds"].as_f64();
        if covered.is_some_and(|covered| covered > 8.0) {
            Ok(explanation)
        } else {
            Err(explanation.to_string())
        }
    })
    .await;
    let pods = explanation["pods"].as_array().unwrap();
    let names: Vec<&str> = pods.iter().map(|pod| pod["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pair", "share", "web"]);
    let pair = &pods[0];
    assert_eq!(
        (&pair["value"], &pair["ready"], &pair["node"]),
        (&"60".into(), &true.into(), &"gpu-node-0".into())
    );
    let devices = pair["devices"].as_array().unwrap();
    let mut means: Vec<f64> = devices.iter().map(|device| device["mean"].as_f64().unwrap().round()).collect();
    means.sort_by(f64::total_cmp);
    assert_eq!(means, [40.0, 80.0], "{pair}");
    for device in devices {
        assert_eq!(
            (&device["container"], &device["part"], &device["present"]),
            (&"main".into(), &1.0.into(), &true.into())
        );
        assert!(device["labels"]["UUID"].as_str().unwrap().starts_with("GPU-"), "{device}");
        let number = |name: &str| device[name].as_f64().unwrap();
        assert!(number("coveredSeconds") >= 8.0 && number("observedSeconds") >= 14.0, "{device}");
        assert!(["exporter", "readings"].contains(&device["source"].as_str().unwrap()), "{device}");
        assert!(number("newestSeconds") < number("oldestSeconds"), "{device}");
    }
    // A half of a device: 30 % of it are 60 % of what was given.
    let share = &pods[1];
    assert_eq!(share["devices"][0]["part"], 0.5, "{share}");
    assert!((share["devices"][0]["mean"].as_f64().unwrap() - 30.0).abs() < 4.0, "{share}");
    assert_eq!((&pods[2]["omitted"]["reason"], pods[2].get("value")), (&"no_gpu".into(), None));
    assert!(pods[2]["omitted"]["message"].as_str().unwrap().contains("knows of no GPU"), "{}", pods[2]);

    // People read a table: a column starts at one place.
    let output =
        explain(&own, &["pods", "demo", "app=chat", "gpu_utilization", "--target=40", "--max=3"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let heads = lines.iter().position(|line| line.starts_with("POD")).unwrap_or_else(|| panic!("{text}"));
    let column = lines[heads].find("VALUE").unwrap();
    assert!(lines[heads + 1][column..].starts_with("60 "), "{text}");
    assert!(text.contains("left out, no_gpu: "), "{text}");
    assert!(text.contains("An HPA with averageValue 40, 2 replicas now, at most 3:"), "{text}");
    assert!(text.contains("missing, on target for shrinking and idle for growing: web"), "{text}");
    assert!(text.contains("2 -> 2 replicas"), "{text}");
}

#[tokio::test]
async fn values_and_means_have_one_unit_which_is_named() {
    let cluster = Cluster::start(NODE).await;
    let aggregator = cluster.aggregator();
    let admin = cluster.admin_kubeconfig();
    for (metric, unit) in
        [("gpu_memory_used_bytes", "bytes"), ("gpu_memory_utilization", "%"), ("gpu_power_watts", "W")]
    {
        cluster.value(&aggregator, "pair", metric).await;
        let explanation = explained(&admin, &["pods", "demo", "app=chat", metric]).await;
        assert_eq!(explanation["unit"], unit, "{explanation}");
        let pair = &explanation["pods"][0];
        let quantity = podgauge_sim::hpa::milli(pair["value"].as_str().unwrap()).unwrap() as f64 / 1000.0;
        assert!(quantity > 1.0, "{pair}");
        let means: Vec<f64> = pair["devices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|device| device["mean"].as_f64().unwrap())
            .collect();
        let sum: f64 = means.iter().sum();
        // Both GPUs have the same memory.
        let value = if unit == "%" { sum / 2.0 } else { sum };
        assert!((value - quantity).abs() <= 0.01 * quantity + 0.01, "{metric}: {pair}");
        let table = explain(&admin, &["pods", "demo", "app=chat", metric]).await.stdout;
        let table = String::from_utf8(table).unwrap();
        let heads = table.lines().find(|line| line.starts_with("POD")).unwrap();
        assert!(heads.contains(&format!("VALUE ({unit})")), "{table}");
        assert!(heads.ends_with(&format!("MEAN ({unit})")), "{table}");
    }
}

#[tokio::test]
async fn a_silent_exporter_is_explained_with_its_age_and_what_it_told_last() {
    let mut cluster = Cluster::start(NODE).await;
    cluster.value(&cluster.aggregator(), "pair", "gpu_utilization").await;
    let admin = cluster.admin_kubeconfig();
    cluster.exporter = None;
    // Its reading is too old a moment before its exporter is.
    let explanation = until("the silence", || async {
        let args = ["pods", "demo", "app=chat", "gpu_utilization", "--target=60"];
        let explanation = explained(&admin, &args).await;
        let pair = &explanation["pods"][0];
        if pair["omitted"]["reason"] == "exporter_silent" { Ok(explanation) } else { Err(pair.to_string()) }
    })
    .await;
    let pair = &explanation["pods"][0];
    assert!(pair["value"].is_null(), "{pair}");
    let exporter = &pair["exporters"][0];
    assert!(exporter["lastAnswerSeconds"].as_f64().unwrap() >= 5.0, "{exporter}");
    assert!(exporter["failure"].is_string() && exporter["podgauge"] == true, "{exporter}");
    let device = &pair["devices"][0];
    assert!(device["newestSeconds"].as_f64().unwrap() >= 5.0 && device["mean"].is_number(), "{device}");
    let hpa = &explanation["hpa"];
    assert_eq!(
        (&hpa["error"], hpa.get("desiredReplicas")),
        (&"no metrics returned from custom metrics API".into(), None)
    );
}

#[tokio::test]
async fn what_cannot_be_explained_is_one_line() {
    let cluster = Cluster::start(NODE).await;
    let aggregator = cluster.aggregator();
    cluster.value(&aggregator, "pair", "gpu_utilization").await;
    let admin = cluster.admin_kubeconfig();
    let nobody = kubeconfig(&cluster, "nobody.kubeconfig", NOBODY_TOKEN);
    let nowhere = cluster.node.path().join("nowhere");
    for (kubeconfig, args, code, words) in [
        (&admin, &["pods", "demo", "app=none", "gpu_utilization"][..], 1, "no pod in namespace demo matches"),
        (&admin, &["pods", "demo", "", "gpu_nonsense"], 1, "this adapter serves gpu_utilization"),
        (&admin, &["pods", "demo", "a===b", "gpu_utilization"], 1, "labelSelector"),
        (&nobody, &["pods", "demo", "", "gpu_utilization"], 1, "is forbidden: User \"nobody\" cannot get"),
        (&nowhere, &["pods", "demo", "", "gpu_utilization"], 1, "nowhere"),
        (&admin, &["pods", "demo", "", "gpu_utilization", "--target", "lots"], 2, "no quantity"),
        (&admin, &["services", "demo", "", "gpu_utilization"], 2, "pods"),
    ] {
        let output = explain(kubeconfig, args).await;
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(code), true), "{args:?}: {text}");
        assert!(text.starts_with("error: ") && text.contains(words), "{args:?}: {text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("error")).count(), 1, "{text}");
    }
}
