//! One bad GPU, or one bad call, costs what it must and nothing else.

use podgauge_tests::cluster::Cluster;
use podgauge_tests::node::Node;
use podgauge_tests::nvml_library;
use podgauge_tests::page::Page;
use podgauge_tests::program::Exporter;

const UTIL: &str = "DCGM_FI_DEV_GPU_UTIL";
const POWER: &str = "DCGM_FI_DEV_POWER_USAGE";
const UP: &str = "podgauge_gpu_up";

fn is_up(page: &Page, gpu: &str, wanted: f64) -> Result<Page, String> {
    match page.want(UP, &[("gpu", gpu)])? {
        up if up == wanted => Ok(page.clone()),
        up => Err(format!("up is {up} in\n{}", page.text)),
    }
}

async fn with_own_metrics(node: &Node) -> Exporter {
    node.exporter_with(|command| {
        command.arg("--enable-exporter-metrics");
    })
    .await
}

/// Waits until a call was made so often: once a tick, so that whatever a tick does has happened.
async fn called(exporter: &Exporter, call: &str, times: f64) -> Page {
    exporter
        .until(&format!("{times} times {call}"), |page| {
            match page.want("podgauge_exporter_nvml_calls_total", &[("call", call)])? {
                count if count >= times => Ok(page.clone()),
                count => Err(count.to_string()),
            }
        })
        .await
}

#[tokio::test]
async fn a_gpu_that_cannot_be_opened_is_down_with_its_reason_and_comes_back_alone() {
    let healthy = "gpus: [{load: {constant: 30}}, {load: {constant: 40}}]";
    let node = Node::new(
        "gpus: [{load: {constant: 30}}, {load: {constant: 40}, errors: {nvmlDeviceGetHandleByIndex: UNKNOWN}}]",
    );
    let exporter = node.exporter().await;
    let page = exporter.until("the GPU that is down", |page| is_up(page, "1", 0.0)).await;
    assert_eq!(page.all(UP, &[("gpu", "1")])[0].labels["device"], "nvidia1");
    exporter.until("the other", |page| page.want(UTIL, &[("gpu", "0")])).await;
    // Unknown values are absent, not 0.
    let page = exporter.page().await;
    let of_it: Vec<&str> = page
        .samples
        .iter()
        .filter(|it| it.labels.get("gpu").is_some_and(|gpu| gpu == "1"))
        .map(|it| it.name.as_str())
        .collect();
    assert_eq!(of_it, ["podgauge_attribution_unavailable", UP], "{}", page.text);
    assert_eq!(page.all("podgauge_attribution_unavailable", &[])[0].labels["reason"], "gpu_not_opened");
    let ready = exporter.ready(200).await;
    assert!(ready.contains("GPU 1") && ready.contains("nvmlDeviceGetHandleByIndex_v2: UNKNOWN"), "{ready}");
    exporter.program.logs("GPU 1 cannot be opened", 1).await;

    node.play(healthy);
    exporter.until("its return", |page| page.want(UTIL, &[("gpu", "1")])).await;
    assert_eq!(exporter.ready(200).await, "OK\n");
    // Its events are delivered too, and the other was never away.
    node.play("gpus: [{load: {constant: 30}}, {load: {constant: 40}, xids: [79]}]");
    exporter
        .until("an XID of it", |page| {
            page.want("podgauge_gpu_xid_errors_total", &[("gpu", "1"), ("xid", "79")])
        })
        .await;
    exporter.program.logs("NVML answers for", 1).await;
    exporter.program.logs("GPU 1 cannot be opened", 1).await;
    exporter.program.has_not_logged("no GPU values");
}

#[tokio::test]
async fn what_is_known_of_a_gpu_that_cannot_be_opened_is_on_the_page_and_a_node_of_none_is_not_ready() {
    let node = Node::new("gpus: [{errors: {nvmlDeviceGetUUID: NO_PERMISSION}}]");
    let exporter = node.exporter().await;
    let page = exporter.until("the GPU that is down", |page| is_up(page, "0", 0.0)).await;
    let labels = &page.all(UP, &[])[0].labels;
    assert_eq!(labels["pci_bus_id"], "00000000:17:00.0");
    assert_eq!(labels["modelName"], "NVIDIA H100 80GB HBM3");
    exporter.unready(&["nvmlDeviceGetUUID: NO_PERMISSION"]).await;
    node.play("gpus: [{}]");
    exporter.ready(200).await;
    exporter.until("its values", |page| page.want(UTIL, &[])).await;
}

