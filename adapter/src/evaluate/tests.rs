//! What a pod's number is, case by case and for any course of events.

mod containers;
mod nodes;
mod parts;
mod recent;
mod truth;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::{NodeExporter, NodeQuestion, Now, Omission, Question, Rules, Value, node_value, pod_value};
use crate::cluster::slim::SlimPod;
use crate::cluster::{PodRecord, Selector};
use crate::metric::{MetricFlag, Metrics};
use crate::source::Target;
use crate::source::budget::Budget;
use crate::source::history::Span;
use crate::source::page::{self, Room};
use crate::source::store::{Exporter, ExporterState};

const RULES: Rules = Rules { window: Duration::from_secs(60), staleness: Duration::from_secs(30) };
const ROOM: Room = Room { series: 1 << 20, text: 100 << 20 };

fn span() -> Span {
    Span::new(RULES.window, Duration::from_secs(5))
}

/// An exporter that is shown pages, and a clock.
struct Scene {
    began: Instant,
    began_wall: Timestamp,
    seconds: f64,
    exporter: ExporterState,
    metrics: Metrics,
    pod: serde_json::Value,
}

impl Scene {
    fn new() -> Self {
        let target =
            Target { node: Some("gpu-7".into()), url: "http://10.0.0.7:9400/metrics".parse().unwrap() };
        let began_wall: Timestamp = "2026-11-21T16:00:00Z".parse().unwrap();
        Self {
            began: Instant::now(),
            began_wall,
            seconds: 0.0,
            exporter: Exporter::new(target, Arc::new(Budget::new(1000)).share()).state.into_inner(),
            metrics: Metrics::new(&[MetricFlag::parse("DCGM_FI_DEV_GPU_TEMP").unwrap()]),
            pod: json!({
                "metadata": {"namespace": "demo", "name": "p", "uid": "u1"},
                "spec": {"nodeName": "gpu-7"},
                "status": {
                    "phase": "Running", "startTime": "2026-11-21T15:00:00Z",
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-21T15:01:00Z"}],
                    "containerStatuses": [{"name": "c", "state": {"running": {"startedAt": "2026-11-21T15:00:05Z"}}}],
                },
            }),
        }
    }

    fn at(&self) -> Instant {
        self.began + Duration::from_secs_f64(self.seconds)
    }

    fn page(&mut self, page: &str) {
        let mut page = page::read(page, &self.metrics).unwrap();
        let at = self.at();
        self.exporter.answered(&mut page, at, &span(), ROOM);
    }

    /// A page of ours that gives GPU `gpu` to pod p alone: `(gpu, active, observed)` each.
    fn native(&mut self, uid: &str, gpus: &[(u8, f64, f64)]) {
        self.page(&native(uid, gpus));
    }

    fn ask(&self, metric: &str) -> Result<f64, Omission> {
        self.ask_by(metric, &[&self.exporter], "")
    }

    fn ask_by(&self, metric: &str, exporters: &[&ExporterState], devices: &str) -> Result<f64, Omission> {
        self.value_by(metric, exporters, devices).map(|value| value.value)
    }

    fn value_by(&self, metric: &str, exporters: &[&ExporterState], devices: &str) -> Result<Value, Omission> {
        let pod = PodRecord::from(&serde_json::from_value::<SlimPod>(self.pod.clone()).unwrap());
        let metric = self.metrics.get(metric).unwrap();
        let devices = Selector::parse(devices).unwrap();
        let question = Question { namespace: "demo", pod: "p", metric, devices: &devices };
        pod_value(&question, &pod, exporters, &RULES, &self.now())
    }

    fn now(&self) -> Now {
        let wall = self.began_wall + SignedDuration::from_secs_f64(self.seconds);
        Now { instant: self.at(), wall }
    }

    fn node(&self, metric: &str) -> Result<f64, Omission> {
        self.node_by(metric, "gpu-7", "", false)
    }

    fn node_by(&self, metric: &str, node: &str, devices: &str, of_any_node: bool) -> Result<f64, Omission> {
        let metric = self.metrics.get(metric).unwrap();
        let devices = Selector::parse(devices).unwrap();
        let question = NodeQuestion { node, metric, devices: &devices };
        let exporter = NodeExporter { state: &self.exporter, of_any_node };
        node_value(&question, &[exporter], &RULES, &self.now()).map(|value| value.value)
    }

    fn utilization(&self) -> Result<f64, Omission> {
        self.ask("gpu_utilization")
    }

    /// Why there is no utilization, with the exact numbers.
    fn reason(&self) -> String {
        format!("{:#}", self.utilization().unwrap_err())
    }
}

/// The lines of a page of ours: `(gpu, active, observed)` each.
fn native(uid: &str, gpus: &[(u8, f64, f64)]) -> String {
    let lines = gpus.iter().map(|(gpu, active, observed)| {
        let device = format!("gpu=\"{gpu}\",UUID=\"GPU-{gpu}\",modelName=\"H100\"");
        let owner = format!("{device},namespace=\"demo\",pod=\"p\",container=\"c\"");
        format!(
            "podgauge_gpu_active_seconds_total{{{owner}}} {active}\n\
             podgauge_gpu_observed_seconds_total{{{owner}}} {observed}\n\
             podgauge_gpu_owners{{{device}}} 1\n\
             podgauge_gpu_allocation{{{owner},pod_uid=\"{uid}\"}} 1\n"
        )
    });
    lines.collect()
}

