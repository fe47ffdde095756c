//! Shares of a GPU that several pods use: from the driver's per-process samples, recorded and made.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use podgauge_tests::checkout;
use podgauge_tests::node::Node;
use podgauge_tests::page::Page;
use podgauge_tests::wait::{LIMIT, until_within};
use serde_json::Value;

const ACTIVE: &str = "podgauge_gpu_active_seconds_total";
const OBSERVED: &str = "podgauge_gpu_observed_seconds_total";
const DEVICE_ACTIVE: &str = "podgauge_gpu_device_active_seconds_total";
const UTIL: &str = "DCGM_FI_DEV_GPU_UTIL";

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// One run of the recording of processes on a real H100.
struct Run {
    load: String,
    /// Percent by pid, as the recording sums them.
    sums: BTreeMap<String, f64>,
    samples: usize,
    /// Seconds from its first to its last slot.
    span: f64,
}

fn runs(recording: &std::path::Path) -> Vec<Run> {
    let json: Value = serde_json::from_str(&std::fs::read_to_string(recording).unwrap()).unwrap();
    let run = |run: &Value| Run {
        load: run["load"].as_str().unwrap().to_owned(),
        sums: run["sum_of_slots_percent"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(pid, percent)| (pid.clone(), percent.as_f64().unwrap()))
            .collect(),
        samples: run["samples"].as_array().unwrap().len(),
        span: run["span_us"].as_f64().unwrap() / 1e6,
    };
    json["runs"].as_array().unwrap().iter().map(run).collect()
}

/// A GPU for each run, played from then on, and a pod for each of its processes.
fn scenario(recording: &std::path::Path, runs: &[Run], start: f64) -> String {
    let mut yaml = "gpus:\n".to_owned();
    for run in runs {
        let (file, load) = (recording.display(), &run.load);
        yaml += &format!("  - {{replicas: 4, replay: {{file: {file}, run: {load:?}, start: {start}}}}}\n");
    }
    yaml += "pods:\n";
    for (gpu, run) in runs.iter().enumerate() {
        for (replica, pid) in run.sums.keys().enumerate() {
            yaml += &format!(
                "  - {{name: p{pid}, containers: [{{devices: [\"{gpu}::{replica}\"], processes: [{{pid: {pid}, gpu: {gpu}}}]}}]}}\n"
            );
        }
    }
    yaml
}

/// Every run at once, each on a GPU of its own whose pods hold a replica each: what the driver said
/// slot by slot is what the pods' counters gain.
#[tokio::test]
async fn a_recorded_gpu_gives_every_process_its_recorded_share() {
    let recording = checkout("tests/data/h100-processes.json");
    let runs = runs(&recording);
    assert_eq!(runs.len(), 6);
    // Far enough away for the exporter to be there before the first slot, on a busy machine later.
    let mut ahead = 12.0;
    let (start, exporter, before, _node, _kubelet) = loop {
        let start = now_s() + ahead;
        let node = Node::new(&scenario(&recording, &runs, start));
        let kubelet = node.kubelet().await;
        let exporter = node.exporter_in_kubernetes().await;
        let before = exporter
            .until("every pod's counters", |page| {
                for pid in runs.iter().flat_map(|run| run.sums.keys()) {
                    page.want(OBSERVED, &[("pod", &format!("p{pid}"))])?;
                }
                Ok(page.clone())
            })
            .await;
        if now_s() < start {
            break (start, exporter, before, node, kubelet);
        }
        ahead *= 3.0;
        assert!(ahead < 200.0, "the exporter always comes too late for the first slot");
    };
    let longest = runs.iter().map(|run| run.span).fold(0.0, f64::max);
    let after = until_within(LIMIT, "the recording's end", || async {
        let page = exporter.page().await;
        if now_s() > start + longest + 3.0 { Ok(page) } else { Err(()) }
    })
    .await;
    let gained = |name: &str, labels: &[(&str, &str)]| {
        after.value(name, labels).unwrap() - before.value(name, labels).unwrap_or(0.0)
    };
    for (gpu, run) in runs.iter().enumerate() {
        let gpu = gpu.to_string();
        let device = gained(DEVICE_ACTIVE, &[("gpu", &gpu)]);
        let seconds = run.samples as f64 * 0.2;
        for (pid, recorded) in &run.sums {
            let pod = format!("p{pid}");
            let labels = [("gpu", gpu.as_str()), ("pod", pod.as_str())];
            let observed = gained(OBSERVED, &labels);
            assert!(observed >= 0.95 * seconds, "{}: {observed:.2} s of {seconds:.2} s seen", run.load);
            // Of the recording's length: what was missed is lacking, and that is in the tolerance.
            let share = gained(ACTIVE, &labels) / run.span * 100.0;
            assert!((share - recorded).abs() <= 1.0, "{} {pid}: {share:.2}, {recorded} recorded", run.load);
        }
        if run.sums.len() == 1 {
            let share = device / run.span * 100.0;
            let recorded = run.sums.values().sum::<f64>();
            assert!((share - recorded).abs() <= 1.0, "{}: {share:.2}, {recorded} recorded", run.load);
        }
    }
}

