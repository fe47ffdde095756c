//! Every field of a counters file: units, absence, names, labels, profiling counters.

use std::path::PathBuf;

use podgauge_tests::checkout;
use podgauge_tests::node::Node;
use podgauge_tests::page::{Page, Sample};
use podgauge_tests::program::Exporter;

const DEFAULT: &str = "exporter/default-counters.csv";

/// The first three columns of a counters file's active lines: name, type, help.
fn rows(file: &str) -> Vec<(String, String, String)> {
    let text = std::fs::read_to_string(checkout(file)).unwrap();
    let active = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    active
        .map(|line| {
            let mut columns = line.splitn(3, ',').map(|column| column.trim().trim_matches('"').to_owned());
            let mut next = || columns.next().unwrap();
            (next(), next(), next())
        })
        .collect()
}

/// Writes a counters file that asks for these fields as gauges.
fn counters(node: &Node, lines: &[&str]) -> PathBuf {
    let path = node.path().join("counters.csv");
    let text: String = lines
        .iter()
        .map(|line| if line.contains(',') { format!("{line}\n") } else { format!("{line}, gauge, x\n") })
        .collect();
    std::fs::write(&path, text).unwrap();
    path
}

async fn exporter_with(node: &Node, lines: &[&str]) -> Exporter {
    let file = counters(node, lines);
    node.exporter_with(|command| {
        command.arg("-f").arg(file);
    })
    .await
}

fn labels(sample: &Sample) -> Vec<&str> {
    sample.labels.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a1_every_page_parses_and_says_what_it_is_even_when_empty() {
    let node = Node::new("gpus: [{load: {constant: 30}}]");
    let exporter = node.exporter().await;
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(exporter.get("/metrics").await.headers()["content-type"], kind);
    // Page::parse panics on what is no Prometheus text.
    exporter.until("a value", |page| page.want("DCGM_FI_PROF_GR_ENGINE_ACTIVE", &[])).await;

    let empty = Node::new("gpus: []");
    let exporter = empty.exporter().await;
    exporter.ready(503).await;
    let answer = exporter.get("/metrics").await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["content-type"]), (200, &kind.parse().unwrap()));
    assert_eq!(Page::parse(String::from_utf8(answer.body().to_vec()).unwrap()).samples, []);
}