/// … and its sums of the last 60 s: `(gpu, active, observed)`, of the owner and of the device alike.
fn sums(gpu: u8, active: f64, observed: f64) -> String {
    let device = format!("gpu=\"{gpu}\",UUID=\"GPU-{gpu}\",modelName=\"H100\"");
    let owner = format!("{device},namespace=\"demo\",pod=\"p\",container=\"c\"");
    format!(
        "podgauge_gpu_recent_active_seconds{{window=\"60s\",{owner}}} {active}\n\
         podgauge_gpu_recent_observed_seconds{{window=\"60s\",{owner}}} {observed}\n\
         podgauge_gpu_recent_device_active_seconds{{window=\"60s\",{device}}} {active}\n\
         podgauge_gpu_recent_device_observed_seconds{{window=\"60s\",{device}}} {observed}\n"
    )
}

/// A scene with a value of 40 %.
fn busy() -> Scene {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.native("u1", &[(0, 100.0 + 0.4 * scene.seconds, 500.0 + scene.seconds)]);
    }
    assert!((scene.utilization().unwrap() - 40.0).abs() < 1e-9);
    scene
}

#[test]
fn without_the_exporters_own_sums_a_restarted_adapter_reads_for_15_seconds() {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.native("u1", &[(0, 100.0 + 0.4 * scene.seconds, 500.0 + scene.seconds)]);
        match scrape {
            0 => assert_eq!(scene.utilization(), Err(Omission::TooFewScrapes)),
            1 | 2 => assert_eq!(scene.utilization(), Err(Omission::Reading { needed: 15 })),
            _ => assert!((scene.utilization().unwrap() - 40.0).abs() < 1e-9),
        }
    }
}

#[test]
fn a_new_pod_needs_15_seconds_of_its_own() {
    let mut scene = Scene::new();
    for (seconds, observed) in [(0.0, 2.0), (5.0, 7.0), (10.0, 12.0)] {
        scene.seconds = seconds;
        scene.native("u1", &[(0, 0.0, observed)]);
    }
    assert_eq!(scene.reason(), "observed for 12s, a first answer needs 15s");
    scene.seconds = 15.0;
    scene.native("u1", &[(0, 0.0, 17.0)]);
    assert_eq!(scene.utilization(), Ok(0.0));
}

#[test]
fn an_exporters_restart_costs_a_known_pod_two_scrapes_and_its_value_stands_meanwhile() {
    let mut scene = busy();
    scene.seconds = 25.0;
    scene.exporter.failed("connection refused".to_owned());
    assert!((scene.utilization().unwrap() - 40.0).abs() < 1e-9);
    scene.seconds = 30.0;
    scene.native("u1", &[(0, 1.0, 1.0)]);
    assert!((scene.utilization().unwrap() - 40.0).abs() < 1e-9);
    scene.seconds = 35.0;
    scene.native("u1", &[(0, 6.0, 6.0)]);
    assert!((scene.utilization().unwrap() - (8.0 + 5.0) / 25.0 * 100.0).abs() < 1e-9);
}

/// It began again right after a page, and has counted for longer than before by the next one.
#[test]
fn a_restart_that_the_counters_hide_is_told_by_the_start_time() {
    let start = |at: u32| format!("podgauge_start_time_seconds {at}\n");
    let mut scene = Scene::new();
    scene.page(&(native("u1", &[(0, 14.0, 14.0)]) + &start(1)));
    scene.seconds = 30.0;
    scene.page(&(native("u1", &[(0, 29.0 * 0.2, 29.0)]) + &start(2)));
    assert!(scene.utilization().is_err(), "{:?}", scene.utilization());
    for scrape in 2..6 {
        scene.seconds = 30.0 * f64::from(scrape);
        let observed = scene.seconds - 1.0;
        scene.page(&(native("u1", &[(0, observed * 0.2, observed)]) + &start(2)));
        let value = scene.utilization().unwrap();
        assert!((value - 20.0).abs() < 1e-6, "{value} at {} s", scene.seconds);
    }
    // Both lives count for the pod's first answer.
    let holding = scene.exporter.pod("demo", "p").into_iter().flatten().next().unwrap().1;
    assert!((holding.counted() - 14.0 - 149.0).abs() < 1e-6, "{}", holding.counted());
}

#[test]
fn a_silent_exporters_word_stands_until_staleness() {
    let mut scene = busy();
    scene.seconds = 50.0;
    assert!(scene.utilization().is_ok());
    scene.seconds = 115.0;
    scene.exporter.failed("connection refused".to_owned());
    assert_eq!(scene.reason(), "exporter on node gpu-7 last answered 95s ago");
}

#[test]
fn a_sampler_that_stands_still_is_stale_too() {
    let mut scene = busy();
    for _ in 0..8 {
        scene.seconds += 5.0;
        scene.native("u1", &[(0, 108.0, 520.0)]);
    }
    assert_eq!(scene.reason(), "the newest reading of its device is 40s old");
}

