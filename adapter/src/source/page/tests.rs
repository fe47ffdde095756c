//! Pages in, what is kept of them out.

use super::*;

use crate::metric::{DEVICE_USE, MEMORY_USED, POWER, USE};

const GPU: &str = r#"gpu="0",UUID="GPU-a",device="nvidia0",modelName="H100",hostname="n""#;
const POD: &str = r#"namespace="demo",pod="p",container="c""#;
const ROOM: Room = Room { series: usize::MAX, text: usize::MAX };

fn page(lines: &[String]) -> Page {
    let energy = crate::metric::MetricFlag::parse("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION").unwrap();
    read(&(lines.join("\n") + "\n"), &Metrics::new(&[energy])).unwrap()
}

#[test]
fn podgauges_counters_come_before_the_gauge() {
    let page = page(&[
        format!("podgauge_gpu_active_seconds_total{{{GPU},{POD}}} 12.5"),
        format!("podgauge_gpu_observed_seconds_total{{{GPU},{POD}}} 50"),
        format!("podgauge_gpu_device_active_seconds_total{{{GPU}}} 20"),
        format!("podgauge_gpu_owners{{{GPU}}} 1"),
        format!("podgauge_gpu_allocation{{{GPU},{POD},pod_uid=\"u\"}} 1"),
        format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{POD}}} 99"),
        format!("DCGM_FI_DEV_FB_USED{{{GPU},{POD}}} 100"),
        format!("DCGM_FI_DEV_FB_FREE{{{GPU},{POD}}} 300"),
        format!("DCGM_FI_DEV_SM_CLOCK{{{GPU},{POD}}} 1"),
    ]);
    assert_eq!(page.native, Some(true));
    let [device] = &page.devices[..] else { panic!("{page:?}") };
    assert_eq!((device.key.as_str(), device.memory_total), ("GPU-a", Some(400.0)));
    assert_eq!(device.labels.get("modelName"), Some("H100"));
    let [holding] = &device.holdings[..] else { panic!("{device:?}") };
    assert_eq!((holding.allocation, holding.pod_uid.as_deref()), (Some(1.0), Some("u")));
    assert_eq!(
        holding.readings,
        [
            (MEMORY_USED, Reading::Gauge(100.0)),
            (USE, Reading::Share { sum: 12.5, weight: 50.0 }),
            (DEVICE_USE, Reading::Share { sum: 20.0, weight: 50.0 }),
        ]
    );
}

#[test]
fn an_exporter_says_when_it_started() {
    let of = |line: &str| page(&[line.to_owned()]);
    assert_eq!(of("podgauge_start_time_seconds 1764115200.25").started, Some(1_764_115_200.25));
    assert_eq!(of("podgauge_start_time_seconds NaN").started, None);
    assert_eq!(of("podgauge_start_time_seconds 1").devices.len(), 0);
    // An empty page of podgauge's is no other exporter's.
    assert_eq!(of("podgauge_start_time_seconds 1").native, None);
}