const SHARED: &str = "
gpus: [{replicas: 2}]
pods:
  - {name: a, containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 30}, memory_mib: 12000}]}]}
  - {name: b, containers: [{devices: ['0::1'], processes: [{pid: 4100002, gpu: 0, load: {constant: 15}, memory_mib: 8000}]}]}
processes:
  - {pid: 4100003, gpu: 0, load: {constant: 5}, memory_mib: 300}
";

fn parts(page: &Page, family: &str) -> Option<[f64; 3]> {
    let value = |pod| page.value(family, &[("gpu", "0"), ("pod", pod)]);
    Some([value("a")?, value("b")?, value("")?])
}

/// Two pods and a process outside any pod, on pages for a while: on each of them the parts are the
/// device, and over the while they are the loads.
#[tokio::test]
async fn c6_the_parts_of_a_shared_gpu_are_the_gpu() {
    let node = Node::new(SHARED);
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let first = exporter
        .until("shares", |page| parts(page, UTIL).map(|_| page.clone()).ok_or(page.text.clone()))
        .await;
    let last = exporter
        .until("twenty seconds", |page| {
            if let Some(parts) = parts(page, UTIL) {
                let device = page.value("podgauge_gpu_utilization", &[]).unwrap();
                assert!((parts.iter().sum::<f64>() - device).abs() < 1e-6, "{}", page.text);
            }
            let memory = parts(page, "DCGM_FI_DEV_FB_USED").unwrap();
            assert_eq!(memory, [12000.0, 8000.0, 300.0], "{}", page.text);
            match page.want(OBSERVED, &[("pod", "a")])? - first.want(OBSERVED, &[("pod", "a")])? {
                seconds if seconds >= 20.0 => Ok(page.clone()),
                seconds => Err(seconds.to_string()),
            }
        })
        .await;
    let gained = |name: &str, pod: &str| {
        last.value(name, &[("pod", pod)]).unwrap() - first.value(name, &[("pod", pod)]).unwrap()
    };
    for (pod, truth) in [("a", 30.0), ("b", 15.0), ("", 5.0)] {
        let share = gained(ACTIVE, pod) / gained(OBSERVED, pod) * 100.0;
        assert!((share - truth).abs() <= 2.0, "{pod:?}: {share}, {truth} true");
        let apart = gained(OBSERVED, pod) - gained(OBSERVED, "a");
        assert!(apart.abs() < 1e-6, "all know the same: {pod:?} is {apart} s apart");
    }
    let owners = ["a", "b", ""].iter().map(|pod| gained(ACTIVE, pod)).sum::<f64>();
    let device = last.value(DEVICE_ACTIVE, &[]).unwrap() - first.value(DEVICE_ACTIVE, &[]).unwrap();
    assert!((owners - device).abs() <= 0.02 * device, "{owners} of {device}");
    assert_eq!(last.value("podgauge_gpu_owners", &[]), Some(3.0));
}

