//! The part of a device that a pod's use is divided by.

use serde_json::json;

use super::super::omission::Reason;
use super::super::{Omission, UnknownPart};
use super::{Scene, gauge};

const DEVICE: &str = "gpu=\"0\",UUID=\"GPU-0\"";

fn owner(container: &str) -> String {
    format!("{DEVICE},namespace=\"demo\",pod=\"p\",container=\"{container}\"")
}

/// A device of 40,000 MiB of which the pod uses 20 %, printed under a container.
fn used(container: &str, t: f64) -> String {
    let owner = owner(container);
    format!(
        "podgauge_gpu_active_seconds_total{{{owner}}} {}\npodgauge_gpu_observed_seconds_total{{{owner}}} {}\n\
         podgauge_gpu_owners{{{DEVICE}}} 2\n\
         DCGM_FI_DEV_FB_USED{{{owner}}} 8000\nDCGM_FI_DEV_FB_FREE{{{DEVICE}}} 32000\n",
        0.2 * t,
        500.0 + t
    )
}

fn size(container: &str, part: f64) -> String {
    format!("podgauge_gpu_allocation{{{},pod_uid=\"u1\"}} {part}\n", owner(container))
}

fn unknown(container: &str) -> String {
    format!("podgauge_gpu_part_unknown{{{},pod_uid=\"u1\"}} 1\n", owner(container))
}

fn pages(scene: &mut Scene, seconds: std::ops::Range<u32>, page: impl Fn(f64) -> String) {
    for second in seconds {
        scene.seconds = second.into();
        let page = page(scene.seconds);
        scene.page(&page);
    }
}

/// A scene that has seen 20 s of such pages.
fn scene(page: impl Fn(f64) -> String) -> Scene {
    let mut scene = Scene::new();
    pages(&mut scene, 0..20, page);
    scene
}

fn annotated(annotations: &serde_json::Value, page: impl Fn(f64) -> String) -> Scene {
    let mut scene = scene(page);
    scene.pod["metadata"]["annotations"] = annotations.clone();
    scene.pod["spec"]["containers"] = json!([{"name": "c"}, {"name": "side"}]);
    scene
}

#[track_caller]
fn near(value: Result<f64, Omission>, truth: f64) {
    let value = value.unwrap();
    assert!((value - truth).abs() < 1e-6, "{value}, {truth} is true");
}

const NOT_REPORTED: Result<f64, Omission> = Err(Omission::PartUnknown(UnknownPart::NotReported));

#[test]
fn an_unknown_part_is_not_the_whole_device() {
    let scene = scene(|t| used("c", t) + &unknown("c"));
    assert_eq!(scene.utilization(), NOT_REPORTED);
    assert_eq!(
        scene.reason(),
        "the part of its device that it was given is not known: its exporter does not know the size"
    );
    near(scene.ask("gpu_utilization_share"), 20.0);
    near(scene.ask("gpu_memory_utilization"), 20.0);
    near(scene.ask("gpu_memory_used_bytes"), 8000.0 * 1024.0 * 1024.0);
}

#[test]
fn a_part_that_was_known_of_the_same_pod_is_kept() {
    let mut scene = scene(|t| used("c", t) + &size("c", 0.25));
    near(scene.utilization(), 80.0);
    pages(&mut scene, 20..60, |t| used("c", t) + &unknown("c"));
    near(scene.utilization(), 80.0);
    // A new size is the size.
    pages(&mut scene, 60..70, |t| used("c", t) + &size("c", 0.5));
    near(scene.utilization(), 40.0);
    // Another pod of that name was given something else.
    scene.pod["metadata"]["uid"] = json!("u2");
    pages(&mut scene, 70..100, |t| used("c", t) + &unknown("c").replace("u1", "u2"));
    assert_eq!(scene.utilization(), NOT_REPORTED);
}

#[test]
fn an_allocation_that_leaves_the_page_keeps_its_size_for_the_same_pod() {
    let mut scene = scene(|t| used("c", t) + &size("c", 0.25));
    pages(&mut scene, 20..45, |t| used("c", t));
    near(scene.utilization(), 80.0);
}

