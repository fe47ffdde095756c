//! The page: families, types, labels, values, headers.

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use http::{HeaderMap, header};
use podgauge_tests::node::Node;
use podgauge_tests::program::{run, tool};
use podgauge_tests::{checkout, client};

/// An H100 under the default counters serves these.
const FAMILIES: [&str; 19] = [
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
    "DCGM_FI_DEV_DEC_UTIL",
    "DCGM_FI_DEV_ENC_UTIL",
    "DCGM_FI_DEV_FB_FREE",
    "DCGM_FI_DEV_FB_RESERVED",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_MEMORY_TEMP",
    "DCGM_FI_DEV_MEM_CLOCK",
    "DCGM_FI_DEV_MEM_COPY_UTIL",
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_ROW_REMAP_FAILURE",
    "DCGM_FI_DEV_SM_CLOCK",
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
    "DCGM_FI_DEV_VGPU_LICENSE_STATUS",
    "DCGM_FI_DEV_XID_ERRORS",
];

const UUID: &str = "GPU-00000000-0000-0000-0000-000000000000";

#[tokio::test]
async fn the_default_counters_with_their_labels_types_and_help() {
    let node = Node::new(
        "gpus: [{load: {constant: 30}}, {load: {constant: 0}, nvlink: {links: 18, tx_mib_s: 1000, rx_mib_s: 1000}}]",
    );
    let exporter = node.exporter().await;
    let page = exporter
        .until("every family", |page| {
            page.want("DCGM_FI_DEV_GPU_UTIL", &[("gpu", "1")]).map(|_| page.clone())
        })
        .await;
    for family in FAMILIES {
        let samples = page.all(family, &[]);
        assert_eq!(samples.len(), 2, "{family}: {samples:?}");
        let csv = std::fs::read_to_string(checkout("exporter/default-counters.csv")).unwrap();
        let line = csv.lines().find(|line| line.starts_with(&format!("{family},"))).unwrap();
        let kind = line.split(',').nth(1).unwrap().trim();
        assert!(page.text.contains(&format!("# TYPE {family} {kind}\n")), "{family}");
        assert!(page.text.contains(&format!("# HELP {family} ")), "{family}");
    }
    // The GPU without links has no NVLink sample, and that is no 0.
    assert_eq!(page.value("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", &[("gpu", "0")]), None);
    assert!(page.value("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", &[("gpu", "1")]).is_some());
    let clock = page.all("DCGM_FI_DEV_SM_CLOCK", &[("gpu", "0")])[0];
    let labels: Vec<(&str, &str)> = clock.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        labels,
        [
            ("DCGM_FI_DRIVER_VERSION", "580.159.04"),
            ("UUID", UUID),
            ("device", "nvidia0"),
            ("gpu", "0"),
            ("hostname", "gpu-node-0"),
            ("modelName", "NVIDIA H100 80GB HBM3"),
            ("pci_bus_id", "00000000:17:00.0"),
        ]
    );
    let xid = page.all("DCGM_FI_DEV_XID_ERRORS", &[("gpu", "0"), ("err_code", "0"), ("err_msg", "No Error")]);
    assert_eq!(xid[0].value, 0.0);
}

#[tokio::test]
async fn what_nvml_does_not_answer_is_left_out() {
    let node = Node::new(
        "gpus: [{load: {constant: 30}, errors: {nvmlDeviceGetTemperature: NOT_SUPPORTED, nvmlDeviceGetPowerUsage: \
         NO_PERMISSION, nvmlDeviceGetClockInfo: UNKNOWN}}]",
    );
    let exporter = node.exporter().await;
    let page =
        exporter.until("a page", |page| page.want("DCGM_FI_DEV_FB_USED", &[]).map(|_| page.clone())).await;
    for absent in ["GPU_TEMP", "POWER_USAGE", "SM_CLOCK", "MEM_CLOCK"] {
        assert!(!page.text.contains(&format!("DCGM_FI_DEV_{absent}")), "{absent} in\n{}", page.text);
    }
    assert!(!page.text.contains("NaN"));
}

#[tokio::test]
async fn a_call_that_the_library_lacks_costs_its_family_alone() {
    let node = Node::new("gpus: [{load: {constant: 30}}]");
    let old = node.path().join("libnvidia-ml-old.so");
    let symbols =
        ["nvmlDeviceGetSamples", "nvmlDeviceGetTemperature", "nvmlEventSetWait_v2"].map(str::to_owned);
    podgauge_sim_nvml::library::write_library_without(&podgauge_tests::nvml_library(), &old, &symbols)
        .unwrap();
    let exporter = podgauge_tests::program::Exporter::start(|command| {
        command.arg("--nvml-library").arg(&old).env("PODGAUGE_SIM_SCENARIO", node.scenario());
    })
    .await;
    // Without rings the rates are read five times a second.
    let page = exporter
        .until("utilization without rings", |page| {
            page.want("DCGM_FI_DEV_GPU_UTIL", &[]).map(|_| page.clone())
        })
        .await;
    assert!((page.value("DCGM_FI_DEV_GPU_UTIL", &[]).unwrap() - 30.0).abs() <= 1.0, "{}", page.text);
    assert_eq!(page.value("DCGM_FI_DEV_GPU_TEMP", &[]), None);
    assert!(page.value("DCGM_FI_DEV_POWER_USAGE", &[]).is_some());
}

#[tokio::test]
async fn content_type_gzip_and_the_other_paths() {
    let node = Node::new("gpus: [{load: {constant: 30}}]");
    let exporter = node.exporter().await;
    exporter.until("a page", |page| page.want("DCGM_FI_DEV_SM_CLOCK", &[])).await;
    let plain = exporter.get("/metrics").await;
    assert_eq!(plain.headers()[header::CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
    let mut asks = HeaderMap::new();
    asks.insert(header::ACCEPT_ENCODING, "gzip".parse().unwrap());
    let packed = client::get(&exporter.address, "/metrics", &asks).await.unwrap();
    assert_eq!(packed.headers()[header::CONTENT_ENCODING], "gzip");
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed.body().as_ref()).read_to_string(&mut text).unwrap();
    assert!(text.contains("DCGM_FI_DEV_SM_CLOCK{"));
    assert_eq!(exporter.get("/health").await.status(), 200);
    assert_eq!(exporter.get("/").await.status(), 200);
    assert_eq!(exporter.get("/nothing").await.status(), 404);
}

/// promtool finds fault with names; dcgm-exporter's own are what they are.
#[tokio::test]
async fn promtool_complains_of_nothing_but_dcgms_own_names() {
    let node =
        Node::new("gpus: [{load: {constant: 30}}]\npods: [{name: a, containers: [{devices: [\"0\"]}]}]");
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes_with_own_metrics().await;
    let page = exporter
        .until("pod labels", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[("pod", "a")]).map(|_| page.clone()))
        .await;
    let mut promtool = tool("promtool");
    let mut child = promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{promtool:?}: {error}; run `make tools`"));
    child.stdin.take().unwrap().write_all(page.text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let complaints = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!complaints.contains("error while linting"), "{complaints}");
    // Family names and the label modelName are dcgm-exporter's.
    let of_dcgm = |complaint: &str| {
        complaint.starts_with("DCGM_FI_")
            || complaint.ends_with("label names should be written in 'snake_case' not 'camelCase'")
    };
    for complaint in complaints.lines() {
        assert!(of_dcgm(complaint), "promtool: {complaint}\n{}", page.text);
    }
    // It does find fault: the check itself works.
    assert!(complaints.contains("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"), "{complaints}");
    assert!(run(tool("promtool").arg("--version")).status.success());
}