#[test]
fn another_pod_of_that_name_inherits_nothing() {
    let mut scene = busy();
    scene.pod["metadata"]["uid"] = json!("u2");
    assert_eq!(scene.reason(), "exporter on node gpu-7 speaks of another pod of that name (its UID differs)");
    // Its counters go on where the other's ended, and its own 15 s begin.
    for (seconds, observed) in [(25.0, 525.0), (30.0, 530.0), (35.0, 535.0)] {
        scene.seconds = seconds;
        scene.native("u2", &[(0, 110.0, observed)]);
    }
    assert_eq!(scene.reason(), "observed for 10s, a first answer needs 15s");
    scene.seconds = 40.0;
    scene.native("u2", &[(0, 110.0, 540.0)]);
    assert_eq!(scene.utilization(), Ok(0.0));
}

#[test]
fn without_a_uid_only_what_came_after_the_start_counts() {
    let mut scene = Scene::new();
    let gauge = |value| {
        format!("DCGM_FI_DEV_GPU_UTIL{{UUID=\"a\",namespace=\"demo\",pod=\"p\",container=\"c\"}} {value}\n")
    };
    for scrape in 0..9 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.page(&gauge(if scrape <= 4 { 100 } else { 30 }));
    }
    assert!(scene.utilization().unwrap() > 60.0);
    scene.pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] =
        json!("2026-11-21T16:00:20Z");
    assert!((scene.utilization().unwrap() - 30.0).abs() < 1e-9);
    scene.pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] =
        json!("2026-11-21T16:00:38Z");
    assert_eq!(scene.reason(), "observed for 2s, a first answer needs 15s");
}

#[test]
fn what_an_init_container_did_is_the_pods() {
    let mut scene = Scene::new();
    for scrape in 0..9 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.page(&gauge("a", "p", if scrape <= 4 { 100.0 } else { 30.0 }));
    }
    let status = &mut scene.pod["status"];
    status["containerStatuses"] = json!([{"name": "c", "state": {"waiting": {"reason": "PodInitializing"}}}]);
    assert_eq!(scene.utilization(), Err(Omission::NotStarted));
    let init = json!([{"name": "load", "state": {"terminated": {"startedAt": "2026-11-21T16:00:20Z"}}}]);
    scene.pod["status"]["initContainerStatuses"] = init;
    assert!((scene.utilization().unwrap() - 30.0).abs() < 1e-9, "since the init container began");
    // The main one began later: what came before is the pod's all the same.
    scene.pod["status"]["containerStatuses"][0]["state"] =
        json!({"running": {"startedAt": "2026-11-21T16:00:38Z"}});
    assert!((scene.utilization().unwrap() - 30.0).abs() < 1e-9);
}

#[test]
fn the_window_and_what_becomes_of_several_devices_can_be_chosen() {
    let flags = [
        "gpu_utilization,aggregation=max",
        "gpu_device_utilization,window=20s",
        "gpu_power_watts,aggregation=mean",
        "gpu_memory_used_bytes,aggregation=max",
    ];
    let mut scene = Scene::new();
    scene.metrics = Metrics::new(&flags.map(|flag| MetricFlag::parse(flag).unwrap()));
    for scrape in 0..12 {
        scene.seconds = 5.0 * f64::from(scrape);
        let (t, late) = (scene.seconds, (scene.seconds - 35.0).max(0.0));
        let line = |gpu: &str, active: f64, mib: u32| {
            let owner = format!("UUID=\"{gpu}\",namespace=\"demo\",pod=\"p\",container=\"c\"");
            format!(
                "podgauge_gpu_active_seconds_total{{{owner}}} {active}\npodgauge_gpu_device_active_seconds_total{{UUID=\"{gpu}\"}} {active}\n\
                 podgauge_gpu_observed_seconds_total{{{owner}}} {}\nDCGM_FI_DEV_POWER_USAGE{{{owner}}} {mib}\n\
                 DCGM_FI_DEV_FB_USED{{{owner}}} {mib}\n",
                500.0 + t
            )
        };
        scene.page(&(line("a", 0.2 * t, 100) + &line("b", late, 300)));
    }
    let near = |metric: &str, expected: f64| {
        let value = scene.ask(metric).unwrap();
        assert!((value - expected).abs() < 1e-6, "{metric}: {value}, not {expected}");
    };
    // The busier one: 20 of 55 s.
    near("gpu_utilization", 20.0 / 55.0 * 100.0);
    near("gpu_utilization_share", (20.0 + 20.0 / 55.0 * 100.0) / 2.0);
    // The last 20 s alone.
    near("gpu_device_utilization", 60.0);
    near("gpu_power_watts", 200.0);
    near("gpu_memory_used_bytes", 300.0 * 1024.0 * 1024.0);
}

#[test]
fn only_exporters_of_the_pods_node_are_asked() {
    let scene = busy();
    let none = scene.ask_by("gpu_utilization", &[], "").unwrap_err();
    assert_eq!(none.to_string(), "no exporter is known on node gpu-7");
}