/// A call that says so alone is not believed, whatever it says of the GPU or the driver.
#[tokio::test]
async fn one_call_that_says_that_the_gpu_is_lost_costs_its_value_alone() {
    let node = Node::new(
        "gpus:
  - {load: {constant: 30}, errors: {nvmlDeviceGetPowerUsage: GPU_IS_LOST}}
  - {load: {constant: 40}, errors: {nvmlDeviceGetPowerUsage: RESET_REQUIRED, nvmlDeviceGetSamples: GPU_IS_LOST}}
  - {load: {constant: 50}, errors: {nvmlDeviceGetPowerUsage: DRIVER_NOT_LOADED, 'nvmlDeviceGetFieldValues:83': GPU_IS_LOST}}
  - {load: {constant: 60}}",
    );
    let exporter = with_own_metrics(&node).await;
    // Longer than a lost GPU waits before it is asked again.
    let page = called(&exporter, "nvmlDeviceGetPowerUsage", 4.0 * 12.0).await;
    for gpu in ["0", "1", "2", "3"] {
        assert_eq!(page.value(UP, &[("gpu", gpu)]), Some(1.0), "{}", page.text);
        assert_eq!(page.value(POWER, &[("gpu", gpu)]).is_some(), gpu == "3", "{}", page.text);
        for family in ["DCGM_FI_DEV_SM_CLOCK", "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_FB_USED", UTIL] {
            assert!(page.value(family, &[("gpu", gpu)]).is_some(), "{family} of {gpu}\n{}", page.text);
        }
    }
    assert_eq!(page.value("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", &[("gpu", "2")]), None);
    assert_eq!(exporter.ready(200).await, "OK\n");
    // Once for each call of each GPU.
    exporter.program.logs("while other calls on this GPU are answered", 5).await;
    let log = exporter.program.log();
    assert_eq!(log.matches("ERROR").count(), 0, "{log}");
    assert!(log.contains("nvmlDeviceGetPowerUsage answers RESET_REQUIRED"), "{log}");
}

#[tokio::test]
async fn a_gpu_without_name_and_pci_address_is_served() {
    let node = Node::new(
        "gpus: [{load: {constant: 30}, errors: {nvmlDeviceGetPciInfo: NOT_SUPPORTED, nvmlDeviceGetName: NOT_SUPPORTED, nvmlDeviceGetMinorNumber: NOT_SUPPORTED}}]\n\
         pods: [{name: a, containers: [{devices: ['0']}]}, {name: b, containers: [{device_ids: [nvidia0]}]}]",
    );
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page =
        exporter.until("its value", |page| page.want(UTIL, &[("pod", "a")]).map(|_| page.clone())).await;
    let labels = &page.all(UTIL, &[])[0].labels;
    assert!(!labels.contains_key("pci_bus_id") && !labels.contains_key("modelName"), "{labels:?}");
    assert_eq!(page.value("podgauge_gpu_owners", &[]), Some(1.0), "nvidia0 is not known to be it");
    exporter.program.logs("does not report its minor number", 1).await;
    exporter.program.has_not_logged("ERROR");
}

/// GKE's device plugin names device nodes. NVML's indexes shift when a GPU is gone, device nodes stay.
#[tokio::test]
async fn a_device_node_means_the_same_gpu_after_another_one_is_lost() {
    let gpu = |number: u32, load: u32| {
        format!("{{uuid: GPU-{number}, minor: {number}, load: {{constant: {load}}}}}")
    };
    let pods = "pods: [{name: a, containers: [{device_ids: [nvidia1]}]}]";
    let whole = format!("gpus: [{}, {}, {}]\n{pods}", gpu(0, 90), gpu(1, 10), gpu(2, 50));
    let cluster = Cluster::start(&whole).await;
    let aggregator = cluster.aggregator();
    let before = cluster.value(&aggregator, "a", "gpu_utilization").await;
    assert!((before - 10.0).abs() < 3.0, "{before}");

    cluster.node.play(&format!("gpus: [{}, {}]\n{pods}", gpu(1, 10), gpu(2, 50)));
    let exporter = cluster.exporter.as_ref().unwrap();
    let page = exporter
        .until("the new count", |page| match page.want(UP, &[("gpu", "0"), ("UUID", "GPU-1")]) {
            Ok(_) => page.want(UTIL, &[("UUID", "GPU-2")]).map(|_| page.clone()),
            Err(error) => Err(error),
        })
        .await;
    for family in [UTIL, "podgauge_gpu_allocation"] {
        assert_eq!(page.all(family, &[("UUID", "GPU-1"), ("pod", "a")]).len(), 1, "{}", page.text);
        assert_eq!(page.all(family, &[("UUID", "GPU-2"), ("pod", "a")]).len(), 0, "{}", page.text);
    }
    let after = cluster.value(&aggregator, "a", "gpu_utilization").await;
    assert!((after - 10.0).abs() < 3.0, "{after}");
}

