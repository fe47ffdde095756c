//! An exporter's own sums of the last seconds: their use, and when they are not believed.

use jiff::SignedDuration;
use serde_json::json;

use super::super::{NodeExporter, NodeQuestion, Omission, Value, node_value};
use super::{RULES, Scene, native, sums};
use crate::cluster::Selector;
use crate::metric::{MetricFlag, Metrics};

/// A page of a pod on GPU 0 that used `busy` of it for `observed` seconds, 60 s of them summed up.
fn page(uid: &str, busy: f64, observed: f64) -> String {
    let recent = observed.min(60.0);
    native(uid, &[(0, busy * observed, observed)]) + &sums(0, busy * recent, recent)
}

fn value(scene: &Scene, metric: &str) -> Result<Value, Omission> {
    scene.value_by(metric, &[&scene.exporter], "")
}

#[track_caller]
fn near(value: Result<Value, Omission>, percent: f64, covered: f64) {
    let value = value.unwrap();
    let close = (value.value - percent).abs() < 1e-6 && (value.covered - covered).abs() < 1e-6;
    assert!(close, "{value:?}, not {percent} of {covered} s");
}

/// The pod began so many seconds before now.
fn began(scene: &mut Scene, ago: f64) {
    let started = scene.began_wall + SignedDuration::from_secs_f64(scene.seconds - ago);
    scene.pod["status"]["startTime"] = json!(started.to_string());
}

#[test]
fn the_first_page_answers_for_the_whole_window() {
    let mut scene = Scene::new();
    scene.page(&page("u1", 0.4, 500.0));
    for metric in ["gpu_utilization", "gpu_utilization_share", "gpu_device_utilization"] {
        near(value(&scene, metric), 40.0, 60.0);
    }
    assert!((scene.node("gpu_utilization").unwrap() - 40.0).abs() < 1e-6);
    // Sums that cannot be true, or of another window, are as good as none.
    for (active, observed, window) in [(61.0, 60.0, "60s"), (30.0, 90.0, "60s"), (24.0, 60.0, "61s")] {
        let mut scene = Scene::new();
        let sums = sums(0, active, observed).replace("60s", window);
        scene.page(&(native("u1", &[(0, 200.0, 500.0)]) + &sums));
        assert_eq!(scene.utilization(), Err(Omission::TooFewScrapes), "{active} {observed} {window}");
    }
}

#[test]
fn a_metric_with_another_window_is_made_of_readings() {
    let mut scene = Scene::new();
    scene.metrics = Metrics::new(&[MetricFlag::parse("gpu_utilization_share,window=30s").unwrap()]);
    for scrape in 0..8 {
        scene.seconds = 5.0 * f64::from(scrape);
        let busy = 0.8 * (scene.seconds - 20.0).max(0.0);
        scene.page(&(native("u1", &[(0, busy, 500.0 + scene.seconds)]) + &sums(0, 30.0, 60.0)));
        assert_eq!(value(&scene, "gpu_utilization_share").is_ok(), scene.seconds >= 15.0);
        near(value(&scene, "gpu_utilization"), 50.0, 60.0);
    }
    near(value(&scene, "gpu_utilization_share"), 0.8 * 15.0 / 30.0 * 100.0, 30.0);
}

#[test]
fn a_pod_needs_15_seconds_of_its_own_all_the_same() {
    let mut scene = Scene::new();
    scene.seconds = 12.0;
    began(&mut scene, 12.0);
    scene.page(&page("u1", 0.4, 12.0));
    assert_eq!(scene.utilization(), Err(Omission::Collecting { observed: 12 }));
    scene.seconds = 16.0;
    began(&mut scene, 16.0);
    scene.page(&page("u1", 0.4, 16.0));
    near(value(&scene, "gpu_utilization"), 40.0, 16.0);
}

#[test]
fn a_restarted_exporter_costs_nothing() {
    let mut scene = Scene::new();
    for scrape in 0..50 {
        scene.seconds = 2.0 * f64::from(scrape);
        let active = 300.0 + 0.4 * scene.seconds;
        scene.page(&(native("u1", &[(0, active, 500.0 + scene.seconds)]) + &sums(0, 24.0, 60.0)));
    }
    near(value(&scene, "gpu_utilization"), 40.0, 60.0);
    // It begins again with a load of 100 %, and knows no more than that.
    let end = scene.seconds;
    for after in 1..40 {
        let seconds = 2.0 * f64::from(after);
        scene.seconds = end + seconds;
        scene.page(&page("u1", 1.0, seconds));
        let busy = 0.4 * (60.0 - seconds).max(0.0) + seconds.min(60.0);
        let found = value(&scene, "gpu_utilization").unwrap();
        let percent = 100.0 * busy / 60.0;
        // Unknown are the 2 s between the last page before and the first one after.
        assert!((found.value - percent).abs() < 3.1, "after {seconds} s: {found:?}, not {percent}");
        assert!(found.covered >= 57.9, "after {seconds} s: {found:?}");
    }
}