#[test]
fn a_whole_device_is_told_once() {
    let of = |lines: &[String]| page(lines).devices[0].readings.clone();
    let other = "namespace=\"demo\",pod=\"q\",container=\"c\"";
    let mut lines = vec![
        format!("podgauge_gpu_device_active_seconds_total{{{GPU}}} 20"),
        format!("podgauge_gpu_utilization{{{GPU}}} 50"),
        format!("podgauge_gpu_owners{{{GPU}}} 0"),
        format!("podgauge_gpu_observed_seconds_total{{{GPU}}} 80"),
        format!("DCGM_FI_DEV_FB_USED{{{GPU}}} 100"),
        format!("DCGM_FI_DEV_POWER_USAGE{{{GPU}}} 70"),
    ];
    let share = (DEVICE_USE, Reading::Share { sum: 20.0, weight: 80.0 });
    let (memory, power) = (|mib| (MEMORY_USED, Reading::Gauge(mib)), (POWER, Reading::Gauge(70.0)));
    assert_eq!(of(&lines), [power, share, memory(100.0)], "a free device");
    lines.truncate(2);
    for pod in [POD, other] {
        lines.push(format!("podgauge_gpu_observed_seconds_total{{{GPU},{pod}}} 9"));
        lines.push(format!("podgauge_gpu_active_seconds_total{{{GPU},{pod}}} 9"));
        lines.push(format!("DCGM_FI_DEV_FB_USED{{{GPU},{pod}}} 100"));
    }
    lines.push(format!("podgauge_gpu_owners{{{GPU}}} 2"));
    let gauge = (DEVICE_USE, Reading::Gauge(0.5));
    assert_eq!(of(&lines), [gauge, memory(200.0)], "a shared one");
    let held = vec![
        format!("podgauge_gpu_device_active_seconds_total{{{GPU}}} 20"),
        format!("podgauge_gpu_active_seconds_total{{{GPU},{POD}}} 12"),
        format!("podgauge_gpu_observed_seconds_total{{{GPU},{POD}}} 50"),
        format!("DCGM_FI_DEV_FB_USED{{{GPU},{POD}}} 100"),
        format!("DCGM_FI_DEV_POWER_USAGE{{{GPU},{POD}}} 70"),
    ];
    assert_eq!(of(&held), [], "its only holding says it");
    let theirs: Vec<String> =
        [POD, other].iter().map(|pod| format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{pod}}} 50")).collect();
    assert_eq!(of(&theirs), [gauge], "NVIDIA's says it for each pod");
    assert_eq!(of(&[format!("DCGM_FI_DEV_GPU_UTIL{{{GPU}}} 50")]), [gauge]);
}

#[test]
fn nvidias_exporter_has_gauges_only() {
    let page = page(&[
        format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{POD}}} 50"),
        "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter".to_owned(),
        format!("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{GPU},{POD}}} 7"),
    ]);
    assert_eq!(page.native, Some(false));
    let readings = &page.devices[0].holdings[0].readings;
    assert!(readings.contains(&(USE, Reading::Gauge(0.5))));
    assert!(readings.contains(&(DEVICE_USE, Reading::Gauge(0.5))));
    assert!(readings.iter().any(|(_, reading)| *reading == Reading::Rate(7.0)));
}

#[test]
fn instances_are_devices_and_unlabelled_samples_nobodys() {
    let page = page(&[
        format!("podgauge_gpu_observed_seconds_total{{{GPU},GPU_I_ID=\"3\",{POD}}} 5"),
        format!("podgauge_gpu_observed_seconds_total{{{GPU}}} 5"),
        format!("podgauge_attribution_unavailable{{{GPU},reason=\"no host PIDs\"}} 1"),
    ]);
    assert_eq!(page.devices[0].key, "GPU-a/3");
    assert_eq!(page.devices[1].key, "GPU-a");
    assert!(page.devices[1].holdings.is_empty());
    assert_eq!(page.devices[1].unavailable.as_deref(), Some("no host PIDs"));
}

#[test]
fn what_is_too_long_too_many_or_no_number_is_dropped_and_counted() {
    let long = "x".repeat(MAX_LABEL_BYTES + 1);
    let mut lines = vec![
        format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{POD}}} NaN"),
        format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},pod=\"{long}\"}} 1"),
    ];
    lines.extend((0..=MAX_DEVICES).map(|i| format!("DCGM_FI_DEV_GPU_UTIL{{gpu=\"{i}\"}} 1")));
    let page = page(&lines);
    assert_eq!((page.devices.len(), page.dropped), (MAX_DEVICES, 3));
}

