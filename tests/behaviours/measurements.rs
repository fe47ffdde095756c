//! Sentinels and impossible values of a driver reach no page and no HPA.

use podgauge_tests::cluster::Cluster;
use podgauge_tests::node::Node;

const ALL_ONES: &str = "4294967295";
const ALL_ONES_64: &str = "18446744073709551615";

#[tokio::test]
async fn numbers_that_cannot_be_are_left_out_of_the_page_and_the_rest_stays() {
    let node = Node::new(&format!(
        "gpus:
  - load: {{constant: 30}}
    nvlink: {{tx_mib_s: 5}}
    answers:
      nvmlDeviceGetPowerUsage: {ALL_ONES}
      nvmlDeviceGetEnforcedPowerLimit: {ALL_ONES}
      nvmlDeviceGetClockInfo: {ALL_ONES}
      nvmlDeviceGetTemperature: {ALL_ONES}
      nvmlDeviceGetFanSpeed: {ALL_ONES}
      nvmlDeviceGetEncoderUtilization: 101
      nvmlDeviceGetDecoderUtilization: {ALL_ONES}
      nvmlDeviceGetPcieReplayCounter: {ALL_ONES}
      nvmlDeviceGetMemoryInfo:free: 85520809985
      nvmlDeviceGetMemoryInfo:reserved: {ALL_ONES_64}
      nvmlDeviceGetFieldValues:82: {ALL_ONES}
      nvmlDeviceGetFieldValues:83: {ALL_ONES_64}
      nvmlDeviceGetFieldValues:138: {ALL_ONES_64}
      nvmlDeviceGetFieldValues:186: {ALL_ONES}
      nvmlGpmMetricsGet:1: 250
      nvmlGpmMetricsGet:20: {ALL_ONES_64}
      nvmlGpmMetricsGet:5: 100.3
  - {{load: {{constant: 30}}, nvlink: {{tx_mib_s: 5}}, answers: {{nvmlDeviceGetFanSpeed: 30}}}}
  - {{load: {{constant: 30}}, answers: {{'nvmlDeviceGetMemoryInfo:total': {ALL_ONES_64}, 'nvmlDeviceGetMemoryInfo:used': {ALL_ONES_64}}}}}
"
    ));
    let absent = [
        "DEV_POWER_USAGE",
        "DEV_POWER_USAGE_INSTANT",
        "DEV_ENFORCED_POWER_LIMIT",
        "DEV_SM_CLOCK",
        "DEV_SM_CLOCK_HERTZ",
        "DEV_GPU_TEMP",
        "DEV_MEMORY_TEMP",
        "DEV_FAN_SPEED",
        "DEV_ENC_UTIL",
        "DEV_DEC_UTIL",
        "DEV_PCIE_REPLAY_COUNTER",
        "DEV_FB_FREE",
        "DEV_FB_FREE_BYTES",
        "DEV_FB_RESERVED",
        "DEV_TOTAL_ENERGY_CONSUMPTION",
        "DEV_NVLINK_BANDWIDTH_TOTAL",
        "PROF_GR_ENGINE_ACTIVE",
        "PROF_PCIE_TX_BYTES",
    ];
    let present = ["DEV_FB_TOTAL", "DEV_FB_USED", "DEV_FB_USED_PERCENT", "PROF_SM_ACTIVE"];
    let file = node.path().join("counters.csv");
    let all = absent.iter().chain(&present).chain(&["PROF_PIPE_TENSOR_ACTIVE"]);
    let lines: Vec<String> = all.map(|name| format!("DCGM_FI_{name}, gauge, x")).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let exporter = node
        .exporter_with(|command| {
            command.arg("-f").arg(&file);
        })
        .await;
    let page = exporter
        .until("a mean of GPM", |page| {
            page.want("DCGM_FI_PROF_SM_ACTIVE", &[("gpu", "0")])?;
            page.want("DCGM_FI_PROF_GR_ENGINE_ACTIVE", &[("gpu", "1")]).map(|_| page.clone())
        })
        .await;
    let value = |name: &str, gpu: &str| page.value(&format!("DCGM_FI_{name}"), &[("gpu", gpu)]);
    for name in absent {
        assert_eq!(value(name, "0"), None, "{name}\n{}", page.text);
        assert!(value(name, "1").is_some(), "{name}\n{}", page.text);
    }
    for name in present {
        assert!(value(name, "0").is_some(), "{name}\n{}", page.text);
    }
    // A hair above all of it is all of it.
    assert_eq!(value("PROF_PIPE_TENSOR_ACTIVE", "0"), Some(1.0));
    // Of an unknown whole nothing is a known part.
    for name in ["DEV_FB_TOTAL", "DEV_FB_USED", "DEV_FB_USED_PERCENT"] {
        assert_eq!(value(name, "2"), None, "{name}\n{}", page.text);
    }
    assert!(value("DEV_FB_FREE", "2").is_some());
    assert_eq!(page.value("podgauge_gpu_nvlink_bytes_total", &[("gpu", "0"), ("direction", "tx")]), None);
    assert_eq!(page.value("podgauge_gpu_up", &[("gpu", "0")]), Some(1.0));
}

/// A process that seems to hold more memory than the GPU has makes all of them unknown.
#[tokio::test]
async fn no_share_is_made_of_a_process_that_holds_more_than_the_gpu() {
    let node = Node::new(
        "gpus: [{replicas: 2}]
pods:
  - {name: a, containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, memory_mib: 1000000}]}]}
  - {name: b, containers: [{devices: ['0::1'], processes: [{pid: 4100002, gpu: 0, memory_mib: 500}]}]}
",
    );
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page = exporter
        .until("the reason", |page| {
            page.want("podgauge_attribution_unavailable", &[("reason", "no_process_memory")])
                .map(|_| page.clone())
        })
        .await;
    assert_eq!(page.all("DCGM_FI_DEV_FB_USED", &[("pod", "b")]).len(), 0, "{}", page.text);
}

#[tokio::test]
async fn an_hpa_gets_no_power_where_the_driver_measured_none() {
    let cluster = Cluster::start(&format!(
        "gpus: [{{load: {{constant: 40}}, answers: {{nvmlDeviceGetPowerUsage: {ALL_ONES}, 'nvmlDeviceGetMemoryInfo:used': 99999999999999}}}}]
pods: [{{name: a, containers: [{{devices: ['0']}}]}}]"
    ))
    .await;
    let aggregator = cluster.aggregator();
    let utilization = cluster.value(&aggregator, "a", "gpu_utilization").await;
    assert!((utilization - 40.0).abs() < 3.0, "{utilization}");
    for metric in ["gpu_power_watts", "gpu_memory_used_bytes", "gpu_memory_utilization"] {
        let answer =
            aggregator.metric_request(&format!("namespaces/demo/pods/a/{metric}"), vec![]).await.unwrap();
        assert_eq!(answer.status, 404, "{metric}: {}", answer.text());
    }
}