/// Another pod of that name may bypass the device plugin.
#[test]
fn a_part_of_another_pod_is_not_kept() {
    let mut scene = scene(|t| used("c", t) + &size("c", 0.25));
    scene.pod["metadata"]["uid"] = json!("u2");
    scene.pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] =
        json!("2026-11-21T16:00:20Z");
    pages(&mut scene, 20..60, |t| used("c", t));
    near(scene.utilization(), 20.0);
}

#[test]
fn one_unknown_part_makes_the_sum_unknown() {
    let scene = scene(|t| used("", t) + &size("x", 0.25) + &unknown("y"));
    assert_eq!(scene.utilization(), NOT_REPORTED);
}

#[test]
fn without_an_allocation_use_is_of_the_whole_device() {
    near(scene(|t| used("c", t)).utilization(), 20.0);
    // A process of a container that was given nothing adds nothing to what the other was given.
    near(scene(|t| used("c", t) + &size("other", 0.5)).utilization(), 40.0);
}

#[test]
fn the_parts_of_one_pod_are_at_most_the_device() {
    near(scene(|t| used("", t) + &size("x", 1.0) + &size("y", 1.0)).utilization(), 20.0);
    near(scene(|t| used("", t) + &size("x", 0.75) + &size("y", 0.5)).utilization(), 20.0);
}

#[test]
fn an_annotation_gives_the_part_where_the_exporter_does_not() {
    let fraction = json!({"gpu-fraction": "0.5"});
    near(annotated(&fraction, |t| used("c", t)).utilization(), 40.0);
    near(annotated(&fraction, |t| used("", t)).utilization(), 40.0);
    near(annotated(&fraction, |t| used("c", t) + &unknown("c")).utilization(), 40.0);
    near(annotated(&fraction, |t| used("c", t) + &size("c", 0.25)).utilization(), 80.0);
    near(annotated(&fraction, |t| used("c", t)).ask("gpu_utilization_share"), 20.0);
    // It is the first container's, or that of the one that is named.
    near(annotated(&fraction, |t| used("side", t)).utilization(), 20.0);
    let named = json!({"gpu-fraction": "0.5", "gpu-fraction-container-name": "side"});
    near(annotated(&named, |t| used("side", t)).utilization(), 40.0);
    near(annotated(&named, |t| used("c", t)).utilization(), 20.0);
    // 10,000 of 40,000 MiB.
    near(annotated(&json!({"gpu-memory": "10000"}), |t| used("c", t)).utilization(), 80.0);
    // Malformed: there is a part, and its size is not known.
    for (name, text) in [("gpu-fraction", "half"), ("gpu-fraction-container-name", "nobody")] {
        assert_eq!(
            annotated(&json!({name: text}), |t| used("c", t)).utilization(),
            Err(Omission::PartUnknown(UnknownPart::Unreadable(name)))
        );
    }
    near(
        annotated(&json!({"gpu-fraction": "half"}), |t| used("c", t) + &size("c", 0.25)).utilization(),
        80.0,
    );
    // Both are there: the first of them counts.
    let both = json!({"gpu-fraction": "0.5", "gpu-memory": "10000"});
    near(annotated(&both, |t| used("c", t)).utilization(), 40.0);
    assert_eq!(
        annotated(&json!({"gpu-fraction": "half"}), |t| used("c", t) + &unknown("c")).utilization(),
        NOT_REPORTED
    );
}

