//! A pod has one value per device, whatever container labels its series have.

use super::super::Omission;
use super::{ROOM, Scene, span};
use crate::metric::{MetricFlag, Metrics};
use crate::source::page::{self, Room};

/// Seconds after which a pod has a value: two scrapes, 15 s apart.
const SETTLED: u32 = 15;
const DEVICE: &str = "gpu=\"0\",UUID=\"GPU-0\"";

fn owner(container: &str) -> String {
    format!("{DEVICE},namespace=\"demo\",pod=\"p\",container=\"{container}\"")
}

/// Active and observed seconds under a container label.
fn used(container: &str, active: f64, observed: f64) -> String {
    let owner = owner(container);
    format!(
        "podgauge_gpu_active_seconds_total{{{owner}}} {active}\n\
         podgauge_gpu_observed_seconds_total{{{owner}}} {observed}\n"
    )
}

fn allocated(container: &str, part: f64) -> String {
    format!("podgauge_gpu_allocation{{{},pod_uid=\"u1\"}} {part}\n", owner(container))
}

/// A page each second, of which `page` knows the time since the scene began; each answer is `truth`.
fn play(scene: &mut Scene, seconds: std::ops::Range<u32>, truth: f64, page: impl Fn(f64) -> String) {
    for second in seconds {
        scene.seconds = second.into();
        let page = page(scene.seconds);
        scene.page(&page);
        if second >= SETTLED {
            let value = scene.utilization();
            assert!(
                value.as_ref().is_ok_and(|value| (value - truth).abs() < 1e-6),
                "{value:?} at {second} s, {truth} is true"
            );
        }
    }
}

/// Both hold the device, and its use is printed for the pod as a whole.
#[test]
fn two_containers_on_one_device_have_the_pods_value() {
    let mut scene = Scene::new();
    play(&mut scene, 0..100, 60.0 / 0.5, |t| {
        allocated("x", 0.25) + &allocated("y", 0.25) + &used("", 0.6 * t, 500.0 + t)
    });
}

#[test]
fn two_containers_that_each_use_it_add_up() {
    let mut scene = Scene::new();
    play(&mut scene, 0..100, 60.0 / 0.5, |t| {
        allocated("x", 0.25)
            + &allocated("y", 0.25)
            + &used("x", 0.2 * t, 500.0 + t)
            + &used("y", 0.3 * t, 400.0 + t)
            + &used("", 0.1 * t, 300.0 + t)
    });
}

/// An MPS server starts and ends: containers cannot be told apart meanwhile.
#[test]
fn the_old_label_counts_until_the_new_one_begins() {
    let mut scene = Scene::new();
    let both = allocated("x", 0.5) + &allocated("y", 0.5);
    let apart = |t: f64| both.clone() + &used("x", 0.2 * t, 500.0 + t) + &used("y", 0.4 * t, 500.0 + t);
    let together = |t: f64| both.clone() + &used("", 0.6 * (t - 100.0), t - 100.0);
    play(&mut scene, 0..100, 60.0, apart);
    play(&mut scene, 100..200, 60.0, together);
    play(&mut scene, 200..300, 60.0, apart);
}

/// The names of containers become known late, and not at once.
#[test]
fn a_name_that_becomes_known_late_changes_nothing() {
    let mut scene = Scene::new();
    let both = allocated("x", 0.5) + &allocated("y", 0.5);
    play(&mut scene, 0..50, 60.0, |t| both.clone() + &used("", 0.6 * t, 500.0 + t));
    play(&mut scene, 50..80, 60.0, |t| {
        both.clone() + &used("", 0.4 * t, 500.0 + t) + &used("x", 0.2 * (t - 50.0), t - 50.0)
    });
    play(&mut scene, 80..200, 60.0, |t| {
        both.clone() + &used("x", 0.2 * (t - 50.0), t - 50.0) + &used("y", 0.4 * (t - 80.0), t - 80.0)
    });
}

/// A label comes back with what it had counted before: that was no use of this interval.
#[test]
fn a_label_that_comes_back_brings_no_old_use() {
    let mut scene = Scene::new();
    for scrape in 0..30 {
        scene.seconds = 5.0 * f64::from(scrape);
        let t = scene.seconds;
        let back = if scrape < 10 { String::new() } else { used("x", 2.0, 100.0 + t) };
        let page = allocated("x", 1.0) + &used("", 0.3 * t, 500.0 + t) + &back;
        scene.page(&page);
        if scrape > 3 {
            let value = scene.utilization().unwrap();
            assert!((value - 30.0).abs() < 1e-6, "{value} at {t} s");
        }
    }
}

/// A counter of something else, such as energy, begins again: the use of the containers goes on.
#[test]
fn use_is_not_cut_where_another_counter_begins_again() {
    let mut scene = Scene::new();
    let energy = MetricFlag::parse("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION").unwrap();
    scene.metrics = Metrics::new(&[energy]);
    let both = allocated("x", 0.5) + &allocated("y", 0.5);
    for second in 0..80 {
        scene.seconds = f64::from(second);
        let t = scene.seconds;
        let energy: String = ["x", "y"]
            .iter()
            .map(|container| {
                let joules = 100 - second % 2;
                format!("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{}}} {joules}\n", owner(container))
            })
            .collect();
        let types = "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter\n".to_owned();
        let used = used("x", 0.2 * t, 500.0 + t) + &used("y", 0.4 * t, 500.0 + t);
        scene.page(&(types + &both + &used + &energy));
    }
    let found = scene.value_by("gpu_utilization", &[&scene.exporter], "").unwrap();
    assert!((found.value - 60.0).abs() < 1e-6 && found.covered > 59.0, "{found:?}");
}