#[test]
fn while_nothing_new_arrives_the_sums_stay_until_they_are_stale() {
    let mut scene = Scene::new();
    scene.page(&page("u1", 0.4, 500.0));
    // The sampler stops: the window moves on, and its content shrinks.
    for scrape in 1..7 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.page(&(native("u1", &[(0, 200.0, 500.0)]) + &sums(0, 1.0, 60.0 - scene.seconds)));
        near(value(&scene, "gpu_utilization"), 40.0, 60.0);
        near(value(&scene, "gpu_device_utilization"), 40.0, 60.0);
    }
    scene.seconds = 35.0;
    assert!(matches!(
        scene.utilization(),
        Err(Omission::ExporterSilent { .. } | Omission::DeviceStale { .. })
    ));
    assert!(scene.node("gpu_utilization").is_err());
}

#[test]
fn a_page_without_sums_ends_those_of_before() {
    let mut scene = Scene::new();
    scene.page(&page("u1", 0.4, 500.0));
    for scrape in 1..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.native("u1", &[(0, 200.0 + scene.seconds, 500.0 + scene.seconds)]);
    }
    near(value(&scene, "gpu_utilization"), 100.0, 20.0);
}

/// The exporter sums up by namespace, pod and container: of a pod made again under its name the sums
/// hold the seconds of the one before.
#[test]
fn another_pod_of_that_name_has_no_part_in_the_sums() {
    // An adapter that saw the one before.
    let mut scene = Scene::new();
    scene.page(&page("u0", 1.0, 500.0));
    scene.pod["metadata"]["uid"] = json!("u1");
    for scrape in 1..14 {
        scene.seconds = 5.0 * f64::from(scrape);
        let busy = (60.0 - scene.seconds).max(0.0);
        scene.page(&(native("u1", &[(0, 500.0, 500.0 + scene.seconds)]) + &sums(0, busy, 60.0)));
        if let Ok(value) = scene.utilization() {
            assert_eq!(value, 0.0, "{} s", scene.seconds);
        }
    }
    assert_eq!(scene.utilization(), Ok(0.0));
    // One that did not: the exporter begins its sums again with the UID, and tells which that is.
    let mut scene = Scene::new();
    scene.seconds = 20.0;
    began(&mut scene, 20.0);
    let page = native("u1", &[(0, 500.0, 520.0)]) + &sums(0, 10.0, 20.0);
    scene.page(&page);
    near(value(&scene, "gpu_utilization"), 50.0, 20.0);
    // Sums without a UID stay so, when it becomes known later.
    let mut scene = Scene::new();
    scene.seconds = 20.0;
    began(&mut scene, 20.0);
    scene.page(&page.replace(",pod_uid=\"u1\"", ""));
    scene.page(&page);
    assert!(scene.utilization().is_err());
}

/// The counter goes on when a pod takes another's name; an adapter that began since has not seen that.
#[test]
fn a_pod_that_took_anothers_name_needs_15_seconds_of_its_own() {
    let mut scene = Scene::new();
    for scrape in 0..10 {
        scene.seconds = 2.0 * f64::from(scrape);
        let own = 1.0 + scene.seconds;
        scene.page(&(native("u1", &[(0, 500.0, 500.0 + own)]) + &sums(0, 0.0, own)));
        for metric in ["gpu_utilization", "gpu_utilization_share", "gpu_device_utilization"] {
            let value = scene.ask(metric);
            match own < 15.0 {
                true => assert!(matches!(value, Err(Omission::Collecting { .. })), "{own} s: {value:?}"),
                false => assert_eq!(value, Ok(0.0), "{own} s of {metric}"),
            }
        }
    }
    // Sums of one second beside readings of none: the adapter reads first, whatever the counter says.
    let mut scene = Scene::new();
    scene.page(&(native("u1", &[(0, 500.0, 501.0)]) + &sums(0, 0.0, 1.0)).replace(",pod_uid=\"u1\"", ""));
    scene.seconds = 2.0;
    scene.page(&(native("u1", &[(0, 500.0, 503.0)]) + &sums(0, 0.0, 2.0)));
    assert!(scene.utilization().is_err());
}