#[test]
fn every_device_must_have_a_value() {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.native("u1", &[(0, scene.seconds, 500.0 + scene.seconds), (1, 0.0, 500.0 + scene.seconds)]);
    }
    assert!((scene.utilization().unwrap() - 50.0).abs() < 1e-9);
    // GPU 1 is lost: its counters are gone, its allocation stands.
    for scrape in 5..20 {
        scene.seconds = 5.0 * f64::from(scrape);
        let owner = "gpu=\"1\",UUID=\"GPU-1\",namespace=\"demo\",pod=\"p\",container=\"c\"";
        let observed = 500.0 + scene.seconds;
        scene.page(&format!(
            "podgauge_gpu_active_seconds_total{{UUID=\"GPU-0\",namespace=\"demo\",pod=\"p\",container=\"c\"}} {0}\n\
             podgauge_gpu_observed_seconds_total{{UUID=\"GPU-0\",namespace=\"demo\",pod=\"p\",container=\"c\"}} {observed}\n\
             podgauge_gpu_allocation{{{owner},pod_uid=\"u1\"}} 1\n",
            scene.seconds
        ));
        if scrape == 6 {
            assert!((scene.utilization().unwrap() - 50.0).abs() < 1e-9, "its last value stands");
        }
    }
    assert_eq!(scene.reason(), "1 of 2 devices has no value: the newest reading of its device is 75s old");
    assert!(
        (scene.ask_by("gpu_utilization", &[&scene.exporter], "UUID=GPU-0").unwrap() - 100.0).abs() < 1e-9
    );
    let none = scene.ask_by("gpu_utilization", &[&scene.exporter], "modelName=A100").unwrap_err();
    assert_eq!(
        none.to_string(),
        "none of its devices matches the metricLabelSelector: \
         no device has the label modelName, there is UUID=GPU-0|GPU-1, gpu=1"
    );
}

#[test]
fn a_part_of_a_device_is_what_use_is_a_percentage_of() {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        let owner = "UUID=\"a\",namespace=\"demo\",pod=\"p\",container=\"c\"";
        let (active, observed) = (0.3 * scene.seconds, 500.0 + scene.seconds);
        scene.page(&format!(
            "podgauge_gpu_active_seconds_total{{{owner}}} {active}\n\
             podgauge_gpu_observed_seconds_total{{{owner}}} {observed}\n\
             podgauge_gpu_device_active_seconds_total{{UUID=\"a\"}} {0}\n\
             podgauge_gpu_utilization{{UUID=\"a\"}} 50\n\
             podgauge_gpu_owners{{UUID=\"a\"}} 2\n\
             podgauge_gpu_allocation{{{owner},pod_uid=\"u1\"}} 0.25\n\
             DCGM_FI_DEV_FB_USED{{{owner}}} 1000\nDCGM_FI_DEV_FB_USED{{UUID=\"a\"}} 2000\n\
             DCGM_FI_DEV_FB_FREE{{UUID=\"a\"}} 6500\nDCGM_FI_DEV_FB_RESERVED{{UUID=\"a\"}} 500\n",
            0.5 * scene.seconds
        ));
    }
    for (metric, value) in [
        ("gpu_utilization", 120.0),
        ("gpu_utilization_share", 30.0),
        ("gpu_device_utilization", 50.0),
        ("gpu_memory_used_bytes", 1000.0 * 1_048_576.0),
        ("gpu_memory_utilization", 10.0),
    ] {
        assert!((scene.ask(metric).unwrap() - value).abs() < 1e-6, "{metric}");
    }
    let power = scene.ask("gpu_power_watts").unwrap_err().to_string();
    assert_eq!(power, "its exporter gives no series for gpu_power_watts for it");
}

#[test]
fn a_shared_device_without_shares_is_no_guess() {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.page(
            "podgauge_gpu_observed_seconds_total{UUID=\"a\"} 5\n\
             podgauge_gpu_allocation{UUID=\"a\",namespace=\"demo\",pod=\"p\",container=\"c\",pod_uid=\"u1\"} 0.5\n\
             podgauge_gpu_allocation{UUID=\"a\",namespace=\"demo\",pod=\"q\",container=\"c\",pod_uid=\"u9\"} 0.5\n\
             podgauge_attribution_unavailable{UUID=\"a\",reason=\"MPS\"} 1\n",
        );
    }
    assert_eq!(scene.reason(), "the use of its device cannot be attributed: MPS");
    // NVIDIA's exporter prints the whole device's use for each pod.
    for scrape in 5..10 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.page(
            "DCGM_FI_DEV_GPU_UTIL{UUID=\"a\",namespace=\"demo\",pod=\"p\",container=\"c\"} 50\n\
             DCGM_FI_DEV_GPU_UTIL{UUID=\"a\",namespace=\"demo\",pod=\"q\",container=\"c\"} 50\n",
        );
    }
    assert_eq!(scene.utilization(), Err(Omission::Shared { pods: 2 }));
    assert!((scene.ask("gpu_device_utilization").unwrap() - 50.0).abs() < 1e-9);
}