const SHARED: &str = "
gpus: [{replicas: 2}]
pods:
  - {name: a, containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 40}, memory_mib: 1000}]}]}
  - {name: b, containers: [{devices: ['0::1'], processes: [{pid: 4100002, gpu: 0, load: {constant: 20}, memory_mib: 500}]}]}
";

async fn on_a_driver_without(node: &Node, versions: &[&str]) -> Exporter {
    let library = node.path().join(format!("libnvidia-ml-{}.so", versions.len()));
    let lists = ["Compute", "Graphics", "MPSCompute"];
    let symbols: Vec<String> = versions
        .iter()
        .flat_map(|version| lists.map(|list| format!("nvmlDeviceGet{list}RunningProcesses{version}")))
        .collect();
    podgauge_sim_nvml::library::write_library_without(&nvml_library(), &library, &symbols).unwrap();
    Exporter::start(|command| {
        command.arg("--nvml-library").arg(&library).env("PODGAUGE_SIM_SCENARIO", node.scenario());
        node.in_kubernetes(command);
    })
    .await
}

#[tokio::test]
async fn older_lists_of_processes_are_read_and_a_driver_without_any_is_too_old() {
    let node = Node::new(SHARED);
    let _kubelet = node.kubelet().await;
    let older = on_a_driver_without(&node, &["_v3"]).await;
    let page = older.until("shares", |page| page.want(UTIL, &[("pod", "a")]).map(|_| page.clone())).await;
    let used = |pod| page.value("DCGM_FI_DEV_FB_USED", &[("pod", pod)]);
    assert_eq!([used("a"), used("b")], [Some(1000.0), Some(500.0)]);
    assert_eq!(page.all("podgauge_attribution_unavailable", &[]).len(), 0, "{}", page.text);

    let too_old = on_a_driver_without(&node, &["_v3", "_v2"]).await;
    let page = too_old
        .until("the reason", |page| {
            page.want("podgauge_attribution_unavailable", &[("reason", "driver_too_old")])
                .map(|_| page.clone())
        })
        .await;
    assert_eq!(page.all("podgauge_attribution_unavailable", &[]).len(), 1, "{}", page.text);
    assert_eq!(page.all(UTIL, &[("pod", "a")]).len(), 0, "{}", page.text);
}

/// The promise is a minute: the kubelet must be made to start another container.
#[tokio::test]
async fn a_driver_that_answers_unknown_to_everything_is_reported_as_such_and_ends_the_process() {
    let node = Node::new("gpus: [{load: {constant: 30}}, {load: {constant: 40}}]");
    let mut exporter = node.exporter().await;
    exporter.until("values", |page| page.want(UTIL, &[("gpu", "1")])).await;
    node.play("gpus: [{load: {constant: 30}}, {load: {constant: 40}}]\nerrors: {all: UNKNOWN}");
    for gpu in ["0", "1"] {
        exporter.until("its end", |page| is_up(page, gpu, 0.0)).await;
    }
    exporter.unready(&["no GPU answers", "UNKNOWN"]).await;
    assert_eq!(exporter.program.ended().await.code(), Some(1));
    let log = exporter.program.log();
    assert!(log.contains("lost access to /dev/nvidia*"), "{log}");
    // The log claims no cause that was not seen.
    for claim in ["was replaced", "is lost", "fallen off"] {
        assert!(!log.contains(claim), "{claim}: {log}");
    }
    assert_eq!(log.matches("does not answer").count(), 2, "{log}");
}
