//! What a node's number is.

use super::super::Omission;
use super::{Scene, gauge};

/// A device's lines of ours: free, or held by pod `p`.
fn device(gpu: &str, held: bool, active: f64, observed: f64) -> String {
    let device = format!("UUID=\"{gpu}\",hostname=\"gpu-7\"");
    let owner =
        if held { format!("{device},namespace=\"demo\",pod=\"p\",container=\"c\"") } else { device.clone() };
    let allocation =
        if held { format!("podgauge_gpu_allocation{{{owner},pod_uid=\"u1\"}} 1\n") } else { String::new() };
    format!(
        "podgauge_gpu_device_active_seconds_total{{{device}}} {active}\n\
         podgauge_gpu_active_seconds_total{{{owner}}} {active}\n\
         podgauge_gpu_observed_seconds_total{{{owner}}} {observed}\n\
         podgauge_gpu_owners{{{device}}} {}\n\
         DCGM_FI_DEV_POWER_USAGE{{{owner}}} 100\nDCGM_FI_DEV_FB_USED{{{owner}}} 1000\n\
         DCGM_FI_DEV_FB_FREE{{{device}}} 3000\n{allocation}",
        u8::from(held),
    )
}

/// Two devices: one held at 80 %, one free at 20 %.
fn two() -> Scene {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        let t = scene.seconds;
        scene.page(&(device("a", true, 0.8 * t, 500.0 + t) + &device("b", false, 0.2 * t, 500.0 + t)));
    }
    scene
}

#[test]
fn a_node_is_the_mean_of_its_devices_whoever_uses_them() {
    let scene = two();
    let near = |value: Result<f64, Omission>, expected: f64| {
        let value = value.unwrap();
        assert!((value - expected).abs() < 1e-6, "{value}, not {expected}");
    };
    for metric in ["gpu_utilization", "gpu_utilization_share", "gpu_device_utilization"] {
        near(scene.node(metric), 50.0);
    }
    near(scene.node("gpu_power_watts"), 100.0);
    near(scene.node("gpu_memory_used_bytes"), 1000.0 * 1024.0 * 1024.0);
    near(scene.node("gpu_memory_utilization"), 25.0);
    near(scene.node_by("gpu_utilization", "gpu-7", "UUID=b", false), 20.0);
    let none = scene.node_by("gpu_utilization", "gpu-7", "UUID=c", false).unwrap_err().to_string();
    assert_eq!(none, "none of its devices matches the metricLabelSelector: there is UUID=a|b");
    // An exporter that is believed for every node speaks of the one that its devices name.
    near(scene.node_by("gpu_utilization", "gpu-7", "", true), 50.0);
    let other = scene.node_by("gpu_utilization", "gpu-8", "", true).unwrap_err();
    assert!(other.to_string().ends_with("knows of no GPU on it"), "{other}");
}

#[test]
fn a_device_with_several_pods_counts_once() {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        let t = scene.seconds;
        let pod = |pod: &str| {
            let owner = format!("UUID=\"a\",namespace=\"demo\",pod=\"{pod}\",container=\"c\"");
            format!(
                "podgauge_gpu_active_seconds_total{{{owner}}} {}\npodgauge_gpu_observed_seconds_total{{{owner}}} {}\n\
                 podgauge_gpu_allocation{{{owner}}} 0.5\nDCGM_FI_DEV_FB_USED{{{owner}}} 300\n",
                0.3 * t,
                500.0 + t
            )
        };
        scene.page(&format!(
            "{}{}podgauge_gpu_owners{{UUID=\"a\"}} 2\npodgauge_gpu_utilization{{UUID=\"a\"}} 60\nDCGM_FI_DEV_POWER_USAGE{{UUID=\"a\"}} 250\n",
            pod("p"),
            pod("q")
        ));
    }
    assert!((scene.node("gpu_utilization").unwrap() - 60.0).abs() < 1e-9);
    assert!((scene.node("gpu_power_watts").unwrap() - 250.0).abs() < 1e-9);
    assert!((scene.node("gpu_memory_used_bytes").unwrap() - 600.0 * 1024.0 * 1024.0).abs() < 1.0);
}