#[test]
fn other_families_are_means_and_sums() {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        let of = |gpu: u8| format!("{{UUID=\"GPU-{gpu}\",namespace=\"demo\",pod=\"p\",container=\"c\"}}");
        let (a, b) = (of(0), of(1));
        scene.page(&format!(
            "DCGM_FI_DEV_POWER_USAGE{a} 100\nDCGM_FI_DEV_POWER_USAGE{b} 300\n\
             DCGM_FI_DEV_GPU_TEMP{a} 40\nDCGM_FI_DEV_GPU_TEMP{b} 60\n\
             DCGM_FI_PROF_SM_ACTIVE{a} 0.25\nDCGM_FI_PROF_SM_ACTIVE{b} 0.75\n"
        ));
    }
    for (metric, value) in
        [("gpu_power_watts", 400.0), ("DCGM_FI_DEV_GPU_TEMP", 50.0), ("gpu_sm_active", 50.0)]
    {
        assert!((scene.ask(metric).unwrap() - value).abs() < 1e-9, "{metric}");
    }
}

#[test]
fn a_pod_counts_once_it_has_been_ready() {
    let mut scene = busy();
    let ready = |scene: &mut Scene, status: &str, changed: &str| {
        scene.pod["status"]["conditions"][0] =
            json!({"type": "Ready", "status": status, "lastTransitionTime": changed});
    };
    ready(&mut scene, "False", "2026-11-21T15:00:10Z");
    assert_eq!(scene.utilization(), Err(Omission::NotReadyYet));
    ready(&mut scene, "False", "2026-11-21T15:00:11Z");
    assert!(scene.utilization().is_ok());
    // Its GPU container came back after it had stopped being Ready.
    let container = |restarts: u32, started: &str| json!({"name": "c", "restartCount": restarts, "state": {"running": {"startedAt": started}}});
    ready(&mut scene, "False", "2026-11-21T15:30:00Z");
    scene.pod["status"]["containerStatuses"][0] = container(1, "2026-11-21T15:29:59Z");
    assert_eq!(scene.reason(), "container c restarted and is not Ready again");
    scene.pod["status"]["containerStatuses"][0] = container(1, "2026-11-21T15:10:00Z");
    assert!(scene.utilization().is_ok());
    scene.pod["status"]["containerStatuses"][0] = json!({"name": "c", "restartCount": 1, "state": {}});
    assert!(scene.utilization().is_err());
    ready(&mut scene, "True", "2026-11-21T15:31:00Z");
    assert!(scene.utilization().is_ok());
    ready(&mut scene, "False", "2026-11-21T15:30:00Z");
    scene.pod["status"]["containerStatuses"][0] = json!({"name": "sidecar", "restartCount": 9, "state": {"running": {"startedAt": "2026-11-21T15:30:00Z"}}});
    assert!(scene.utilization().is_ok(), "a container without a GPU may restart");
}

#[test]
fn pods_that_end_or_wait_are_left_out() {
    let scene = busy();
    let with = |change: fn(&mut serde_json::Value)| {
        let mut scene = Scene { pod: scene.pod.clone(), ..Scene::new() };
        change(&mut scene.pod);
        scene.reason()
    };
    assert_eq!(
        with(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-11-21T16:00:00Z")),
        "terminating"
    );
    assert_eq!(with(|pod| pod["status"]["phase"] = json!("Failed")), "finished (Failed)");
    assert_eq!(with(|pod| pod["spec"] = json!({})), "not scheduled to a node yet");
}

/// Lines of ours for one device and pod `demo/p`, with an allocation of `uid` unless that is empty.
fn own(gpu: &str, uid: &str, active: f64, observed: f64) -> String {
    let owner = format!("UUID=\"{gpu}\",namespace=\"demo\",pod=\"p\",container=\"c\"");
    let uid = if uid.is_empty() { String::new() } else { format!(",pod_uid=\"{uid}\"") };
    format!(
        "podgauge_gpu_active_seconds_total{{{owner}}} {active}\n\
         podgauge_gpu_observed_seconds_total{{{owner}}} {observed}\n\
         podgauge_gpu_allocation{{{owner}{uid}}} 1\n"
    )
}

fn gauge(gpu: &str, pod: &str, percent: f64) -> String {
    let owner = format!("UUID=\"{gpu}\",namespace=\"demo\",pod=\"{pod}\",container=\"c\"");
    format!("DCGM_FI_DEV_GPU_UTIL{{{owner}}} {percent}\nDCGM_FI_DEV_POWER_USAGE{{{owner}}} 100\n")
}

#[test]
fn two_pods_of_one_name_on_one_page_are_two_pods() {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        let t = scene.seconds;
        scene.page(&(own("GPU-0", "u1", 0.2 * t, 500.0 + t) + &own("GPU-1", "u2", 0.8 * t, 500.0 + t)));
    }
    assert!((scene.utilization().unwrap() - 20.0).abs() < 1e-9);
    scene.pod["metadata"]["uid"] = json!("u2");
    assert!((scene.utilization().unwrap() - 80.0).abs() < 1e-9);
    scene.pod["metadata"]["uid"] = json!("u3");
    assert!(matches!(scene.utilization(), Err(Omission::OtherUid { .. })));
}

#[test]
fn a_uid_that_was_missing_for_a_while_is_remembered() {
    let mut scene = busy();
    scene.pod["metadata"]["uid"] = json!("u2");
    scene.pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] =
        json!("2026-11-21T16:00:24Z");
    for (seconds, uid) in [(25.0, ""), (30.0, "u2"), (35.0, "u2"), (40.0, "u2")] {
        scene.seconds = seconds;
        let page = own("GPU-0", uid, 110.0, 500.0 + seconds);
        scene.page(&page);
        assert!(matches!(scene.utilization(), Err(Omission::Collecting { .. })), "{seconds}");
    }
    scene.seconds = 45.0;
    scene.native("u2", &[(0, 110.0, 545.0)]);
    assert_eq!(scene.utilization(), Ok(0.0));
}