#[test]
fn whose_page_it_is_may_stay_open() {
    for (line, native) in [
        ("podgauge_exporter_build_info 1".to_owned(), None),
        ("# TYPE podgauge_gpu_up gauge".to_owned(), Some(true)),
        (format!("DCGM_FI_DEV_GPU_UTIL{{{GPU}}} 1"), None),
        (format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{POD}}} 1"), Some(false)),
    ] {
        assert_eq!(page(std::slice::from_ref(&line)).native, native, "{line}");
    }
}

#[test]
fn samples_of_one_holding_are_combined_or_dropped() {
    let of = |page: &Page| page.devices[0].holdings[0].readings.clone();
    let lines = |family: &str, values: [(&str, u8); 2]| -> Vec<String> {
        values.iter().map(|(label, value)| format!("{family}{{{GPU},{POD},{label}}} {value}")).collect()
    };
    let replicas = lines("DCGM_FI_DEV_FB_USED", [("vgpu=\"0\"", 40), ("vgpu=\"1\"", 40)]);
    let mut ours = replicas;
    ours.push(format!("DCGM_FI_DEV_FB_USED{{{GPU}}} 100"));
    ours.push(format!("DCGM_FI_DEV_FB_FREE{{{GPU}}} 300"));
    let mut theirs = ours.clone();
    ours.push(format!("podgauge_gpu_up{{{GPU}}} 1"));
    assert_eq!(of(&page(&ours)), [(MEMORY_USED, Reading::Gauge(80.0))], "split over its replicas");
    assert_eq!(page(&ours).devices[0].memory_total, Some(400.0));
    assert_eq!(of(&page(&theirs)), [(MEMORY_USED, Reading::Gauge(40.0))], "repeated per replica");
    theirs.push(format!("DCGM_FI_DEV_FB_USED{{{GPU},namespace=\"demo\",pod=\"p\",container=\"d\"}} 100"));
    assert_eq!(page(&theirs).devices[0].memory_total, Some(400.0), "not once per container");
    let links = page(&lines("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", [("link=\"0\"", 1), ("link=\"1\"", 1)]));
    assert_eq!((of(&links), links.dropped), (vec![], 2), "of which link would it be?");
}

#[test]
fn what_cannot_be_true_is_dropped_and_counted() {
    for line in [
        format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{POD}}} 101"),
        format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{POD}}} -1"),
        format!("DCGM_FI_DEV_FB_USED{{{GPU},{POD}}} 9223372036854775792"),
        format!("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{GPU},{POD}}} 2147483634"),
        format!("DCGM_FI_PROF_SM_ACTIVE{{{GPU},{POD}}} 140737488355328"),
        format!("DCGM_FI_PROF_SM_ACTIVE{{{GPU},{POD}}} 3"),
        format!("podgauge_gpu_utilization{{{GPU}}} 130"),
        format!("podgauge_gpu_allocation{{{GPU},{POD}}} 1.5"),
        format!("podgauge_gpu_allocation{{{GPU},{POD}}} 0"),
    ] {
        let page = page(std::slice::from_ref(&line));
        assert_eq!((page.dropped, page.devices.len()), (1, 0), "{line}");
    }
}

#[test]
fn readings_under_the_labels_of_two_pods_are_nobodys() {
    let page = page(&[
        format!("podgauge_gpu_allocation{{{GPU},{POD},pod_uid=\"a\"}} 0.5"),
        format!("podgauge_gpu_allocation{{{GPU},{POD},pod_uid=\"b\"}} 0.5"),
        format!("podgauge_gpu_active_seconds_total{{{GPU},{POD}}} 1"),
        format!("podgauge_gpu_observed_seconds_total{{{GPU},{POD}}} 5"),
    ]);
    assert!(page.devices[0].holdings[0].readings.is_empty());
    assert_eq!(page.dropped, 1);
}

