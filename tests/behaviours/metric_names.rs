//! Names and units of dcgm-exporter 4.9: in a counters file, and as a whole profile.

use std::path::Path;

use podgauge_tests::node::Node;
use podgauge_tests::page::{Page, Sample};

const MIB: f64 = 1_048_576.0;
const RATIO: &str = "DCGM_FI_DEV_GPU_UTIL_RATIO";
const BYTES: &str = "DCGM_FI_DEV_FB_USED_BYTES";

/// Pods a and b share a GPU, and use 40 % and 20 % of it.
const SHARED: &str = "
gpus: [{replicas: 2, nvlink: {tx_mib_s: 2000, rx_mib_s: 1000}, answers: {nvmlDeviceGetFanSpeed: 110}}]
pods:
  - {name: a, containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 40}, memory_mib: 1000}]}]}
  - {name: b, containers: [{devices: ['0::1'], processes: [{pid: 4100002, gpu: 0, load: {constant: 20}, memory_mib: 500}]}]}
";

fn sum(samples: &[&Sample]) -> f64 {
    samples.iter().map(|sample| sample.value).sum()
}

/// The page once both pods have their parts, and rates are there.
fn divided(page: &Page) -> Result<Page, String> {
    page.want(RATIO, &[("pod", "a")])?;
    page.want(BYTES, &[("pod", "b")])?;
    match page.want("DCGM_FI_DEV_NVLINK_THROUGHPUT_BYTES_PER_SECOND", &[])? {
        rate if rate > 0.0 => Ok(page.clone()),
        first => Err(first.to_string()),
    }
}

fn assert_divided(page: &Page) {
    // As a ratio of 1 and as bytes, with nothing lost to another unit.
    let whole = page.value("podgauge_gpu_utilization", &[]).unwrap();
    assert!((sum(&page.all(RATIO, &[])) * 100.0 - whole).abs() < 0.011, "{}", page.text);
    let share = |pod| page.value(RATIO, &[("pod", pod)]).unwrap();
    assert!((share("a") - 0.4).abs() < 0.15 && (share("b") - 0.2).abs() < 0.15, "{}", page.text);
    let held = |pod| page.value(BYTES, &[("pod", pod)]);
    assert_eq!([held("a"), held("b"), held("")], [Some(1000.0 * MIB), Some(500.0 * MIB), Some(0.0)]);
}

#[tokio::test]
async fn a_counters_file_of_4_9_works_as_it_is() {
    let node = Node::new(SHARED);
    let _kubelet = node.kubelet().await;
    let file = node.path().join("counters.csv");
    let lines = [
        "DCGM_FI_DEV_GPU_UTIL_RATIO, gauge, GPU utilization (ratio).",
        "DCGM_FI_DEV_MEMORY_UTIL_RATIO, gauge, x",
        "DCGM_FI_DEV_ENC_UTIL_RATIO, gauge, x",
        "DCGM_FI_DEV_SM_CLOCK_HERTZ, gauge, x",
        "DCGM_FI_DEV_MEMORY_CLOCK_HERTZ, gauge, x",
        "DCGM_FI_DEV_SM_MAX_CLOCK_HERTZ, gauge, x",
        "DCGM_FI_DEV_GPU_TEMP_CELSIUS, gauge, x",
        "DCGM_FI_DEV_BOARD_POWER_WATTS, gauge, x",
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION, counter, x",
        "DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL, counter, x",
        "DCGM_FI_DEV_FB_USED_BYTES, gauge, x",
        "DCGM_FI_DEV_FB_FREE_BYTES, gauge, x",
        "DCGM_FI_DEV_FB_RESERVED_BYTES, gauge, x",
        "DCGM_FI_DEV_FB_CAPACITY_BYTES, gauge, x",
        "DCGM_FI_DEV_BAR1_CAPACITY_BYTES, gauge, x",
        "DCGM_FI_DEV_FAN_SPEED_RATIO, gauge, x",
        "DCGM_FI_DEV_GPU_POWER_THROTTLE_SECONDS_TOTAL, counter, x",
        "DCGM_FI_DEV_POWER_VIOLATION, counter, x",
        "DCGM_FI_DEV_NVLINK_THROUGHPUT_BYTES_PER_SECOND, gauge, x",
        "DCGM_FI_DEV_NVLINK_THROUGHPUT_L0_BYTES_PER_SECOND, gauge, x",
        "DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO, gauge, x",
        "DCGM_FI_SYSTEM_DRIVER_VERSION, label, x",
    ];
    std::fs::write(&file, lines.join("\n")).unwrap();
    let exporter = node
        .exporter_with(|command| {
            node.in_kubernetes(command);
            command.arg("-f").arg(&file);
        })
        .await;
    let page = exporter.until("parts and rates", divided).await;
    assert_divided(&page);
    let value = |name: &str| page.value(&format!("DCGM_FI_{name}"), &[]).unwrap_or_else(|| panic!("{name}"));
    let between = |name: &str, least: f64, most: f64| {
        let value = value(name);
        assert!((least..=most).contains(&value), "{name}: {value}, want {least} to {most}");
    };
    between("DEV_MEMORY_UTIL_RATIO", 0.05, 0.5);
    between("DEV_SM_CLOCK_HERTZ", 345e6, 1980e6);
    between("DEV_GPU_TEMP_CELSIUS", 20.0, 90.0);
    between("DEV_BOARD_POWER_WATTS", 60.0, 700.0);
    assert_eq!(value("DEV_ENC_UTIL_RATIO"), 0.0);
    assert_eq!(value("DEV_MEMORY_CLOCK_HERTZ"), 2619e6);
    assert_eq!(value("DEV_SM_MAX_CLOCK_HERTZ"), 1980e6);
    assert_eq!(value("DEV_FB_CAPACITY_BYTES"), 81559.0 * MIB);
    assert_eq!(value("DEV_FB_RESERVED_BYTES"), 480.0 * MIB);
    assert_eq!(value("DEV_FB_FREE_BYTES"), (81559.0 - 480.0 - 1500.0) * MIB);
    assert_eq!(value("DEV_BAR1_CAPACITY_BYTES"), 131_072.0 * MIB);
    assert_eq!(value("DEV_FAN_SPEED_RATIO"), 1.1, "a fan can turn faster than its full speed");
    // One reading in two units.
    let in_mj = value("DEV_TOTAL_ENERGY_CONSUMPTION");
    assert!((in_mj / 1000.0 - value("DEV_GPU_ENERGY_JOULES_TOTAL")).abs() <= 1.0, "{}", page.text);
    let in_ns = value("DEV_POWER_VIOLATION");
    assert!((in_ns / 1e9 - value("DEV_GPU_POWER_THROTTLE_SECONDS_TOTAL")).abs() < 1e-6, "{}", page.text);
    // KiB times 1024: the classic family divides by 1000.
    let near = |name: &str, truth: f64| {
        assert!((value(name) / truth - 1.0).abs() < 0.05, "{name}: {}, true {truth}", value(name));
    };
    near("DEV_NVLINK_THROUGHPUT_BYTES_PER_SECOND", 3000.0 * MIB);
    near("DEV_NVLINK_THROUGHPUT_L0_BYTES_PER_SECOND", 3000.0 / 18.0 * MIB);
    assert!(page.text.contains("# HELP DCGM_FI_DEV_GPU_UTIL_RATIO GPU utilization (ratio).\n"));
    let labels = &page.all("DCGM_FI_DEV_SM_CLOCK_HERTZ", &[])[0].labels;
    assert!(labels.contains_key("DCGM_FI_SYSTEM_DRIVER_VERSION"), "{labels:?}");
    assert_no_warning(&exporter.program.log());
}