#[test]
fn an_empty_page_of_ours_changes_nothing_until_staleness() {
    let mut scene = busy();
    for seconds in [25.0, 30.0, 35.0, 40.0, 45.0, 50.0] {
        scene.seconds = seconds;
        scene.page("DCGM_FI_DEV_GPU_UTIL{UUID=\"GPU-0\"} 50\n");
        assert!(scene.exporter.native);
        assert!((scene.utilization().unwrap() - 40.0).abs() < 1e-9, "{seconds}");
    }
    scene.seconds = 55.0;
    scene.page("");
    assert_eq!(scene.reason(), "the newest reading of its device is 35s old");
}

#[test]
fn metrics_that_need_no_utilization_settle_by_themselves() {
    let mut scene = Scene::new();
    for scrape in 0..4 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.page(
            "podgauge_gpu_allocation{UUID=\"a\",namespace=\"demo\",pod=\"p\",container=\"c\",pod_uid=\"u1\"} 1\n\
             podgauge_attribution_unavailable{UUID=\"a\",reason=\"vGPU\"} 1\n\
             DCGM_FI_DEV_FB_USED{UUID=\"a\",namespace=\"demo\",pod=\"p\",container=\"c\"} 3\n",
        );
        assert_eq!(scene.ask("gpu_memory_used_bytes").is_ok(), scrape == 3);
    }
}

#[test]
fn a_settled_pod_stays_settled_on_a_further_device() {
    let mut scene = busy();
    for seconds in [25.0, 30.0] {
        scene.seconds = seconds;
        scene.native("u1", &[(0, 100.0 + 0.4 * seconds, 500.0 + seconds), (1, 0.0, seconds - 24.0)]);
    }
    assert!((scene.utilization().unwrap() - 20.0).abs() < 1e-9);
}

#[test]
fn a_device_that_leaves_the_page_is_still_the_pods() {
    let mut scene = Scene::new();
    let both = |t: f64| [(0, t, 500.0 + t), (1, 0.0, 500.0 + t)];
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.native("u1", &both(scene.seconds));
    }
    for scrape in 5..200 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.native("u1", &both(scene.seconds)[..1]);
    }
    assert!(scene.reason().starts_with("1 of 2 devices has no value: "), "{}", scene.reason());
    // Another pod of that name has only what it was given.
    for scrape in 200..210 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.native("u2", &both(scene.seconds)[..1]);
    }
    scene.pod["metadata"]["uid"] = json!("u2");
    assert!((scene.utilization().unwrap() - 100.0).abs() < 1e-9);
}

#[test]
fn a_pod_made_anew_elsewhere_does_not_wait_for_its_old_device() {
    let mut scene = Scene::new();
    for scrape in 0..9 {
        scene.seconds = 5.0 * f64::from(scrape);
        let gpu = if scrape < 4 { "GPU-0" } else { "GPU-1" };
        scene.page(&gauge(gpu, "p", 50.0));
    }
    scene.pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] =
        json!("2026-11-21T16:00:18Z");
    assert!((scene.utilization().unwrap() - 50.0).abs() < 1e-9);
}

#[test]
fn what_a_foreign_exporter_repeats_for_each_pod_is_no_pods() {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.page(&(gauge("a", "p", 50.0) + &gauge("a", "q", 50.0)));
    }
    assert_eq!(scene.ask("gpu_power_watts"), Err(Omission::Shared { pods: 2 }));
}

#[test]
fn ours_comes_first_and_its_refusal_is_final() {
    let mut scene = busy();
    let ours = std::mem::replace(&mut scene.exporter, Scene::new().exporter);
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.page(&gauge("GPU-0", "p", 90.0));
    }
    let theirs = std::mem::take(&mut scene.exporter);
    for order in [[&ours, &theirs], [&theirs, &ours]] {
        assert!((scene.ask_by("gpu_utilization", &order, "").unwrap() - 40.0).abs() < 1e-9);
    }
    scene.pod["metadata"]["uid"] = json!("u2");
    for order in [[&ours, &theirs], [&theirs, &ours]] {
        let refused = scene.ask_by("gpu_utilization", &order, "");
        assert!(matches!(refused, Err(Omission::OtherUid { .. })), "{refused:?}");
    }
}