#[test]
fn what_is_said_twice_and_differently_is_nobodys_word() {
    let lines = |active: [f64; 2]| {
        let mut lines = vec![format!("podgauge_gpu_observed_seconds_total{{{GPU},{POD}}} 50")];
        lines.extend(
            active.map(|active| format!("podgauge_gpu_active_seconds_total{{{GPU},{POD}}} {active}")),
        );
        lines
    };
    let readings = |page: &Page| page.devices[0].holdings[0].readings.len();
    let (same, other) = (page(&lines([5.0, 5.0])), page(&lines([5.0, 6.0])));
    assert_eq!((readings(&same), same.dropped), (1, 0));
    assert_eq!((readings(&other), other.dropped), (0, 1));
}

#[test]
fn a_page_that_is_no_page_is_refused() {
    let refused = |bytes: &[u8], pieces: usize| {
        let metrics = Metrics::new(&[]);
        let mut reader = PageReader::new(&metrics, ROOM, Box::default());
        let read = bytes.chunks(pieces).try_for_each(|piece| reader.push(piece));
        read.and_then(|()| reader.finish().0).unwrap_err().to_string()
    };
    for pieces in [1, 3, 1000] {
        let html = refused(b"a 1\n<html>\nb 2\n", pieces);
        assert!(html.starts_with("the page cannot be read: line 2: \"<html>\""), "{html}");
        assert_eq!(refused(b"a 1\nb 12", pieces), "the page ends in the middle of line 2");
    }
    assert!(refused(b"a 1\n\xff\xfe 1\n", 4).contains("line 2 or one soon after is not UTF-8"));
    let long = [b"a 1\nb{c=\"".as_slice(), &[b'x'; MAX_LINE_BYTES]].concat();
    assert!(refused(&long, 1000).contains("line 2 is longer than 65536 bytes"));
}

/// Reads a page of which no more than `room` is kept.
fn page_within(room: Room, lines: &[String]) -> Page {
    let metrics = Metrics::new(&[]);
    let mut reader = PageReader::new(&metrics, room, Box::default());
    reader.push((lines.join("\n") + "\n").as_bytes()).unwrap();
    reader.finish().0.unwrap()
}

/// One container each, named by a number and this text, on its own device or on all the same.
fn pods(count: usize, same_device: bool, name: &str) -> Vec<String> {
    let line = |i: usize| {
        let device = if same_device { 0 } else { i };
        format!("DCGM_FI_DEV_GPU_UTIL{{gpu=\"{device}\",namespace=\"demo\",pod=\"{i}{name}\"}} 1")
    };
    (0..count).map(line).collect()
}

#[test]
fn what_has_no_room_is_named() {
    let long = "x".repeat(500);
    for (room, lines, limit, kept) in [
        (Room { series: 400, ..ROOM }, pods(200, true, ""), Limit::Series, 100),
        (Room { text: 6000, ..ROOM }, pods(200, true, &long), Limit::Text, 11),
        (ROOM, pods(MAX_HOLDINGS + 5, true, ""), Limit::Holdings, MAX_HOLDINGS),
        (ROOM, pods(MAX_DEVICES + 5, false, ""), Limit::Devices, MAX_DEVICES),
    ] {
        let all = lines.len() as u64;
        let name = |i: usize| format!("{i}{}", if limit == Limit::Text { &long } else { "" });
        let page = page_within(room, &lines);
        let cut = page.cut.as_ref().unwrap();
        let holdings: usize = page.devices.iter().map(|device| device.holdings.len()).sum();
        assert_eq!((cut.limit, holdings, page.dropped), (limit, kept, all - kept as u64));
        assert_eq!(page.devices[0].incomplete, limit != Limit::Devices, "{limit:?}");
        assert_eq!(cut.devices, limit == Limit::Devices);
        assert!(cut.concerns("demo", &name(kept)) && !cut.concerns("demo", &name(kept - 1)), "{limit:?}");
    }
    // Beyond what is remembered one by one, nobody is complete.
    let page = page_within(Room { series: 4, ..ROOM }, &pods(5000, true, ""));
    assert!(page.cut.unwrap().concerns("demo", "0"));
}