/// Of the counters: the kubelet may have no pods yet when it is asked first.
fn assert_no_warning(log: &str) {
    let warnings = log.lines().filter(|line| line.contains("WARN") && !line.contains("::kubelet: "));
    assert_eq!(warnings.collect::<Vec<_>>(), Vec::<&str>::new());
}

async fn profile(node: &Node, file: Option<&Path>, by_variable: bool) -> (Page, String) {
    let exporter = node
        .exporter_with(|command| {
            node.in_kubernetes(command);
            if let Some(file) = file {
                command.arg("-f").arg(file);
            }
            if by_variable {
                command.env("DCGM_EXPORTER_METRIC_NAMES", "4.9");
            } else {
                command.args(["--metric-names", "4.9"]);
            }
        })
        .await;
    let page = exporter.until("parts and rates", divided).await;
    (page, exporter.program.log())
}

#[tokio::test]
async fn the_profile_of_4_9_has_all_names_and_units_and_none_of_the_classic_ones() {
    let node = Node::new(SHARED);
    let _kubelet = node.kubelet().await;
    let (page, log) = profile(&node, None, false).await;
    assert_divided(&page);
    let families: Vec<&str> = page.families().into_iter().filter(|name| name.starts_with("DCGM_")).collect();
    // 25 by default as before, and the capacity.
    assert_eq!(families.len(), 26, "{families:?}");
    for renamed in podgauge_common::catalogue::base_units::RENAMED {
        assert!(!families.contains(&renamed.classic), "{} in the profile of 4.9", renamed.classic);
    }
    assert_eq!(page.value("DCGM_FI_DEV_FB_CAPACITY_BYTES", &[]), Some(81559.0 * MIB));
    for sample in page.samples.iter().filter(|sample| sample.name.starts_with("DCGM_")) {
        assert!(sample.labels.contains_key("DCGM_FI_SYSTEM_DRIVER_VERSION"), "{sample:?}");
        assert!(!sample.labels.contains_key("DCGM_FI_DRIVER_VERSION"), "{sample:?}");
    }
    assert!(!page.text.contains("MiB") && !page.text.contains("MHz"), "{}", page.text);
    assert_no_warning(&log);

    // A file of classic names is printed in the profile too, and one that has a field both ways has
    // one family of it.
    let file = node.path().join("counters.csv");
    let fields = "DCGM_FI_DEV_GPU_UTIL, gauge, in %\nDCGM_FI_DEV_GPU_UTIL_RATIO, gauge, x\n\
                  DCGM_FI_DEV_FB_USED, gauge, in MiB\nDCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL, counter, x\n\
                  DCGM_FI_DRIVER_VERSION, label, x\n";
    std::fs::write(&file, fields).unwrap();
    let (page, _) = profile(&node, Some(&file), true).await;
    assert_divided(&page);
    let families: Vec<&str> = page.families().into_iter().filter(|name| name.starts_with("DCGM_")).collect();
    assert_eq!(families, [BYTES, RATIO, "DCGM_FI_DEV_NVLINK_THROUGHPUT_BYTES_PER_SECOND"]);
    // The file's text about the classic unit is not printed for another unit.
    let helps: Vec<&str> = page.text.lines().filter(|line| line.starts_with("# HELP DCGM_")).collect();
    assert!(!helps.iter().any(|help| help.contains("in %") || help.contains("in MiB")), "{helps:?}");
    assert!(page.text.contains("# TYPE DCGM_FI_DEV_NVLINK_THROUGHPUT_BYTES_PER_SECOND gauge\n"));
}
