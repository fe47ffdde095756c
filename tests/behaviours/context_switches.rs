//! Who tells how a shared GPU's use is divided, where context switches cannot be traced.

use std::path::Path;

use podgauge_tests::node::Node;
use podgauge_tests::page::Page;
use podgauge_tests::program::Exporter;

const ACTIVE: &str = "podgauge_gpu_active_seconds_total";
const ESTIMATED: &str = "podgauge_attribution_estimated";
const SOURCE: &str = "podgauge_exporter_process_source";
const NOT_TRACED: &str = "context switches are not traced";

/// A GPU that two pods share, and one of a single pod.
const SHARED: &str = "
gpus: [{replicas: 2}, {}]
pods:
  - name: a
    containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 40}}]}]
  - name: b
    containers: [{devices: ['0::1'], processes: [{pid: 4100002, gpu: 0, load: {constant: 20}}]}]
  - name: alone
    containers: [{devices: ['1'], processes: [{pid: 4100003, gpu: 1, load: {constant: 30}}]}]
";

async fn tracing(node: &Node, device_files: &Path) -> Exporter {
    node.exporter_with(|command| {
        node.in_kubernetes(command);
        command.args(["--process-source", "auto", "--path.device-files"]).arg(device_files);
    })
    .await
}

/// Waits for a page on which both pods have gained seconds.
async fn divided(exporter: &Exporter) -> Page {
    exporter
        .until("seconds of both pods", |page| {
            for pod in ["a", "b"] {
                let seconds = page.want(ACTIVE, &[("pod", pod)])?;
                if seconds < 0.3 {
                    return Err(format!("{pod} has {seconds} s"));
                }
            }
            Ok(page.clone())
        })
        .await
}

fn are_estimates(page: &Page) {
    let labels = [("gpu", "0"), ("source", "nvml")];
    assert_eq!(page.value(ESTIMATED, &labels), Some(1.0), "{}", page.text);
    assert_eq!(page.value(SOURCE, &labels), Some(1.0), "{}", page.text);
    for family in [ESTIMATED, SOURCE] {
        assert_eq!(page.all(family, &[]).len(), 1, "only a shared GPU is divided: {}", page.text);
    }
}

#[tokio::test]
async fn without_the_drivers_files_shares_are_nvmls_and_one_line_says_why() {
    let node = Node::new(SHARED);
    let _kubelet = node.kubelet().await;
    let files = node.path().join("no-device-files");
    let exporter = tracing(&node, &files).await;
    are_estimates(&divided(&exporter).await);
    let log = exporter.program.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(NOT_TRACED)).collect();
    let [line] = lines[..] else { panic!("{log}") };
    let missing = files.join("nvidiactl");
    assert!(line.contains(missing.to_str().unwrap()) && line.contains("No such file"), "{line}");
    assert!(line.contains("GPU 0") && line.contains("estimate"), "{line}");
}

/// Files that are no driver's refuse the first call.
#[tokio::test]
async fn files_that_are_no_drivers_are_refused_with_the_call() {
    let node = Node::new(SHARED);
    let _kubelet = node.kubelet().await;
    let files = node.path().join("device-files");
    std::fs::create_dir(&files).unwrap();
    for name in ["nvidiactl", "nvidia0"] {
        std::fs::write(files.join(name), "").unwrap();
    }
    let exporter = tracing(&node, &files).await;
    are_estimates(&divided(&exporter).await);
    let log = exporter.program.log();
    assert!(log.contains(NOT_TRACED) && log.contains("allocating a client: Inappropriate ioctl"), "{log}");
}

#[tokio::test]
async fn nvmls_samples_are_the_default_and_nothing_is_said_of_a_trace() {
    let node = Node::new(SHARED);
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page = divided(&exporter).await;
    are_estimates(&page);
    assert!(page.all("podgauge_exporter_context_switch_records_total", &[]).is_empty(), "{}", page.text);
    assert!(!exporter.program.log().contains("context switches"), "{}", exporter.program.log());
}