#[test]
fn a_uid_and_further_series_need_room_too() {
    let uid = format!("podgauge_gpu_allocation{{{GPU},{POD},pod_uid=\"{}\"}} 1", "u".repeat(400));
    let page = page_within(Room { text: 300, ..ROOM }, std::slice::from_ref(&uid));
    assert_eq!(page.cut.unwrap().limit, Limit::Text);
    let names =
        ["GPU_UTIL", "FB_USED", "POWER_USAGE", "GPU_UTIL_RATIO", "FB_USED_BYTES", "BOARD_POWER_WATTS"];
    let lines = names.map(|name| format!("DCGM_FI_DEV_{name}{{{GPU},{POD}}} 1"));
    let page = page_within(Room { series: 5, ..ROOM }, &lines);
    assert_eq!((page.dropped, page.cut.unwrap().limit), (1, Limit::Series));
}

#[test]
fn with_virtual_gpus_the_sample_without_a_pod_is_the_devices() {
    let other = "namespace=\"demo\",pod=\"q\",container=\"c\"";
    let memory = |lines: &[String]| {
        let page = page(lines);
        let device = &page.devices[0];
        let used = device.memory_used.unwrap();
        (used, device.memory_total.unwrap())
    };
    let line = |family: &str, labels: &str, value: f64| format!("{family}{{{GPU}{labels}}} {value}");
    let (used, free, owners) = ("DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE", "podgauge_gpu_owners");
    // One pod with the whole device: its copy has no label `vgpu`.
    let one = [
        line(used, "", 30.0),
        line(used, &format!(",{POD}"), 30.0),
        line(free, &format!(",{POD}"), 70.0),
        line(owners, "", 1.0),
    ];
    assert_eq!(memory(&one), (30.0, 100.0));
    // A replica's copy, and one of a pod that was given nothing.
    let two = [
        line(used, "", 30.0),
        line(used, &format!(",{POD},vgpu=\"0\""), 10.0),
        line(used, &format!(",{other}"), 15.0),
        line(free, "", 70.0),
        line(owners, "", 2.0),
    ];
    assert_eq!(memory(&two), (30.0, 100.0));
    // Two pods with the whole device by one claim: what cannot be divided has a copy for each.
    let claim = [
        line(used, "", 30.0),
        line(used, &format!(",{POD}"), 10.0),
        line(used, &format!(",{other}"), 20.0),
        line(free, "", 70.0),
        line("DCGM_FI_DEV_POWER_USAGE", &format!(",{POD}"), 300.0),
        line("DCGM_FI_DEV_POWER_USAGE", &format!(",{other}"), 300.0),
        line(owners, "", 2.0),
    ];
    assert_eq!(memory(&claim), (30.0, 100.0));
    // Without virtual GPUs the sample without a pod is the rest.
    let parts = [
        line(used, "", 5.0),
        line(used, &format!(",{POD}"), 10.0),
        line(used, &format!(",{other}"), 15.0),
        line(free, "", 70.0),
        line(owners, "", 2.0),
    ];
    assert_eq!(memory(&parts), (30.0, 100.0));
}

