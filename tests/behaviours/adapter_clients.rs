//! What people and programs ask with: kubectl, and Python's kubernetes package, through the API server.

use std::path::PathBuf;
use std::process::Output;

use podgauge_tests::cluster::{Cluster, number};
use podgauge_tests::program::{run, tool};
use podgauge_tests::python;
use serde_json::Value;

/// The version that was looked at when this was written.
const PYTHON_CLIENT: &str = "kubernetes==37.0.2";

const NODE: &str = "
gpus: [{load: {constant: 80}}, {load: {constant: 20}}]
pods:
  - {name: a, labels: {app: chat}, containers: [{devices: [\"0\"]}]}
  - {name: b, labels: {app: other}, containers: [{devices: [\"1\"]}]}
";

/// A cluster with values, behind the aggregation layer.
async fn cluster() -> (Cluster, PathBuf) {
    let cluster = Cluster::start(NODE).await;
    let aggregator = cluster.aggregator();
    for pod in ["a", "b"] {
        cluster.value(&aggregator, pod, "gpu_utilization").await;
    }
    let kubeconfig = cluster.admin_kubeconfig();
    (cluster, kubeconfig)
}

async fn kubectl(kubeconfig: &std::path::Path, args: &[&str]) -> Output {
    let mut command = tool("kubectl");
    command.arg("--kubeconfig").arg(kubeconfig).args(args);
    // The stand-in runs in this process: it must go on answering meanwhile.
    tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap()
}

/// The forms that prometheus-adapter's README and walkthrough teach, for pods, nodes and namespaces.
#[tokio::test]
async fn kubectl_reads_every_path_that_is_taught() {
    let (_cluster, kubeconfig) = cluster().await;
    for version in ["v1beta1", "v1beta2"] {
        let base = format!("/apis/custom.metrics.k8s.io/{version}");
        // The slash at the end is as the README has it.
        for path in [base.clone(), format!("{base}/")] {
            let output = kubectl(&kubeconfig, &["get", "--raw", &path]).await;
            assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
            let list: Value = serde_json::from_slice(&output.stdout).unwrap();
            let names: Vec<&str> = list["resources"]
                .as_array()
                .unwrap()
                .iter()
                .map(|entry| entry["name"].as_str().unwrap())
                .collect();
            for resource in ["pods", "nodes", "namespaces"] {
                assert!(names.contains(&format!("{resource}/gpu_utilization").as_str()), "{names:?}");
            }
        }
        for (below, kind, values) in [
            ("namespaces/demo/pods/*/gpu_utilization", "Pod", &[80.0, 20.0][..]),
            ("namespaces/demo/pods/*/gpu_utilization?labelSelector=app%3Dchat", "Pod", &[80.0]),
            ("namespaces/demo/pods/%2A/gpu_utilization?labelSelector=app=chat", "Pod", &[80.0]),
            ("namespaces/demo/pods/a/gpu_utilization", "Pod", &[80.0]),
            ("namespaces/demo/pods/*/gpu_utilization?metricLabelSelector=gpu%3D0", "Pod", &[80.0]),
            ("nodes/*/gpu_utilization", "Node", &[50.0]),
            ("nodes/gpu-node-0/gpu_utilization", "Node", &[50.0]),
            ("namespaces/demo/metrics/gpu_utilization", "Namespace", &[50.0]),
            ("namespaces/*/metrics/gpu_utilization", "Namespace", &[50.0]),
        ] {
            let path = format!("{base}/{below}");
            let output = kubectl(&kubeconfig, &["get", "--raw", &path]).await;
            assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
            let list: Value = serde_json::from_slice(&output.stdout).unwrap();
            let items = list["items"].as_array().unwrap();
            assert_eq!(list["kind"], "MetricValueList");
            assert_eq!(items.len(), values.len(), "{path}: {list}");
            for (item, value) in items.iter().zip(values) {
                assert_eq!(item["describedObject"]["kind"], kind, "{path}");
                assert!((number(&item["value"]) - value).abs() <= 0.5, "{path}: {item}");
            }
        }
        let output =
            kubectl(&kubeconfig, &["get", "--raw", &format!("{base}/namespaces/demo/services/web/x")]).await;
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("could not find the metric x for services web"), "{text}");
    }
    let output = kubectl(
        &kubeconfig,
        &[
            "get",
            "--raw",
            "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/*/gpu_utilization/explain?target=60",
        ],
    )
    .await;
    let explanation: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&explanation["kind"], &explanation["hpa"]["desiredReplicas"]),
        (&"MetricExplanation".into(), &2.into())
    );
}

const SCRIPT: &str = r#"
import json, sys
from kubernetes import client, config
config.load_kube_config(sys.argv[1])
api = client.CustomObjectsApi()
group, found = "custom.metrics.k8s.io", []
for version in ["v1beta1", "v1beta2"]:
    for plural, name in [("pods/*", "gpu_utilization"), ("pods/a", "gpu_utilization"), ("metrics", "gpu_utilization")]:
        found.append(api.get_namespaced_custom_object(group, version, "demo", plural, name))
    for plural, name in [("nodes/*", "gpu_utilization"), ("nodes/gpu-node-0", "gpu_utilization"), ("namespaces/*/metrics", "gpu_utilization")]:
        found.append(api.get_cluster_custom_object(group, version, plural, name))
    found.append(api.list_namespaced_custom_object(group, version, "demo", "pods/*/gpu_utilization", label_selector="app=chat"))
try:
    api.get_namespaced_custom_object(group, "v1beta1", "demo", "pods/nobody", "gpu_utilization")
    refusal = None
except client.ApiException as error:
    refusal = {"status": error.status, "body": json.loads(error.body)}
print(json.dumps({"found": found, "refusal": refusal}))
"#;

#[tokio::test]
async fn pythons_client_reads_lists_and_reasons() {
    let environment = tokio::task::spawn_blocking(|| python::environment(PYTHON_CLIENT)).await.unwrap();
    let Some(python) = environment else { return };
    let (_cluster, kubeconfig) = cluster().await;
    let mut command = std::process::Command::new(python);
    // A proxy of the machine is no way to loopback.
    command.args(["-c", SCRIPT]).arg(kubeconfig).env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = answers["found"].as_array().unwrap();
    let expected: [&[f64]; 7] = [&[80.0, 20.0], &[80.0], &[50.0], &[50.0], &[50.0], &[50.0], &[80.0]];
    assert_eq!(found.len(), 2 * expected.len());
    for (list, values) in found.iter().zip(expected.iter().cycle()) {
        assert_eq!(list["kind"], "MetricValueList", "{list}");
        let items = list["items"].as_array().unwrap();
        assert_eq!(items.len(), values.len(), "{list}");
        for (item, value) in items.iter().zip(*values) {
            assert!((number(&item["value"]) - value).abs() <= 0.5, "{item}");
        }
    }
    assert_eq!(answers["refusal"]["status"], 404);
    let message = answers["refusal"]["body"]["message"].as_str().unwrap();
    assert!(message.ends_with("there is no pod nobody in namespace demo"), "{message}");
}