#[test]
fn memory_is_a_part_of_known_memory_alone() {
    let without_memory = |t: f64| {
        let page = used("c", t);
        page.lines()
            .filter(|line| !line.starts_with("DCGM"))
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    let scene = annotated(&json!({"gpu-memory": "10000"}), without_memory);
    assert_eq!(scene.utilization(), Err(Omission::PartUnknown(UnknownPart::DeviceMemory("gpu-memory"))));
    near(scene.ask("gpu_utilization_share"), 20.0);
}

#[test]
fn a_card_of_an_annotation_has_its_part() {
    let hami = |cards: &str| annotated(&json!({"hami.io/vgpu-devices-allocated": cards}), |t| used("c", t));
    near(hami("GPU-0,NVIDIA,10000,50:;").utilization(), 40.0);
    near(hami("GPU-0,NVIDIA,10000,0:;").utilization(), 80.0);
    // Two containers of the pod on the card.
    near(hami("GPU-0,NVIDIA,10000,30:;GPU-0,NVIDIA,10000,20:;").utilization(), 40.0);
    near(hami("GPU-0,NVIDIA,90000,0:;").utilization(), 20.0);
    let volcano = |cards: &str| annotated(&json!({"volcano.sh/vgpu-ids-new": cards}), |t| used("c", t));
    near(volcano("GPU-0,NVIDIA,1000,25:").utilization(), 80.0);
    assert_eq!(
        volcano("GPU-0,NVIDIA,1000,0:").utilization(),
        Err(Omission::PartUnknown(UnknownPart::MemoryUnit("volcano.sh/vgpu-ids-new")))
    );
}

/// The lines of GPU 1, which another pod uses; `lines` are added.
fn elsewhere(t: f64, lines: &str) -> String {
    let device = "gpu=\"1\",UUID=\"GPU-1\"";
    let owner = format!("{device},namespace=\"demo\",pod=\"q\",container=\"c\"");
    format!(
        "podgauge_gpu_active_seconds_total{{{owner}}} {}\npodgauge_gpu_observed_seconds_total{{{owner}}} {}\n\
         podgauge_gpu_device_active_seconds_total{{{device}}} {}\n\
         DCGM_FI_DEV_FB_USED{{{owner}}} 8000\nDCGM_FI_DEV_FB_FREE{{{device}}} 32000\n{lines}",
        0.7 * t,
        900.0 + t,
        0.7 * t,
    )
}

const OWNERS: &str = "podgauge_gpu_owners{gpu=\"1\",UUID=\"GPU-1\"} 1\n";

fn on_gpu_1() -> serde_json::Value {
    json!({"hami.io/vgpu-devices-allocated": "GPU-1,NVIDIA,10000,50:;"})
}

#[test]
fn a_card_without_a_process_of_the_pod_was_not_used() {
    let scene = annotated(&on_gpu_1(), |t| elsewhere(t, OWNERS));
    assert_eq!(scene.utilization(), Ok(0.0));
    assert_eq!(scene.ask("gpu_utilization_share"), Ok(0.0));
    assert_eq!(scene.ask("gpu_memory_used_bytes"), Ok(0.0));
    near(scene.ask("gpu_device_utilization"), 70.0);
    assert_eq!(scene.ask("gpu_power_watts").unwrap_err().reason(), Reason::NoSuchFamily);
    // Two cards: it works on one of them.
    let both = json!({"hami.io/vgpu-devices-allocated": "GPU-0,NVIDIA,10000,50:GPU-1,NVIDIA,10000,50:;"});
    near(annotated(&both, |t| used("c", t) + &elsewhere(t, OWNERS)).utilization(), 20.0);
}

#[test]
fn a_zero_that_is_not_proven_is_left_out() {
    let reason = |lines: &str| {
        let scene = annotated(&on_gpu_1(), |t| elsewhere(t, lines));
        let omission = scene.utilization().unwrap_err();
        (omission.reason(), omission.to_string())
    };
    let (counted, text) = reason("");
    assert_eq!(counted, Reason::NamedGpu);
    assert_eq!(
        text,
        "its annotation hami.io/vgpu-devices-allocated names GPU-1, of which its exporter does not know the owners"
    );
    // An exporter that does not see processes counts no owner of a GPU that works.
    assert_eq!(reason("podgauge_gpu_owners{gpu=\"1\",UUID=\"GPU-1\"} 0\n").0, Reason::NamedGpu);
    let unavailable = "podgauge_attribution_unavailable{gpu=\"1\",UUID=\"GPU-1\",reason=\"mps_server\"} 1\n";
    assert_eq!(reason(&(OWNERS.to_owned() + unavailable)).0, Reason::AttributionUnavailable);
    // That memory is not divided says nothing of use.
    let no_memory =
        "podgauge_attribution_unavailable{gpu=\"1\",UUID=\"GPU-1\",reason=\"no_process_memory\"} 1\n";
    let scene = annotated(&on_gpu_1(), |t| elsewhere(t, &(OWNERS.to_owned() + no_memory)));
    assert_eq!(scene.utilization(), Ok(0.0));
    assert_eq!(scene.ask("gpu_memory_used_bytes").unwrap_err().reason(), Reason::AttributionUnavailable);
    // A card of another node.
    let scene = annotated(&on_gpu_1(), |t| used("c", t).replace("\"p\"", "\"q\""));
    let omission = scene.utilization().unwrap_err();
    assert!(omission.to_string().ends_with("which its exporter does not report"), "{omission}");
    // NVIDIA's exporter does not say who uses a device.
    let scene = annotated(&on_gpu_1(), |_| gauge("GPU-1", "q", 50.0));
    assert_eq!(scene.utilization().unwrap_err().reason(), Reason::NamedGpu);
    // Which instance of a GPU it is given is not known.
    let mig = json!({"hami.io/vgpu-devices-allocated": "GPU-1[1-0],NVIDIA,10000,0:;"});
    assert_eq!(
        annotated(&mig, |t| elsewhere(t, OWNERS)).utilization().unwrap_err().reason(),
        Reason::NamedGpu
    );
}

/// Nobody uses a GPU that does nothing, whatever the exporter sees of processes.
#[test]
fn a_card_without_an_owner_is_unused_if_it_is_idle() {
    let idle = |t: f64| {
        format!(
            "podgauge_gpu_owners{{gpu=\"1\",UUID=\"GPU-1\"}} 0\n\
             podgauge_gpu_device_active_seconds_total{{gpu=\"1\",UUID=\"GPU-1\"}} 7\n\
             podgauge_gpu_observed_seconds_total{{gpu=\"1\",UUID=\"GPU-1\"}} {}\n\
             DCGM_FI_DEV_FB_USED{{gpu=\"1\",UUID=\"GPU-1\"}} 9000\n",
            900.0 + t
        )
    };
    let scene = annotated(&on_gpu_1(), idle);
    assert_eq!(scene.utilization(), Ok(0.0));
    assert_eq!(scene.ask("gpu_memory_used_bytes").unwrap_err().reason(), Reason::NamedGpu);
}

#[test]
fn an_idle_pod_needs_15_seconds_too_and_a_fresh_page() {
    let mut scene = annotated(&on_gpu_1(), |t| elsewhere(t, OWNERS));
    scene.pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] =
        json!("2026-11-21T16:00:05Z");
    assert_eq!(scene.utilization(), Err(Omission::Collecting { observed: 14 }));
    pages(&mut scene, 20..21, |t| elsewhere(t, OWNERS));
    assert_eq!(scene.utilization(), Ok(0.0));
    // The device's use is not read any more.
    pages(&mut scene, 21..75, |_| elsewhere(20.0, OWNERS));
    assert_eq!(scene.utilization(), Err(Omission::DeviceStale { seconds: 54 }));
    scene.seconds = 120.0;
    assert_eq!(scene.utilization().unwrap_err().reason(), Reason::ExporterSilent);
}