#[test]
fn names_of_4_9_are_read_and_those_of_both_kinds_count_once() {
    const MIB: f64 = 1_048_576.0;
    let newer = [
        format!("DCGM_FI_DEV_GPU_UTIL_RATIO{{{GPU},{POD}}} 0.9"),
        format!("DCGM_FI_DEV_FB_USED_BYTES{{{GPU},{POD}}} {}", 100.0 * MIB),
        format!("DCGM_FI_DEV_FB_FREE_BYTES{{{GPU},{POD}}} {}", 300.0 * MIB),
        format!("DCGM_FI_DEV_FB_RESERVED_BYTES{{{GPU},{POD}}} {}", 20.0 * MIB),
        format!("DCGM_FI_DEV_BOARD_POWER_WATTS{{{GPU},{POD}}} 350"),
        "# TYPE DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL counter".to_owned(),
        format!("DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL{{{GPU},{POD}}} 7"),
    ];
    let read = |lines: &[String]| {
        let page = page(lines);
        let [device] = &page.devices[..] else { panic!("{page:?}") };
        let mut readings = device.holdings[0].readings.clone();
        readings.sort_by_key(|(family, _)| *family);
        (readings, device.memory_total, page.dropped)
    };
    let gauge = Reading::Gauge;
    let (readings, total, dropped) = read(&newer);
    let [energy] = readings[4..] else { panic!("{readings:?}") };
    assert_eq!(
        readings[..4],
        [(USE, gauge(0.9)), (DEVICE_USE, gauge(0.9)), (MEMORY_USED, gauge(100.0)), (POWER, gauge(350.0))]
    );
    assert_eq!((energy.1, total, dropped), (Reading::Rate(7000.0), Some(420.0), 0));
    // The classic names count, wherever they are.
    let classic = [
        format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{POD}}} 80"),
        format!("DCGM_FI_DEV_FB_USED{{{GPU},{POD}}} 101"),
        format!("DCGM_FI_DEV_FB_FREE{{{GPU},{POD}}} 300"),
        format!("DCGM_FI_DEV_POWER_USAGE{{{GPU},{POD}}} 351"),
    ];
    for both in [[newer.as_slice(), &classic].concat(), [classic.as_slice(), &newer].concat()] {
        let (readings, total, dropped) = read(&both);
        assert_eq!(
            readings[..4],
            [(USE, gauge(0.8)), (DEVICE_USE, gauge(0.8)), (MEMORY_USED, gauge(101.0)), (POWER, gauge(351.0))]
        );
        assert_eq!((total, dropped), (Some(421.0), 0));
    }
}

#[test]
fn memory_larger_than_the_device_is_no_measurement() {
    let line = |name: &str, value: f64| format!("DCGM_FI_DEV_{name}{{{GPU},{POD}}} {value}");
    for (used, free, dropped) in [(90_000.0, 1.0, 2), (10.0, 90_000.0, 1), (1.0, 2.0, 0)] {
        let page = page(&[line("FB_USED", used), line("FB_FREE", free), line("FB_TOTAL", 81_559.0)]);
        assert_eq!(page.dropped, dropped, "{used} {free}");
        let device = &page.devices[0];
        let total = if dropped == 0 { 3.0 } else { 81_559.0 };
        assert_eq!(device.memory_total, Some(total), "{used} {free}");
        assert_eq!(device.holdings[0].readings.is_empty(), used > 81_559.0);
    }
    let wrapped = page(&[line("FB_USED", 1.0), line("FB_FREE", 17_592_186_044_415.0)]);
    assert_eq!((wrapped.dropped, wrapped.devices[0].memory_total), (1, None));
}

#[test]
fn the_last_seconds_are_read_with_their_window() {
    let line = |family: &str, window: &str, value: f64| {
        format!("podgauge_gpu_recent_{family}_seconds{{window=\"{window}\",{GPU},{POD}}} {value}")
    };
    let device = |family: &str, value: f64| {
        format!("podgauge_gpu_recent_device_{family}_seconds{{window=\"60s\",{GPU}}} {value}")
    };
    let recent = |lines: &[String]| {
        let page = page(lines);
        let device = &page.devices[0];
        (device.holdings.first().and_then(|holding| holding.recent), device.recent, page.dropped)
    };
    let of = |window, active, observed| Recent::new(std::time::Duration::from_secs(window), active, observed);
    let all = [
        line("active", "1m0s", 30.0),
        line("observed", "1m0s", 59.8),
        line("active", "30s", 1.0),
        line("observed", "30s", 29.8),
        device("active", 40.0),
        device("observed", 59.8),
    ];
    assert_eq!(recent(&all), (of(60, 30.0, 59.8), of(60, 40.0, 59.8), 0));
    // More use than time, and more time than there was.
    for (active, observed) in [(61.0, 60.0), (10.0, 90.0)] {
        let lie = [
            line("active", "60s", active),
            line("observed", "60s", observed),
            all[4].clone(),
            all[5].clone(),
        ];
        assert_eq!(recent(&lie), (None, of(60, 40.0, 59.8), 2), "{active} {observed}");
    }
    assert_eq!(recent(&[line("active", "60s", 1.0)]), (None, None, 0), "half of it says nothing");
    assert_eq!(recent(&[line("active", "soon", 1.0), line("observed", "soon", 2.0)]), (None, None, 0));
    assert_eq!(recent(&[line("active", "60s", 0.0), line("observed", "60s", 0.0)]), (None, None, 0));
}