#[test]
fn without_a_uid_the_whole_window_must_be_the_pods() {
    let mut scene = Scene::new();
    scene.seconds = 100.0;
    let container = |scene: &mut Scene, ago: f64| {
        let started = scene.began_wall + SignedDuration::from_secs_f64(scene.seconds - ago);
        scene.pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] =
            json!(started.to_string());
    };
    let page = page("u1", 0.4, 500.0).replace(",pod_uid=\"u1\"", "");
    scene.page(&page);
    container(&mut scene, 84.0);
    assert!(scene.utilization().is_err());
    container(&mut scene, 85.0);
    near(value(&scene, "gpu_utilization"), 40.0, 60.0);
}

#[test]
fn a_shared_device_has_sums_of_its_own() {
    let mut scene = Scene::new();
    let device = "gpu=\"0\",UUID=\"GPU-0\",modelName=\"H100\"";
    let of = |pod: &str, busy: f64| -> String {
        let page = page("u1", busy, 500.0).replace("pod=\"p\"", &format!("pod=\"{pod}\""));
        let page = page.replace("pod_uid=\"u1\"} 1", "pod_uid=\"u1\"} 0.5");
        let of_owner = |line: &&str| !line.contains("_device_") && !line.contains("owners");
        page.lines().filter(of_owner).map(|line| format!("{line}\n")).collect()
    };
    scene.page(&format!(
        "{}{}podgauge_gpu_owners{{{device}}} 2\npodgauge_gpu_utilization{{{device}}} 70\n\
         podgauge_gpu_recent_device_active_seconds{{window=\"60s\",{device}}} 36\n\
         podgauge_gpu_recent_device_observed_seconds{{window=\"60s\",{device}}} 60\n",
        of("p", 0.2),
        of("q", 0.4),
    ));
    near(value(&scene, "gpu_utilization"), 40.0, 60.0);
    near(value(&scene, "gpu_utilization_share"), 20.0, 60.0);
    near(value(&scene, "gpu_device_utilization"), 60.0, 60.0);
    assert!((scene.node("gpu_utilization").unwrap() - 60.0).abs() < 1e-6);
}

#[test]
fn what_podgauge_leaves_out_is_not_taken_from_another_page() {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.page(
            "podgauge_gpu_allocation{UUID=\"GPU-0\",namespace=\"demo\",pod=\"p\",container=\"c\",pod_uid=\"u1\"} 0.5\n\
             podgauge_gpu_allocation{UUID=\"GPU-0\",namespace=\"demo\",pod=\"q\",container=\"c\",pod_uid=\"u9\"} 0.5\n\
             podgauge_attribution_unavailable{UUID=\"GPU-0\",reason=\"mps_server\"} 1\n",
        );
    }
    let ours = std::mem::replace(&mut scene.exporter, Scene::new().exporter);
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        scene.page(&super::gauge("GPU-0", "p", 85.0));
    }
    let theirs = std::mem::take(&mut scene.exporter);
    for order in [[&ours, &theirs], [&theirs, &ours]] {
        let refused = scene.ask_by("gpu_utilization", &order, "").unwrap_err();
        assert!(matches!(refused, Omission::AttributionUnavailable { .. }), "{refused:?}");
    }
    // Where ours does not know the pod the other one is asked.
    let none = Scene::new().exporter;
    assert!((scene.ask_by("gpu_utilization", &[&none, &theirs], "").unwrap() - 85.0).abs() < 1e-6);
}

#[test]
fn what_a_page_repeats_for_each_pod_of_a_device_is_no_pods() {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        let copy = |pod: &str, replica: u8| {
            let owner = format!("UUID=\"GPU-0\",namespace=\"demo\",pod=\"{pod}\",container=\"c\"");
            format!(
                "DCGM_FI_DEV_POWER_USAGE{{{owner},vgpu=\"{replica}\"}} 300\n\
                 podgauge_gpu_allocation{{{owner},pod_uid=\"u1\"}} 0.5\n"
            )
        };
        scene.page(&(copy("p", 0) + &copy("q", 1)));
    }
    assert_eq!(scene.ask("gpu_power_watts"), Err(Omission::Shared { pods: 2 }));
    // The node's is there once.
    assert!((scene.node("gpu_power_watts").unwrap() - 300.0).abs() < 1e-9);
}