/// One owner needs no sampling; the second one's first tick begins it.
#[tokio::test]
async fn processes_are_sampled_only_where_there_are_several_owners() {
    let alone = SHARED.split("  - {name: b").next().unwrap();
    let node = Node::new(alone);
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let whole = exporter.until("one owner", |page| page.want(UTIL, &[("pod", "a")])).await;
    assert!((whole - 30.0).abs() <= 0.5, "{whole}");
    let page = exporter.page().await;
    assert_eq!(page.all(UTIL, &[]).len(), 1, "{}", page.text);
    // The driver refuses to tell about processes: with one owner nobody asks.
    let refusing = alone.replace(
        "gpus: [{replicas: 2}]",
        "gpus: [{replicas: 2, errors: {nvmlDeviceGetProcessUtilization: NOT_SUPPORTED}}]",
    );
    node.play(&refusing);
    let before = page.value(OBSERVED, &[("pod", "a")]).unwrap();
    exporter
        .until("more of the one owner", |page| match page.want(OBSERVED, &[("pod", "a")])? {
            observed if observed > before + 3.0 => Ok(()),
            observed => Err(observed.to_string()),
        })
        .await;
    // With two it is asked, and as it says nothing nothing is divided.
    let both = SHARED.replace(
        "gpus: [{replicas: 2}]",
        "gpus: [{replicas: 2, errors: {nvmlDeviceGetProcessUtilization: NOT_SUPPORTED}}]",
    );
    node.play(&both);
    let page = exporter
        .until("the reason", |page| {
            let reason = [("reason", "no_process_utilization")];
            page.want("podgauge_attribution_unavailable", &reason).map(|_| page.clone())
        })
        .await;
    assert_eq!(page.all(UTIL, &[]).len(), 1, "{}", page.text);
    assert_eq!(page.all(UTIL, &[("pod", "")]).len(), 1, "{}", page.text);
    assert!(parts(&page, "DCGM_FI_DEV_FB_USED").is_some(), "memory is divided all the same\n{}", page.text);
}

/// Under MPS the driver credits the server: use is not divided, memory is.
#[tokio::test]
async fn under_mps_use_is_not_divided() {
    let node = Node::new(&SHARED.replace("{replicas: 2}", "{replicas: 2, mps_server: 4100009}"));
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page = exporter
        .until("the reason", |page| {
            // Until it is sure it credits nobody: a 0 would be false.
            for pod in ["a", "b"] {
                assert!(
                    page.value(UTIL, &[("pod", pod)]).is_none_or(|percent| percent > 0.0),
                    "{}",
                    page.text
                );
                assert_eq!(page.value(ACTIVE, &[("pod", pod)]).unwrap_or(0.0), 0.0, "{}", page.text);
                assert_eq!(page.value(OBSERVED, &[("pod", pod)]).unwrap_or(0.0), 0.0, "{}", page.text);
            }
            let reason = [("reason", "mps_server")];
            page.want("podgauge_attribution_unavailable", &reason).map(|_| page.clone())
        })
        .await;
    assert_eq!(page.all(UTIL, &[]).len(), 1, "{}", page.text);
    assert_eq!(page.all(UTIL, &[("pod", "")]).len(), 1, "{}", page.text);
    assert_eq!(parts(&page, "DCGM_FI_DEV_FB_USED"), Some([12000.0, 8000.0, 300.0]));
    // An estimate of what is not divided is none.
    assert!(page.all("podgauge_attribution_estimated", &[]).is_empty(), "{}", page.text);
}

/// The memory of one process cannot be told: nobody's is then.
#[tokio::test]
async fn memory_that_nvml_cannot_tell_is_not_divided() {
    let node = Node::new(&SHARED.replace("memory_mib: 8000", "memory_mib: 8000, memory_unavailable: true"));
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page = exporter
        .until("shares", |page| parts(page, UTIL).map(|_| page.clone()).ok_or(page.text.clone()))
        .await;
    assert_eq!(page.all("DCGM_FI_DEV_FB_USED", &[]).len(), 1, "{}", page.text);
    assert_eq!(page.value("DCGM_FI_DEV_FB_USED", &[("pod", "")]), Some(20300.0));
    assert_eq!(page.value("podgauge_attribution_unavailable", &[("reason", "no_process_memory")]), Some(1.0));
}