/// Both exporters are accepted for every node, and the one that had the pod before answered last.
#[test]
fn the_exporter_that_a_pod_left_says_nothing_of_it() {
    let mut scene = busy();
    let mut left = std::mem::replace(&mut scene.exporter, Scene::new().exporter);
    scene.pod["metadata"]["uid"] = json!("u2");
    let refused = scene.ask_by("gpu_utilization", &[&left], "");
    assert!(matches!(refused, Err(Omission::OtherUid { .. })), "its newest page has the other: {refused:?}");
    for seconds in [25.0, 30.0, 35.0, 40.0, 45.0] {
        scene.seconds = seconds;
        scene.native("u2", &[(0, 0.7 * seconds, 500.0 + seconds)]);
        // The other pod is still on its page, and it answered last.
        left.last_answer = Some(scene.at() + Duration::from_secs(1));
        for order in [[&left, &scene.exporter], [&scene.exporter, &left]] {
            let value = scene.ask_by("gpu_utilization", &order, "");
            assert!(value.is_ok() || seconds < 40.0, "{value:?} at {seconds} s");
        }
    }
    let mut page = page::read("podgauge_gpu_up{UUID=\"GPU-0\"} 1\n", &scene.metrics).unwrap();
    left.answered(&mut page, scene.at(), &span(), ROOM);
    let gone = scene.ask_by("gpu_utilization", &[&left], "").unwrap_err();
    assert!(matches!(gone, Omission::NoGpu { .. }), "{gone}");
    let value = scene.ask_by("gpu_utilization", &[&left, &scene.exporter], "").unwrap();
    assert!((value - 70.0).abs() < 1e-6, "{value}");
}

#[test]
fn what_is_kept_of_all_pages_is_bounded() {
    let mut scene = Scene::new();
    for page in 0..4 {
        scene.seconds = 5.0 * f64::from(page);
        let lines: Vec<String> =
            (0..8000).map(|pod| gauge("a", &format!("{page}-{pod}"), 1.0).replace("\"c\"", "\"\"")).collect();
        scene.page(&lines.concat());
    }
    // Each holding has use, the device's use, and power.
    assert!(scene.exporter.series() <= 3 * 16_384, "{}", scene.exporter.series());
    assert!(scene.exporter.pod("demo", "3-7999").is_some() && scene.exporter.pod("demo", "0-1").is_none());
}

#[test]
fn a_sidecar_with_a_gpu_counts_as_a_container_with_a_gpu() {
    let mut scene = busy();
    scene.pod["status"]["conditions"][0] =
        json!({"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-21T15:30:00Z"});
    scene.pod["status"]["containerStatuses"][0]["name"] = json!("main");
    let mut init = |state: serde_json::Value| {
        scene.pod["status"]["initContainerStatuses"] =
            json!([{"name": "c", "restartCount": 1, "state": state}]);
        scene.utilization().is_ok()
    };
    assert!(init(json!({"terminated": {"startedAt": "2026-11-21T15:00:01Z"}})), "it has done its work");
    assert!(!init(json!({"running": {"startedAt": "2026-11-21T15:30:00Z"}})));
}

/// What happens in one scrape interval of 5 s.
#[derive(Debug, Clone)]
enum Event {
    /// The load of these 5 s, and the scrape at their end.
    Scrape(f64),
    /// … a scrape that fails.
    Missed(f64),
    /// … in which nothing could be observed.
    Blind(f64),
    /// The exporter restarts, then 5 s of load and a scrape.
    Restart(f64),
    /// The pod is replaced by one of the same name.
    Replaced(f64),
}

fn event() -> impl proptest::strategy::Strategy<Value = Event> {
    use proptest::prelude::*;
    let load = || prop_oneof![Just(0.0), Just(1.0), 0.0..=1.0f64];
    prop_oneof![
        6 => load().prop_map(Event::Scrape),
        1 => load().prop_map(Event::Missed),
        1 => load().prop_map(Event::Blind),
        1 => load().prop_map(Event::Restart),
        1 => load().prop_map(Event::Replaced),
    ]
}

proptest::proptest! {
    /// Whatever happens, an answer lies between the least and the most that this pod did within
    /// window and staleness before it; and after two scrapes in a row a settled pod has one.
    #[test]
    fn an_answer_is_never_outside_of_what_was(
        events in proptest::collection::vec(event(), 1..60),
        with_sums: bool,
    ) {
        let mut scene = Scene::new();
        scene.pod["metadata"]["uid"] = json!("u0");
        // (end of the 5 s, load, pod's generation)
        let mut truth: Vec<(f64, f64, u32)> = Vec::new();
        let (mut active, mut observed, mut generation, mut own_observed, mut in_row) = (0.0, 0.0, 0, 0.0, 0);
        // Seconds of readings in a row, and what the exporter sums up: of each 5 s.
        let (mut read, mut recent) = (0.0, Vec::new());
        let mut settled = false;
        for event in events {
            scene.seconds += 5.0;
            let (Event::Scrape(load) | Event::Missed(load) | Event::Blind(load) | Event::Restart(load)
                | Event::Replaced(load)) = event;
            match event {
                Event::Restart(_) => {
                    (active, observed, in_row) = (0.0, 0.0, 0);
                    recent.clear();
                }
                Event::Replaced(_) => {
                    generation += 1;
                    (own_observed, in_row, read, settled) = (0.0, 0, 0.0, false);
                    // The exporter's sums begin again with the UID.
                    recent.clear();
                    scene.pod["metadata"]["uid"] = json!(format!("u{generation}"));
                    let started = scene.began_wall + SignedDuration::from_secs_f64(scene.seconds - 5.0);
                    scene.pod["status"]["startTime"] = json!(started.to_string());
                }
                _ => {}
            }
            truth.push((scene.seconds, load, generation));
            let seen = if matches!(event, Event::Blind(_)) { 0.0 } else { 5.0 };
            active += seen * load;
            observed += seen;
            own_observed += seen;
            recent.push((seen * load, seen));
            if matches!(event, Event::Missed(_)) {
                scene.exporter.failed("gone".to_owned());
                in_row = 0;
            } else {
                let mut page = native(&format!("u{generation}"), &[(0, active, observed)]);
                if with_sums {
                    let last = &recent[recent.len().saturating_sub(12)..];
                    let sum = |of: fn(&(f64, f64)) -> f64| last.iter().map(of).sum();
                    page.push_str(&sums(0, sum(|sums| sums.0), sum(|sums| sums.1)));
                }
                scene.page(&page);
                in_row += 1;
                read += if in_row >= 2 { seen } else { 0.0 };
                // The exporter's own counter, where it began anew.
                settled |= observed.min(own_observed) >= 20.0 && read >= 15.0;
            }
            match scene.utilization() {
                Ok(value) => {
                    let reach = scene.seconds - 90.0 - 5.0;
                    let loads = truth.iter().filter(|(end, _, of)| *end > reach && *of == generation);
                    let (least, most) = loads.fold((f64::MAX, f64::MIN), |(least, most), (_, load, _)| {
                        (least.min(100.0 * load), most.max(100.0 * load))
                    });
                    proptest::prop_assert!(value >= least - 0.01 && value <= most + 0.01,
                        "{value} outside {least}..{most}");
                }
                Err(omission) => {
                    let fresh = matches!(event, Event::Scrape(_));
                    proptest::prop_assert!(!(settled && in_row >= 2 && fresh), "no value: {omission}");
                }
            }
        }
    }
}