#[test]
fn a_device_may_have_many_owners() {
    let owner = |i: usize, family: &str| {
        format!("{family}{{{GPU},namespace=\"demo\",pod=\"p{i}\",container=\"c\"}} {i}")
    };
    let lines = |family| (0..40).map(move |i| owner(i, family));
    let page = page(
        &lines("podgauge_gpu_active_seconds_total")
            .chain(lines("podgauge_gpu_observed_seconds_total"))
            .collect::<Vec<_>>(),
    );
    assert_eq!(page.devices[0].holdings.len(), 40);
    for (i, holding) in page.devices[0].holdings.iter().enumerate() {
        let both = i as f64;
        assert_eq!(holding.readings, [(USE, Reading::Share { sum: both, weight: both })]);
    }
}

#[test]
fn what_is_of_no_use_is_hardly_read_and_what_is_no_sample_is_refused() {
    let refused = |line: &str| read(&format!("{line}\n"), &Metrics::new(&[])).unwrap_err().to_string();
    for line in ["a{b=\"c\"} 1", "a{b=\"c d\"} NaN 1700", "a +Inf"] {
        assert_eq!(read(&format!("{line}\n"), &Metrics::new(&[])).unwrap().devices.len(), 0);
    }
    for line in ["Service Unavailable", "404 page not found", "a{", "{\"a\": 1}", "a", "-1"] {
        assert!(refused(line).starts_with("the page cannot be read: line 1"), "{line}");
    }
}

/// Labels that were read before are found by their text. The same page with a different text in
/// each line must mean the same.
#[test]
fn labels_mean_the_same_when_they_come_again() {
    let families = [
        "podgauge_gpu_active_seconds_total",
        "podgauge_gpu_observed_seconds_total",
        "podgauge_gpu_allocation",
        "DCGM_FI_DEV_FB_USED",
        "DCGM_FI_DEV_FB_FREE",
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "DCGM_FI_DEV_SM_CLOCK",
        "podgauge_attribution_unavailable",
    ];
    let mut lines = vec!["# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter".to_owned()];
    for family in families {
        for i in 0..40 {
            let pod = if i % 7 == 0 { String::new() } else { format!(",namespace=\"demo\",pod=\"p}} {i}\"") };
            let vgpu = if i % 5 == 0 { ",vgpu=\"1\"" } else { "" };
            let value = if i == 13 { "NaN".to_owned() } else { format!("0.{i}") };
            lines.push(format!("{family}{{gpu=\"{}\"{pod}{vgpu},reason=\"{i}\"}} {value}", i % 3));
        }
    }
    let again = page(&lines);
    let once: Vec<String> = lines
        .iter()
        .enumerate()
        .map(|(at, line)| line.replacen('{', &format!("{{{}", ",".repeat(at % 50 + at / 50)), 1))
        .collect();
    assert_eq!(format!("{again:?}"), format!("{:?}", page(&once)));
    assert!(again.devices.len() == 3 && again.dropped > 0, "{again:?}");
}