/// A part of unknown size is left out whether the pod works or not: else an HPA would see the idle
/// pods alone.
#[test]
fn an_idle_pod_with_an_unknown_part_is_left_out_too() {
    let volcano = json!({"volcano.sh/vgpu-ids-new": "GPU-1,NVIDIA,1000,0:"});
    let scene = annotated(&volcano, |t| elsewhere(t, OWNERS));
    assert_eq!(scene.utilization().unwrap_err().reason(), Reason::PartUnknown);
    assert_eq!(scene.ask("gpu_utilization_share"), Ok(0.0));
}

#[test]
fn a_fraction_without_a_process_names_no_gpu() {
    let scene = annotated(&json!({"gpu-fraction": "0.5"}), |t| elsewhere(t, OWNERS));
    assert_eq!(
        scene.reason(),
        "exporter on node gpu-7 knows of no GPU that it uses, and its annotation gpu-fraction names none: \
         it has a value once a process of it uses a GPU"
    );
}

/// How many replicas there are is not on NVIDIA's pages.
#[test]
fn a_replica_of_another_exporter_has_an_unknown_part() {
    let page = |_| {
        let owner = owner("c");
        format!("DCGM_FI_DEV_GPU_UTIL{{{owner},vgpu=\"1\"}} 20\n")
    };
    let mut scene = Scene::new();
    pages(&mut scene, 0..20, page);
    assert_eq!(scene.utilization(), NOT_REPORTED);
    near(scene.ask("gpu_utilization_share"), 20.0);
}