#[test]
fn nvidias_exporter_speaks_of_nodes_too() {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        let free = "DCGM_FI_DEV_GPU_UTIL{UUID=\"free\"} 10\n";
        scene.page(&(gauge("a", "p", 50.0) + &gauge("a", "q", 50.0) + &gauge("b", "p", 90.0) + free));
    }
    assert!((scene.node("gpu_utilization").unwrap() - 50.0).abs() < 1e-9);
}

#[test]
fn a_node_one_of_whose_devices_is_unknown_is_unknown() {
    let mut scene = two();
    for scrape in 5..20 {
        scene.seconds = 5.0 * f64::from(scrape);
        let t = scene.seconds;
        // GPU b is lost: only that it is not up is told of it.
        scene.page(&(device("a", true, 0.8 * t, 500.0 + t) + "podgauge_gpu_owners{UUID=\"b\"} 0\n"));
        if scrape == 6 {
            assert!((scene.node("gpu_utilization").unwrap() - 50.0).abs() < 1e-6, "its last value stands");
        }
    }
    let reason = scene.node("gpu_utilization").unwrap_err().to_string();
    assert!(reason.starts_with("1 of 2 devices has no value: "), "{reason}");
    scene.seconds += 95.0;
    scene.exporter.failed("connection refused".to_owned());
    assert_eq!(
        scene.node("gpu_utilization").unwrap_err().to_string(),
        "exporter on node gpu-7 last answered more than 1m ago"
    );
}

/// What a pod that comes or goes takes with it are series, not the device's load.
#[test]
fn pods_come_and_go_and_the_node_keeps_its_value() {
    let mut scene = Scene::new();
    let (mut own, mut began) = (500.0, 0.0);
    for scrape in 0..60 {
        scene.seconds = 5.0 * f64::from(scrape);
        // The pod comes at 50 s, leaves at 100 s, and so on; the accounts of each begin at 0.
        let held = (scrape / 10) % 2 == 1;
        if scrape > 0 && scrape % 10 == 0 {
            (own, began) = (0.0, scene.seconds);
        }
        let observed = own + scene.seconds - began;
        scene.page(&device("a", held, 0.6 * scene.seconds, observed));
        if scrape > 0 {
            let value = scene.node("gpu_utilization");
            assert!(
                value.as_ref().is_ok_and(|value| (value - 60.0).abs() < 1e-6),
                "{} s: {value:?}",
                scene.seconds
            );
        }
    }
}

#[test]
fn a_gpu_with_instances_is_its_instances_and_their_power_counts_once() {
    let mut scene = Scene::new();
    for scrape in 0..5 {
        scene.seconds = 5.0 * f64::from(scrape);
        let t = scene.seconds;
        let instance = |gi: u8, busy: f64| {
            let device = format!("UUID=\"a\",GPU_I_ID=\"{gi}\"");
            format!(
                "podgauge_gpu_device_active_seconds_total{{{device}}} {}\npodgauge_gpu_observed_seconds_total{{{device}}} {}\n\
                 podgauge_gpu_owners{{{device}}} 0\nDCGM_FI_DEV_POWER_USAGE{{{device}}} 300\n",
                busy * t,
                500.0 + t
            )
        };
        let whole = device("b", false, 0.1 * t, 500.0 + t);
        scene.page(&(instance(1, 0.8) + &instance(2, 0.3) + "podgauge_gpu_owners{UUID=\"a\"} 0\n" + &whole));
    }
    assert!((scene.node("gpu_utilization").unwrap() - 40.0).abs() < 1e-6);
    assert!((scene.node("gpu_power_watts").unwrap() - 200.0).abs() < 1e-6);
}