/// One container is renamed: the label of the old pod's container stays in memory for a while.
#[test]
fn a_pod_of_another_uid_inherits_no_joined_series() {
    let mut scene = Scene::new();
    play(&mut scene, 0..50, 80.0, |t| allocated("x", 1.0) + &used("x", 0.8 * t, 500.0 + t));
    scene.pod["metadata"]["uid"] = serde_json::json!("u2");
    for second in 50..120 {
        scene.seconds = second.into();
        let t = scene.seconds;
        let page = allocated("y", 1.0).replace("u1", "u2") + &used("y", 0.1 * (t - 50.0), t - 50.0);
        scene.page(&page);
        match scene.utilization() {
            Ok(value) => assert!((value - 10.0).abs() < 1e-6, "{value} at {second} s"),
            Err(omission) => assert!(second < 66, "{omission} at {second} s"),
        }
    }
}

/// A second container's process takes nothing from the pod: what cannot be divided is printed for
/// the container that holds the device.
#[test]
fn a_container_without_the_family_leaves_no_gap() {
    let mut scene = Scene::new();
    for second in 0..100 {
        scene.seconds = second.into();
        let t = scene.seconds;
        let second_one = if second < 40 { String::new() } else { used("y", 0.1 * t, t) };
        let page = allocated("x", 1.0)
            + &used("x", 0.3 * t, 500.0 + t)
            + &second_one
            + &format!("DCGM_FI_DEV_POWER_USAGE{{{}}} 300\n", owner("x"))
            + &format!("DCGM_FI_PROF_SM_ACTIVE{{{}}} 0.5\n", owner("x"));
        scene.page(&page);
        if second >= SETTLED {
            assert_eq!(scene.ask("gpu_power_watts"), Ok(300.0), "at {second} s");
            assert_eq!(scene.ask("gpu_sm_active"), Ok(50.0), "at {second} s");
        }
    }
}

/// Memory is divided among containers or not, whatever use is.
#[test]
fn memory_is_joined_by_itself() {
    let mut scene = Scene::new();
    let memory = |container: &str, mib: f64| format!("DCGM_FI_DEV_FB_USED{{{}}} {mib}\n", owner(container));
    for second in 0..90 {
        scene.seconds = second.into();
        let t = scene.seconds;
        let memory = if (30..60).contains(&second) {
            memory("", 3000.0)
        } else {
            memory("x", 1000.0) + &memory("y", 2000.0)
        };
        let page = allocated("x", 0.5)
            + &allocated("y", 0.5)
            + &used("x", 0.2 * t, 500.0 + t)
            + &used("y", 0.4 * t, 500.0 + t)
            + &memory;
        scene.page(&page);
        if second >= SETTLED {
            assert_eq!(scene.ask("gpu_memory_used_bytes"), Ok(3000.0 * 1024.0 * 1024.0), "at {second} s");
        }
    }
}

/// NVIDIA's exporter repeats the device's value for each container.
#[test]
fn values_repeated_for_each_container_count_once() {
    let mut scene = Scene::new();
    for second in 0..40 {
        scene.seconds = second.into();
        let page = ["x", "y"].map(|container| {
            let owner = owner(container);
            format!("DCGM_FI_DEV_GPU_UTIL{{{owner}}} 60\nDCGM_FI_DEV_FB_USED{{{owner}}} 3000\n")
        });
        scene.page(&page.concat());
    }
    assert!((scene.utilization().unwrap() - 60.0).abs() < 1e-9);
    assert_eq!(scene.ask("gpu_memory_used_bytes"), Ok(3000.0 * 1024.0 * 1024.0));
}

#[test]
fn labels_that_end_for_good_are_stale() {
    let mut scene = Scene::new();
    play(&mut scene, 0..50, 60.0, |t| {
        allocated("x", 1.0) + &used("x", 0.2 * t, 500.0 + t) + &used("", 0.4 * t, 500.0 + t)
    });
    for second in 50..100 {
        scene.seconds = second.into();
        scene.page(&allocated("x", 1.0));
    }
    assert!(matches!(scene.utilization(), Err(Omission::DeviceStale { .. })), "{:?}", scene.utilization());
}

/// What it held is not the pod's any more, whatever room there is.
#[test]
fn a_label_of_before_that_is_given_up_for_lack_of_room_costs_no_value() {
    let mut scene = Scene::new();
    for scrape in 0..10 {
        scene.seconds = 5.0 * f64::from(scrape);
        let mut page = super::native("u1", &[(0, 0.4 * scene.seconds, 500.0 + scene.seconds)]);
        if scrape < 5 {
            // Nobody knows the container yet, nor what it was given.
            let lines = page.lines().filter(|line| !line.contains("allocation"));
            page = lines.map(|line| line.replace("container=\"c\"", "container=\"\"") + "\n").collect();
        }
        let mut page = page::read(&page, &scene.metrics).unwrap();
        scene.exporter.answered(&mut page, scene.at(), &span(), Room { series: 5, ..ROOM });
    }
    let value = scene.utilization().unwrap();
    assert!((value - 40.0).abs() < 1e-6, "{value}");
}