#[tokio::test]
async fn a2_every_family_of_the_default_file_with_its_type_and_help() {
    let node = Node::new("gpus: [{load: {constant: 30}, nvlink: {tx_mib_s: 1000, rx_mib_s: 500}}]");
    let exporter = node.exporter().await;
    let page = exporter
        .until("every family", |page| {
            page.want("DCGM_FI_PROF_DRAM_ACTIVE", &[])?;
            page.want("DCGM_FI_DEV_GPU_UTIL", &[]).map(|_| page.clone())
        })
        .await;
    let rows = rows(DEFAULT);
    assert_eq!(rows.len(), 26);
    for (name, kind, help) in rows.iter().filter(|(_, kind, _)| kind != "label") {
        assert_eq!(page.all(name, &[]).len(), 1, "{name} in\n{}", page.text);
        assert!(page.text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        assert!(page.text.contains(&format!("# HELP {name} {help}\n")), "{name}: {help}");
    }
}

#[tokio::test]
async fn a3_labels_of_a_plain_gpu_line() {
    let node =
        Node::new("gpus: [{load: {constant: 30}}]\npods: [{name: a, containers: [{devices: [\"0\"]}]}]");
    let alone = node.exporter().await;
    let page =
        alone.until("a page", |page| page.want("DCGM_FI_DEV_SM_CLOCK", &[]).map(|_| page.clone())).await;
    let plain =
        ["DCGM_FI_DRIVER_VERSION", "UUID", "device", "gpu", "hostname", "modelName", "pci_bus_id"].to_vec();
    assert_eq!(labels(page.all("DCGM_FI_DEV_SM_CLOCK", &[])[0]), plain);

    let _kubelet = node.kubelet().await;
    let in_kubernetes = node.exporter_in_kubernetes().await;
    let sample = in_kubernetes
        .until("the pod", |page| {
            page.want("DCGM_FI_DEV_SM_CLOCK", &[("pod", "a")])?;
            Ok(page.all("DCGM_FI_DEV_SM_CLOCK", &[])[0].clone())
        })
        .await;
    let mut with_pod = [plain, ["container", "namespace", "pod"].to_vec()].concat();
    with_pod.sort_unstable();
    assert_eq!(labels(&sample), with_pod);
}

#[tokio::test]
async fn label_fields_are_labels_of_every_dcgm_sample() {
    let node =
        Node::new("gpus: [{load: {constant: 30}, serial: '42', brand: 2}, {load: {constant: 1}, brand: 99}]");
    let lines = [
        "DCGM_FI_DEV_SM_CLOCK",
        "DCGM_FI_DEV_XID_ERRORS",
        "DCGM_FI_DEV_SERIAL, label, x",
        "DCGM_FI_NVML_VERSION, label, x",
        "DCGM_FI_DEV_BRAND, label, x",
        "DCGM_FI_DEV_POWER_INFOROM_VER, label, not on this board",
        "DCGM_FI_DEV_MINOR_NUMBER, label, a number",
    ];
    let exporter = exporter_with(&node, &lines).await;
    let page = exporter
        .until("labels", |page| page.want("DCGM_FI_DEV_SM_CLOCK", &[("gpu", "1")]).map(|_| page.clone()))
        .await;
    for family in ["DCGM_FI_DEV_SM_CLOCK", "DCGM_FI_DEV_XID_ERRORS"] {
        let first = &page.all(family, &[("gpu", "0")])[0].labels;
        assert_eq!(first["DCGM_FI_DEV_SERIAL"], "42");
        assert_eq!(first["DCGM_FI_DEV_BRAND"], "Tesla");
        assert_eq!(first["DCGM_FI_NVML_VERSION"], "13.580.159.04");
        assert_eq!(first["DCGM_FI_DEV_MINOR_NUMBER"], "0");
        assert!(!first.contains_key("DCGM_FI_DEV_POWER_INFOROM_VER"));
        assert_eq!(page.all(family, &[("gpu", "1")])[0].labels["DCGM_FI_DEV_BRAND"], "Unknown");
    }
    assert!(!page.text.contains("# TYPE DCGM_FI_DEV_SERIAL"));
    // podgauge's own families are the same whatever the file says.
    assert!(!page.all("podgauge_gpu_up", &[("gpu", "0")])[0].labels.contains_key("DCGM_FI_DEV_SERIAL"));
}

#[tokio::test]
async fn a5_what_nvml_does_not_answer_is_left_out_however_it_says_so() {
    let refused = "nvmlDeviceGetTemperature: NOT_SUPPORTED, nvmlDeviceGetPowerUsage: NO_PERMISSION, \
                   nvmlDeviceGetClockInfo: NOT_FOUND, \"nvmlDeviceGetFieldValues:83\": NOT_SUPPORTED, \
                   \"nvmlDeviceGetFieldValues:142\": NO_PERMISSION, nvmlDeviceGetMemoryInfo_v2: NO_PERMISSION, \
                   nvmlDeviceGetMemoryInfo: NO_PERMISSION, nvmlGpmSampleGet: NO_PERMISSION, nvmlDeviceGetPcieReplayCounter: UNKNOWN";
    let node = Node::new(&format!(
        "gpus: [{{load: {{constant: 30}}, errors: {{{refused}}}, answers: {{\"nvmlDeviceGetFieldValues:82\": 201}}}}, {{load: {{constant: 30}}}}]"
    ));
    let exporter = node.exporter().await;
    let page = exporter
        .until("the healthy GPU", |page| {
            page.want("DCGM_FI_DEV_GPU_UTIL", &[("gpu", "0")])?;
            page.want("DCGM_FI_PROF_GR_ENGINE_ACTIVE", &[("gpu", "1")]).map(|_| page.clone())
        })
        .await;
    for family in [
        "DCGM_FI_DEV_GPU_TEMP",
        "DCGM_FI_DEV_POWER_USAGE",
        "DCGM_FI_DEV_SM_CLOCK",
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
        "DCGM_FI_DEV_FB_USED",
        "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
        "DCGM_FI_DEV_MEMORY_TEMP",
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
    ] {
        assert_eq!(page.value(family, &[("gpu", "0")]), None, "{family} in\n{}", page.text);
        assert!(page.value(family, &[("gpu", "1")]).is_some(), "{family} in\n{}", page.text);
    }
    // No GPU has NVLinks: the family leaves no trace.
    assert!(!page.text.contains("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"));
    assert!(!page.text.contains("NaN"));
    assert!(page.samples.iter().all(|sample| sample.value >= 0.0));
}

#[tokio::test]
async fn ecc_counters_are_absent_while_ecc_is_off() {
    let node = Node::new("gpus: [{load: {constant: 30}}, {load: {constant: 30}, ecc: false}]");
    let totals =
        ["SBE_VOL", "DBE_VOL", "SBE_AGG", "DBE_AGG"].map(|name| format!("DCGM_FI_DEV_ECC_{name}_TOTAL"));
    let mut lines: Vec<&str> = totals.iter().map(String::as_str).collect();
    lines.extend(["DCGM_FI_DEV_ECC_DBE_VOL_DEV", "DCGM_FI_DEV_ECC_CURRENT", "DCGM_FI_DEV_ECC_PENDING"]);
    let exporter = exporter_with(&node, &lines).await;
    let page = exporter
        .until("ECC", |page| page.want("DCGM_FI_DEV_ECC_CURRENT", &[("gpu", "1")]).map(|_| page.clone()))
        .await;
    let mode = |gpu| page.value("DCGM_FI_DEV_ECC_CURRENT", &[("gpu", gpu)]);
    assert_eq!((mode("0"), mode("1")), (Some(1.0), Some(0.0)));
    // Refused in a call that asks for fields of links too.
    assert_eq!(page.value("DCGM_FI_DEV_ECC_PENDING", &[("gpu", "0")]), Some(1.0));
    for family in &lines[..5] {
        assert_eq!(page.value(family, &[("gpu", "0")]), Some(0.0), "{family}");
        assert_eq!(page.value(family, &[("gpu", "1")]), None, "{family}: NVML left it unset, which is no 0");
    }
}

#[tokio::test]
async fn a6_units() {
    let node = Node::new(
        "gpus: [{load: {constant: 100}, answers: {nvmlDeviceGetPowerUsage: 120534, \"nvmlGpmMetricsGet:5\": 37, \
         \"nvmlGpmMetricsGet:20\": 12.5, \"nvmlGpmMetricsGet:10\": .nan, \"nvmlGpmMetricsGet:160\": 55.5, \
         \"nvmlDeviceGetFieldValues:186\": 700999, \"nvmlDeviceGetFieldValues:230\": 2, \"nvmlDeviceGetFieldValues:74\": 123456789012}, \
         nvlink: {links: 2, tx_mib_s: 2000, rx_mib_s: 1000}}]\nprocesses: [{pid: 9, gpu: 0, memory_mib: 1079}]",
    );
    let exporter = exporter_with(
        &node,
        &[
            "DCGM_FI_DEV_POWER_USAGE",
            "DCGM_FI_DEV_POWER_USAGE_INSTANT",
            "DCGM_FI_DEV_POWER_MGMT_LIMIT",
            "DCGM_FI_DEV_ENFORCED_POWER_LIMIT",
            "DCGM_FI_DEV_FB_TOTAL",
            "DCGM_FI_DEV_FB_USED",
            "DCGM_FI_DEV_FB_RESERVED",
            "DCGM_FI_DEV_FB_USED_PERCENT",
            "DCGM_FI_DEV_BAR1_TOTAL",
            "DCGM_FI_DEV_MAX_SM_CLOCK",
            "DCGM_FI_DEV_SLOWDOWN_TEMP",
            "DCGM_FI_DEV_CUDA_COMPUTE_CAPABILITY",
            "DCGM_FI_DEV_POWER_VIOLATION",
            "DCGM_FI_DEV_GET_GPU_RECOVERY_ACTION",
            "DCGM_FI_DEV_PCIE_TX_THROUGHPUT",
            "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL",
            "DCGM_FI_DEV_NVLINK_BANDWIDTH_L1",
            "DCGM_FI_DEV_NVLINK_TX_BANDWIDTH_TOTAL",
            "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_L0",
            "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_L2",
            "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
            "DCGM_FI_PROF_DRAM_ACTIVE",
            "DCGM_FI_PROF_PCIE_TX_BYTES",
            "DCGM_FI_PROF_NVLINK_TX_BYTES",
            "DCGM_FI_PROF_NVLINK_L1_RX_BYTES",
            "DCGM_FI_PROF_HOSTMEM_CACHE_HIT",
        ],
    )
    .await;
    let page = exporter
        .until("rates", |page| match page.want("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", &[])? {
            rate if rate > 0.0 => page.want("DCGM_FI_PROF_PCIE_TX_BYTES", &[]).map(|_| page.clone()),
            first => Err(first.to_string()),
        })
        .await;
    let value = |name: &str| page.value(&format!("DCGM_FI_{name}"), &[]);
    assert_eq!(value("DEV_POWER_USAGE"), Some(120.534));
    assert_eq!(value("DEV_POWER_USAGE_INSTANT"), Some(700.999));
    assert_eq!(
        (value("DEV_POWER_MGMT_LIMIT"), value("DEV_ENFORCED_POWER_LIMIT")),
        (Some(700.0), Some(700.0))
    );
    assert_eq!((value("DEV_FB_TOTAL"), value("DEV_FB_USED")), (Some(81559.0), Some(1079.0)));
    // 480 MiB of reserve.
    assert_eq!(value("DEV_FB_RESERVED"), Some(480.0));
    assert!((value("DEV_FB_USED_PERCENT").unwrap() - 1079.0 / (81559.0 - 480.0)).abs() < 1e-6);
    assert_eq!(value("DEV_BAR1_TOTAL"), Some(131_072.0));
    assert_eq!((value("DEV_MAX_SM_CLOCK"), value("DEV_SLOWDOWN_TEMP")), (Some(1980.0), Some(89.0)));
    assert_eq!(value("DEV_CUDA_COMPUTE_CAPABILITY"), Some(589_824.0));
    assert_eq!(value("DEV_POWER_VIOLATION"), Some(123_456_789_012.0));
    assert_eq!(value("DEV_GET_GPU_RECOVERY_ACTION"), Some(2.0));
    assert_eq!(value("PROF_PIPE_TENSOR_ACTIVE"), Some(0.37));
    assert_eq!(value("PROF_PCIE_TX_BYTES"), Some(13_107_200.0));
    assert_eq!(value("DEV_PCIE_TX_THROUGHPUT"), Some(12_800.0));
    assert_eq!(value("PROF_DRAM_ACTIVE"), None, "not a number is no value");
    assert_eq!(value("PROF_HOSTMEM_CACHE_HIT"), Some(55.0));
    // A mean of a constant rate, whatever the interval.
    let near = |name: &str, truth: f64| {
        let value = value(name).unwrap_or_else(|| panic!("no {name} in\n{}", page.text));
        assert!((value / truth - 1.0).abs() < 0.02, "{name}: {value}, true {truth}");
    };
    near("PROF_NVLINK_TX_BYTES", 2000.0 * 1_048_576.0);
    near("PROF_NVLINK_L1_RX_BYTES", 500.0 * 1_048_576.0);
    // DCGM's MB/s: KiB/s ÷ 1000.
    near("DEV_NVLINK_BANDWIDTH_TOTAL", 3000.0 * 1.024);
    near("DEV_NVLINK_BANDWIDTH_L1", 1500.0 * 1.024);
    near("DEV_NVLINK_TX_BANDWIDTH_TOTAL", 2000.0 * 1.024);
    assert_eq!(value("DEV_NVLINK_REPLAY_ERROR_COUNT_L0"), Some(0.0));
    assert_eq!(value("DEV_NVLINK_REPLAY_ERROR_COUNT_L2"), None, "there are two links");
    // The honest counter: bytes that only rise, by direction.
    let bytes =
        |page: &Page, direction| page.want("podgauge_gpu_nvlink_bytes_total", &[("direction", direction)]);
    let (tx, rx) = (bytes(&page, "tx").unwrap(), bytes(&page, "rx").unwrap());
    assert!((tx / rx - 2.0).abs() < 0.01, "{tx} {rx}");
    exporter
        .until("more bytes", |page| if bytes(page, "tx")? > tx { Ok(()) } else { Err("none".to_owned()) })
        .await;
}

#[tokio::test]
async fn a7_no_series_stands_twice_with_every_field_and_label_there_is() {
    let node = Node::new(
        "gpus: [{load: {constant: 50}, nvlink: {tx_mib_s: 5}, xids: [31, 31, 79]}, {replicas: 2, load: {constant: 10}}, {gpm: false}]\n\
         pods: [{name: a, containers: [{devices: [\"0\"]}]}, {name: b, containers: [{devices: [\"1::0\"]}]}, {name: c, containers: [{devices: [\"1::1\"]}]}]",
    );
    let _kubelet = node.kubelet().await;
    let metrics: Vec<String> = podgauge_common::catalogue::SERVED
        .iter()
        .map(|metric| format!("{}, {}, {}", metric.name, metric.kind.as_str(), "\"x\""))
        .collect();
    let file = counters(&node, &metrics.iter().map(String::as_str).collect::<Vec<_>>());
    for more in [&["-k"][..], &["-k", "-o"], &[], &["--hostname-label", "both", "--enable-exporter-metrics"]]
    {
        let exporter = node
            .exporter_with(|command| {
                command.arg("-f").arg(&file).args(more);
                command.arg("--pod-resources-kubelet-socket").arg(node.socket());
                command.arg("--path.pod-logs").arg(node.path().join("trees/pod-logs"));
            })
            .await;
        // Page::parse panics if a series stands twice.
        let page = exporter
            .until("rates", |page| {
                page.want("DCGM_FI_PROF_SM_ACTIVE", &[("gpu", "1")])?;
                page.want("podgauge_gpu_xid_errors_total", &[("gpu", "0"), ("xid", "79")])
                    .map(|_| page.clone())
            })
            .await;
        // B5: more than 128 fields in one file.
        let served = page.families().into_iter().filter(|name| name.starts_with("DCGM_")).count();
        assert!(served > 128, "{more:?}: {served} families");
    }
}

/// DCGM's own limit was 128.
#[tokio::test]
async fn b5_more_than_128_fields() {
    let node = Node::new("gpus: [{load: {constant: 50}, nvlink: {links: 18, tx_mib_s: 10}}]");
    let names: Vec<String> = (0..18)
        .flat_map(|link| {
            let rates = ["", "TX_", "RX_"].map(|way| format!("DCGM_FI_DEV_NVLINK_{way}BANDWIDTH_L{link}"));
            let errors = ["CRC_FLIT", "CRC_DATA", "REPLAY", "RECOVERY"]
                .map(|error| format!("DCGM_FI_DEV_NVLINK_{error}_ERROR_COUNT_L{link}"));
            let bytes = ["TX", "RX"].map(|way| format!("DCGM_FI_PROF_NVLINK_L{link}_{way}_BYTES"));
            rates.into_iter().chain(errors).chain(bytes)
        })
        .collect();
    assert_eq!(names.len(), 162);
    let exporter = exporter_with(&node, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    exporter
        .until("all of them", |page| names.iter().try_for_each(|name| page.want(name, &[]).map(|_| ())))
        .await;
    assert_eq!(exporter.program.count_logged("WARN"), 0, "{}", exporter.program.log());
}

#[tokio::test]
async fn a8_label_values_are_escaped() {
    let node = Node::new("gpus: [{model: \"A \\\"B\\\" \\\\ C\\nD\", load: {constant: 30}}]");
    let exporter = node.exporter().await;
    let page =
        exporter.until("a page", |page| page.want("DCGM_FI_DEV_SM_CLOCK", &[]).map(|_| page.clone())).await;
    assert!(page.text.contains(r#"modelName="A \"B\" \\ C\nD""#), "{}", page.text);
    assert_eq!(page.all("DCGM_FI_DEV_SM_CLOCK", &[])[0].labels["modelName"], "A \"B\" \\ C\nD");
}

#[tokio::test]
async fn a9_the_names_and_labels_of_1x() {
    let node = Node::new(
        "gpus: [{load: {constant: 30}}]\npods: [{namespace: ml, name: a, containers: [{devices: [\"0\"]}]}]",
    );
    let _kubelet = node.kubelet().await;
    let file = checkout("exporter/1.x-compatibility-metrics.csv");
    let exporter = node
        .exporter_with(|command| {
            node.in_kubernetes(command);
            command.arg("-o").arg("-f").arg(&file);
        })
        .await;
    let page = exporter
        .until("old names", |page| {
            page.want("dcgm_fi_prof_pipe_tensor_active", &[])?;
            page.want("dcgm_gpu_utilization", &[("pod_name", "a")]).map(|_| page.clone())
        })
        .await;
    // This GPU has no NVLink.
    for (name, ..) in rows("exporter/1.x-compatibility-metrics.csv") {
        let samples = page.all(&name, &[]);
        assert_eq!(samples.len(), usize::from(!name.contains("nvlink")), "{name}");
        for sample in samples {
            let mut names = labels(sample);
            names.retain(|label| !label.starts_with("err_"));
            assert_eq!(
                names,
                [
                    "container_name",
                    "device",
                    "gpu",
                    "hostname",
                    "modelName",
                    "pci_bus_id",
                    "pod_name",
                    "pod_namespace",
                    "uuid"
                ],
                "{name}"
            );
            assert_eq!(sample.labels["pod_namespace"], "ml");
        }
    }
    assert!(!page.families().iter().any(|name| name.starts_with("DCGM_")));
    // podgauge's own families keep their labels: the adapter reads them in every mode.
    let own = page.all("podgauge_gpu_active_seconds_total", &[("pod", "a"), ("namespace", "ml")]);
    assert!(own[0].labels.contains_key("UUID"), "{own:?}");
}

#[tokio::test]
async fn b2_the_grammar_of_a_counters_file() {
    let node = Node::new("gpus: [{load: {constant: 30}}]");
    let lines = [
        "# a comment, with a comma",
        "DCGM_FI_DEV_DEC_UTIL ,gauge,Blank before the comma",
        "DCGM_FI_DEV_GPU_TEMP,  untyped , \"Quoted, with a comma\"",
        "dcgm_sm_clock, gauge, An old name",
        "DCGM_FI_DEV_BOARD_POWER_WATTS, gauge, A new name",
        "DCGM_FI_DEV_SM_CLOCK, gauge, The same field again",
        "DCGM_FI_DRIVER_VERSION, label, A label",
    ];
    let exporter = exporter_with(&node, &lines).await;
    let page =
        exporter.until("a page", |page| page.want("DCGM_FI_DEV_GPU_TEMP", &[]).map(|_| page.clone())).await;
    let families: Vec<&str> =
        page.families().into_iter().filter(|name| !name.starts_with("podgauge")).collect();
    assert_eq!(
        families,
        ["DCGM_FI_DEV_BOARD_POWER_WATTS", "DCGM_FI_DEV_DEC_UTIL", "DCGM_FI_DEV_GPU_TEMP", "dcgm_sm_clock"]
    );
    assert!(
        page.text.contains(
            "# HELP DCGM_FI_DEV_GPU_TEMP Quoted, with a comma\n# TYPE DCGM_FI_DEV_GPU_TEMP untyped\n"
        )
    );
    assert!(page.all("dcgm_sm_clock", &[])[0].labels.contains_key("DCGM_FI_DRIVER_VERSION"));
    exporter.program.logs("WARN", 1).await;
    exporter.program.logs("field of DCGM_FI_DEV_SM_CLOCK; the first counts", 1).await;
}

#[test]
fn b2_a_mistake_in_a_counters_file_ends_the_start_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("counters.csv");
    for (text, line, word) in [
        ("# c\nDCGM_FI_DEV_GPU_TEMP, gauge", ":2: ", "want 3"),
        ("DCGM_FI_DEV_GPU_TEMP, gauge, a, b", ":1: ", "want 3"),
        ("\n\nDCGM_FI_DEV_GPU_temp, gauge, x", ":3: ", "DCGM_FI_DEV_GPU_temp"),
        ("dcgm_gpu_tempp, gauge, x", ":1: ", "dcgm_gpu_tempp"),
        ("DCGM_FI_DEV_GPU_TEMP, gage, x", ":1: ", "gage"),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = podgauge_tests::program::run(
            std::process::Command::new(podgauge_tests::built("podgauge-exporter")).arg("-f").arg(&file),
        );
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text:?}: {log}");
        for part in [file.to_str().unwrap(), line, word] {
            assert!(log.contains(part), "{text:?}: no {part:?} in {log}");
        }
    }
}

#[tokio::test]
async fn b3_fields_that_nvml_cannot_serve_cost_one_warning() {
    let node = Node::new("gpus: [{load: {constant: 30}}]");
    let lines = [
        "DCGM_FI_DEV_GPU_TEMP",
        // Known to DCGM, from no GPU; dcgm-exporter's own; of a DCGM that is not known.
        "DCGM_FI_DEV_CPU_UTIL_TOTAL",
        "DCGM_FI_DEV_VGPU_FB_USED_BYTES",
        "DCGM_EXP_P2P_STATUS",
        "DCGM_FI_DEV_NVSWITCH_TEMPERATURE_CURRENT",
    ];
    let exporter = exporter_with(&node, &lines).await;
    exporter.until("the others", |page| page.want("DCGM_FI_DEV_GPU_TEMP", &[])).await;
    exporter.program.logs("WARN", 1).await;
    for name in &lines[1..] {
        exporter.program.logs(name, 1).await;
    }
}

#[tokio::test]
async fn b3_profiling_counters_of_an_older_gpu_cost_one_warning() {
    let node = Node::new(
        "gpus: [{model: NVIDIA L4, gpm: false, load: {constant: 30}}, {model: NVIDIA L4, gpm: false}, {load: {constant: 20}}]",
    );
    let exporter = node.exporter().await;
    let page = exporter
        .until("the GPU that has them", |page| {
            page.want("DCGM_FI_PROF_GR_ENGINE_ACTIVE", &[("gpu", "2")]).map(|_| page.clone())
        })
        .await;
    assert!((page.value("DCGM_FI_PROF_GR_ENGINE_ACTIVE", &[]).unwrap() - 0.2).abs() < 0.01, "{}", page.text);
    assert_eq!(page.all("DCGM_FI_PROF_PCIE_TX_BYTES", &[]).len(), 1);
    exporter.program.logs("WARN", 1).await;
    exporter.program.logs("left out for GPU 0 (NVIDIA L4), 1 (NVIDIA L4): NVML", 1).await;
}

/// The mean between two readings, not one moment: a wave whose period is not seen otherwise.
#[tokio::test]
async fn profiling_counters_are_means_over_the_interval() {
    let node = Node::new("gpus: [{load: {square: {low: 0, high: 100, period_s: 0.5}}}]");
    let exporter = exporter_with(&node, &["DCGM_FI_PROF_GR_ENGINE_ACTIVE"]).await;
    // The very first one is over a moment: the page is complete early. A moment is 0 or 1.
    exporter
        .until("a mean", |page| {
            let mean = page.want("DCGM_FI_PROF_GR_ENGINE_ACTIVE", &[])?;
            if (mean - 0.5).abs() < 0.15 { Ok(()) } else { Err(mean.to_string()) }
        })
        .await;
}

#[tokio::test]
async fn static_values_are_read_once_and_slow_ones_stand() {
    let node = Node::new("gpus: [{load: {constant: 30}}]");
    let exporter =
        exporter_with(&node, &["DCGM_FI_DEV_MAX_SM_CLOCK", "DCGM_FI_DEV_MIG_MODE", "DCGM_FI_DEV_SM_CLOCK"])
            .await;
    exporter.until("all", |page| page.want("DCGM_FI_DEV_MIG_MODE", &[])).await;
    // From now on the calls fail; only what is read every interval goes.
    node.play("gpus: [{load: {constant: 30}, errors: {nvmlDeviceGetMaxClockInfo: UNKNOWN, nvmlDeviceGetMigMode: UNKNOWN, nvmlDeviceGetClockInfo: UNKNOWN}}]");
    let page = exporter
        .until("the clock to go", |page| match page.value("DCGM_FI_DEV_SM_CLOCK", &[]) {
            None => Ok(page.clone()),
            Some(clock) => Err(clock.to_string()),
        })
        .await;
    assert_eq!(page.value("DCGM_FI_DEV_MAX_SM_CLOCK", &[]), Some(1980.0));
    assert_eq!(page.value("DCGM_FI_DEV_MIG_MODE", &[]), Some(0.0));
}