#[test]
fn a_scratch_of_another_page_changes_nothing() {
    let metrics = Metrics::new(&[]);
    let read = |lines: &[String], scratch| {
        let mut reader = PageReader::new(&metrics, ROOM, scratch);
        reader.push((lines.join("\n") + "\n").as_bytes()).unwrap();
        let (page, mut scratch) = reader.finish();
        let page = page.unwrap();
        let text = format!("{page:?}");
        scratch.recycle(page);
        (text, scratch)
    };
    // Everything that can be said of a device and a container.
    let all = [
        format!("podgauge_gpu_active_seconds_total{{{GPU},{POD}}} 12.5"),
        format!("podgauge_gpu_observed_seconds_total{{{GPU},{POD}}} 50"),
        format!("podgauge_gpu_device_active_seconds_total{{{GPU}}} 12.5"),
        format!("podgauge_gpu_owners{{{GPU}}} 1"),
        format!("podgauge_gpu_allocation{{{GPU},{POD},pod_uid=\"u\"}} 0.5"),
        format!("podgauge_gpu_part_unknown{{{GPU},{POD}}} 1"),
        format!("podgauge_attribution_unavailable{{{GPU},reason=\"mps\"}} 1"),
        format!("podgauge_gpu_recent_active_seconds{{window=\"60s\",{GPU},{POD}}} 3"),
        format!("podgauge_gpu_recent_observed_seconds{{window=\"60s\",{GPU},{POD}}} 60"),
        format!("podgauge_gpu_recent_device_active_seconds{{window=\"60s\",{GPU}}} 3"),
        format!("podgauge_gpu_recent_device_observed_seconds{{window=\"60s\",{GPU}}} 60"),
        format!("DCGM_FI_DEV_FB_USED{{{GPU},{POD},vgpu=\"0\"}} 100"),
        format!("DCGM_FI_DEV_FB_FREE{{{GPU}}} 900"),
        format!("DCGM_FI_DEV_POWER_USAGE{{{GPU},{POD}}} 100"),
    ];
    let plain = vec![format!("DCGM_FI_DEV_POWER_USAGE{{{GPU},namespace=\"n\",pod=\"q\"}} 100")];
    let pages = [pods(5000, true, ""), all.to_vec(), plain, pods(100, false, "x"), pods(30, true, "y")];
    let mut scratch = Box::default();
    for lines in pages.iter().chain(pages.iter().rev()) {
        let (page, after) = read(lines, scratch);
        scratch = after;
        assert_eq!(page, read(lines, Box::default()).0);
    }
}

proptest::proptest! {
    #[test]
    fn a_page_reads_the_same_wherever_it_is_cut(cuts in proptest::collection::vec(1usize..60, 1..200)) {
        let lines = [
            format!("podgauge_gpu_active_seconds_total{{{GPU},{POD}}} 12.5"),
            format!("podgauge_gpu_observed_seconds_total{{{GPU},{POD}}} 50"),
            format!("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{GPU},{POD}}} 7"),
            "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter".to_owned(),
            format!("DCGM_FI_DEV_FB_USED{{{GPU},namespace=\"dëmo\",pod=\"p\"}} 100"),
        ];
        let text = lines.join("\n") + "\n";
        let metrics = Metrics::new(&[crate::metric::MetricFlag::parse("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION").unwrap()]);
        let mut reader = PageReader::new(&metrics, ROOM, Box::default());
        let mut rest = text.as_bytes();
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            reader.push(piece).unwrap();
            rest = after;
        }
        reader.push(rest).unwrap();
        let cut = reader.finish().0.unwrap();
        proptest::prop_assert_eq!(format!("{cut:?}"), format!("{:?}", read(&text, &metrics).unwrap()));
        proptest::prop_assert!(cut.devices[0].holdings[0].readings.iter().any(|(_, r)| *r == Reading::Rate(7.0)));
    }
}