/// Both exporters run while a rollout replaces one by the other. The load is 1 for 10 s of 20 s.
#[test]
fn an_exporter_that_has_just_begun_does_not_replace_one_that_knows_the_window() {
    let mut scene = Scene::new();
    scene.page(&page("u1", 0.5, 60.0));
    let mut before = std::mem::replace(&mut scene.exporter, Scene::new().exporter);
    // The new one answers last, and has seen 2 s.
    scene.seconds = 1.0;
    scene.page(&(native("u1", &[(0, 2.0, 2.0)]) + &sums(0, 2.0, 2.0)));
    for metric in ["gpu_utilization", "gpu_device_utilization"] {
        for order in [[&before, &scene.exporter], [&scene.exporter, &before]] {
            near(scene.value_by(metric, &order, ""), 50.0, 60.0);
        }
    }
    let nodes = [&before, &scene.exporter].map(|state| NodeExporter { state, of_any_node: false });
    let metric = scene.metrics.get("gpu_utilization").unwrap();
    let question = NodeQuestion { node: "gpu-7", metric, devices: &Selector::default() };
    near(node_value(&question, &nodes, &RULES, &scene.now()), 50.0, 60.0);
    // The old one is gone: what the new one knows by then counts.
    before.failed("connection refused".to_owned());
    scene.seconds = 40.0;
    scene.page(&(native("u1", &[(0, 10.0, 41.0)]) + &sums(0, 10.0, 41.0)));
    near(scene.value_by("gpu_utilization", &[&before, &scene.exporter], ""), 10.0 / 41.0 * 100.0, 41.0);
}

/// NVIDIA's exporter has the use of the whole GPU for one of the pods that share it.
#[test]
fn a_part_of_a_gpu_is_not_taken_from_another_page_while_podgauge_is_silent() {
    for (part, owners, its_own) in [(0.5, 1, false), (1.0, 2, false), (1.0, 1, true)] {
        let mut scene = Scene::new();
        for scrape in 0..5 {
            scene.seconds = 5.0 * f64::from(scrape);
            let page = native("u1", &[(0, 0.05 * scene.seconds, 500.0 + scene.seconds)]);
            let page = page.replace("pod_uid=\"u1\"} 1", &format!("pod_uid=\"u1\"}} {part}"));
            scene.page(&page.replace("H100\"} 1\n", &format!("H100\"}} {owners}\n")));
        }
        let ours = std::mem::replace(&mut scene.exporter, Scene::new().exporter);
        for scrape in 0..5 {
            scene.seconds = 60.0 + 5.0 * f64::from(scrape);
            scene.page(&super::gauge("GPU-0", "p", 85.0));
        }
        match scene.ask_by("gpu_utilization", &[&ours, &scene.exporter], "") {
            Ok(value) => {
                assert!(its_own && (value - 85.0).abs() < 1e-6, "{value} of {part}, {owners} owners");
            }
            Err(refused) => {
                assert!(!its_own && matches!(refused, Omission::ExporterSilent { .. }), "{refused}");
            }
        }
    }
}

/// The other container's last seconds are between the last page that has it and the next one.
#[test]
fn a_container_that_ended_as_the_window_begins_has_a_part_in_it() {
    let mut scene = Scene::new();
    // Both until second 31, each half of the load; then the first does all of it.
    let counters = |second: f64| {
        let both = second.min(31.0);
        0.25 * both + 0.5 * (second - both)
    };
    let line = |container: &str, active: f64, recent: f64, observed: f64| {
        let (page, sums) = (native("u1", &[(0, active, observed)]), sums(0, recent, observed.min(60.0)));
        (page + &sums).replace("container=\"c\"", &format!("container=\"{container}\""))
    };
    for second in (0..=90).step_by(5).map(f64::from).filter(|second| *second > 0.0) {
        scene.seconds = second;
        let recent = counters(second) - counters((second - 60.0).max(0.0));
        let mut page = line("c", counters(second), recent, second);
        if second <= 31.0 {
            page += &line("d", counters(second), recent, second);
        }
        scene.page(&page);
    }
    // Between the two pages lies a gap.
    near(value(&scene, "gpu_utilization_share"), 50.0, 55.0);
}