/// Under MPS the exporter tells memory apart and not use: memory has its first answer after 15 s of
/// its own, and use the reason, also while it is still being collected.
#[test]
fn use_that_cannot_be_attributed_is_the_reason_and_memory_goes_on() {
    let mut scene = Scene::new();
    let page = |reason: &str| {
        let device = "gpu=\"0\",UUID=\"GPU-0\",modelName=\"H100\"";
        let owner = format!("{device},namespace=\"demo\",pod=\"p\",container=\"c\"");
        format!(
            "podgauge_gpu_owners{{{device}}} 2\npodgauge_gpu_allocation{{{owner},pod_uid=\"u1\"}} 0.5\n\
             podgauge_attribution_unavailable{{{device},reason=\"{reason}\"}} 1\nDCGM_FI_DEV_FB_USED{{{owner}}} 4000\n"
        )
    };
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.page(&page("mps_server"));
        assert!(scene.reason().contains("mps_server"), "{}", scene.reason());
        let memory = scene.ask("gpu_memory_used_bytes");
        assert_eq!(memory.is_ok(), scene.seconds >= 15.0, "{memory:?} after {} s", scene.seconds);
    }
    assert_eq!(scene.ask("gpu_memory_used_bytes"), Ok(4000.0 * 1024.0 * 1024.0));
    // A reason that speaks of memory is none for use.
    scene.page(&page("no_process_memory"));
    assert!(!scene.reason().contains("no_process_memory"), "{}", scene.reason());
}

/// Two instances of one GPU are two devices, each with its own memory; what only the GPU has is
/// no pod's.
#[test]
fn mig_instances_are_devices_of_their_own() {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        let lines: Vec<String> = [
            ("p", 3, "3g.40gb", 0.8, 100, 300),
            ("p", 7, "1g.10gb", 0.4, 50, 50),
            ("q", 9, "1g.10gb", 0.1, 0, 100),
        ]
        .iter()
        .map(|(pod, gi, profile, busy, used, free)| {
            let device = format!("gpu=\"0\",UUID=\"GPU-0\",GPU_I_PROFILE=\"{profile}\",GPU_I_ID=\"{gi}\"");
            let owner = format!("{device},namespace=\"demo\",pod=\"{pod}\",container=\"c\"");
            format!(
                "podgauge_gpu_active_seconds_total{{{owner}}} {}\n\
                     podgauge_gpu_observed_seconds_total{{{owner}}} {}\n\
                     podgauge_gpu_owners{{{device}}} 1\n\
                     podgauge_gpu_allocation{{{owner},pod_uid=\"u1\"}} 1\n\
                     DCGM_FI_DEV_FB_USED{{{owner}}} {used}\n\
                     DCGM_FI_DEV_FB_FREE{{{owner}}} {free}\n\
                     DCGM_FI_DEV_POWER_USAGE{{{owner}}} 300\n",
                busy * scene.seconds,
                500.0 + scene.seconds,
            )
        })
        .collect();
        scene.page(&lines.concat());
    }
    let near = |metric, truth: f64| {
        let value = scene.ask(metric).unwrap();
        assert!((value - truth).abs() < 1e-9, "{metric}: {value}");
    };
    near("gpu_utilization", 60.0);
    near("gpu_memory_used_bytes", 150.0 * 1024.0 * 1024.0);
    near("gpu_memory_utilization", 30.0);
    let one = scene.ask_by("gpu_utilization", &[&scene.exporter], "GPU_I_ID=7").unwrap();
    assert!((one - 40.0).abs() < 1e-9, "{one}");
    let power = scene.ask("gpu_power_watts").unwrap_err().to_string();
    assert!(power.contains("MIG instance"), "{power}");
}
