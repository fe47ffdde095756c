//! Whole pages over random scenarios: owners come and go, processes are seen or missed, the kubelet
//! answers or does not.

use std::collections::{BTreeMap, HashSet};

use podgauge_common::exposition::parse;
use proptest::prelude::*;

use super::*;
use crate::attribution::allocations::{Allocations, ReplicaCounts, Watchers};
use crate::attribution::kubelet::api::{ContainerDevices, ContainerResources, PodResources};
use crate::attribution::processes::{Holder, Processes};
use crate::counters;
use crate::gpu::EventWindows;
use crate::render::{LabelNames, Labelling, PodLabelling, Renderer};

const LEDGER: Windows = Windows { utilization: Duration::from_secs(15), recent: Duration::from_secs(60) };
const CSV: &str = "DCGM_FI_DEV_GPU_UTIL, gauge, u\nDCGM_FI_DEV_FB_USED, gauge, m\nDCGM_FI_DEV_GPU_TEMP, gauge, t\n\
    DCGM_FI_DEV_GPU_UTIL_RATIO, gauge, r\nDCGM_FI_DEV_FB_USED_BYTES, gauge, b\n";
const UUID: &str = "GPU-1";

/// One tick of a scenario.
#[derive(Debug, Clone)]
struct Tick {
    /// Containers that hold a replica: bits of pod 0 main, pod 0 side, pod 1 main, pod 2 main.
    held: u8,
    /// Whole devices in place of replicas, as an old kubelet lists them.
    whole: bool,
    /// Who has processes: bits of the same containers, then outside any pod.
    running: u8,
    kubelet: bool,
    blind: bool,
    /// MiB per process; `None`: NVML cannot tell.
    memory: Option<u32>,
    /// Percent and whose each slot is.
    slots: Vec<(u8, u8)>,
}

fn tick() -> impl Strategy<Value = Tick> {
    (
        0u8..16,
        any::<bool>(),
        0u8..32,
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.1),
        prop::option::weighted(0.9, 0u32..30_000),
        prop::collection::vec((0u8..=100, 0u8..11), 5),
    )
        .prop_map(|(held, whole, running, kubelet, blind, memory, slots)| Tick {
            held,
            whole,
            running,
            kubelet,
            blind,
            memory,
            slots,
        })
}

fn container(bit: u8) -> (String, &'static str) {
    match bit {
        0 => ("p0".into(), "main"),
        1 => ("p0".into(), "side"),
        other => (format!("p{}", other - 1), "main"),
    }
}

fn whose(bit: u8) -> Whose {
    match bit {
        0..4 => {
            let (pod, container) = container(bit);
            let owner = Owner { namespace: "ml".into(), pod: pod.clone(), container: container.into() };
            Whose::Pod { owner: Arc::new(owner), uid: format!("uid-{pod}").into() }
        }
        4 => Whose::Outside,
        5 => Whose::MpsServer,
        6 => Whose::Gone,
        _ => Whose::Unreadable,
    }
}

fn knowledge(tick: &Tick) -> Knowledge {
    if !tick.kubelet {
        return Knowledge::Lost;
    }
    let pods: Vec<PodResources> = (0..4u8)
        .filter(|bit| tick.held >> bit & 1 == 1)
        .map(|bit| {
            let (name, container) = container(bit);
            let id = if tick.whole { UUID.to_owned() } else { format!("{UUID}::{bit}") };
            let devices = ContainerDevices { resource_name: "nvidia.com/gpu".into(), device_ids: vec![id] };
            PodResources {
                name,
                namespace: "ml".into(),
                containers: vec![ContainerResources {
                    name: container.into(),
                    devices: vec![devices],
                    ..ContainerResources::default()
                }],
            }
        })
        .collect();
    let mut counts = ReplicaCounts::default();
    let replicas: Vec<String> = (0..4).map(|replica| format!("{UUID}::{replica}")).collect();
    counts.learn(&[ContainerDevices { resource_name: "nvidia.com/gpu".into(), device_ids: replicas }]);
    Knowledge::Known(Arc::new(
        Allocations::from_list(&pods, &Watchers::default(), None).completed(&counts, |_, _| None),
    ))
}

fn readings(tick: &Tick, now: Instant, second: u64) -> Readings {
    let holders: Vec<Holder> = (0..5u8)
        .filter(|bit| tick.running >> bit & 1 == 1)
        .map(|bit| Holder { whose: whose(bit), live: true })
        .collect();
    let memory = tick
        .memory
        .map(|mib| holders.iter().map(|holder| (holder.whose.clone(), u64::from(mib) << 20)).collect());
    let processes = Processes {
        unavailable: tick.blind.then_some(Unavailable::NoHostPidNamespace),
        holders,
        memory,
        no_utilization: false,
    };
    let gpu_slots = tick
        .slots
        .iter()
        .zip(1..)
        .map(|(&(percent, of), number)| {
            let slot = Slot {
                end: now - Duration::from_millis(1000 - 200 * number),
                timestamp_us: Some(second * 1_000_000 + 200_000 * number),
                length: Duration::from_millis(200),
                percent: f64::from(percent),
                history: false,
            };
            let credit = match of {
                _ if percent == 0 => Credit::Idle,
                8 => Credit::Missed(Vec::new()),
                9 => Credit::Missed(vec![whose(0), whose(3)]),
                10 => Credit::Unsampled,
                of => Credit::Of(whose(of)),
            };
            (slot, credit)
        })
        .collect();
    let identity = Identity {
        index: 0,
        minor: Some(0),
        uuid: UUID.into(),
        pci_bus_id: "00000000:17:00.0".into(),
        model: "H100".into(),
        instance: None,
    };
    Readings {
        generation: 0,
        taken_at: now,
        devices: vec![DeviceReading {
            unmeasured: None,
            sharing: None,
            identity: Arc::new(identity),
            lost: None,
            // By name: memory in MiB and in bytes, temperature, utilization in percent and as a ratio.
            values: vec![
                Some(Value::U64(40_000)),
                Some(Value::U64(40_000 << 20)),
                Some(Value::U64(30)),
                None,
                None,
            ],
            texts: Arc::new([]),
            events: EventCounts::default(),
            nvlink_bytes: None,
            gpu_slots,
            loose_samples: Vec::new(),
            memory_slots: Vec::new(),
            processes,
        }],
    }
}

/// No event comes in these scenarios.
const WINDOWS: EventWindows = EventWindows { xids: Duration::ZERO, clock_events: Duration::ZERO };

fn labelling(pods: PodLabelling) -> Labelling {
    Labelling {
        names: LabelNames::CURRENT,
        hostname: Vec::new(),
        replace_blanks: false,
        pods,
        recent_window: "60s".into(),
        exporter_metrics: false,
    }
}

type Series = BTreeMap<(String, BTreeMap<String, String>), f64>;

/// The page's series. Fails on one that is there twice, and on NaN.
fn series(page: &str) -> Series {
    let mut series = Series::new();
    for sample in parse::samples(page) {
        let sample = sample.unwrap();
        let labels = sample.labels.iter().map(|(k, v)| ((*k).to_owned(), v.to_string())).collect();
        assert!(sample.value.is_finite() && sample.value >= 0.0, "{page}");
        let known = series.insert((sample.name.to_owned(), labels), sample.value);
        assert!(known.is_none(), "{} is there twice:\n{page}", sample.name);
    }
    series
}

fn sum(series: &Series, family: &str, with_vgpu_copies: bool) -> f64 {
    series
        .iter()
        .filter(|((name, labels), _)| name == family && (!with_vgpu_copies || labels.contains_key("pod")))
        .map(|(_, value)| value)
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn pages_keep_their_promises(ticks in prop::collection::vec(tick(), 1..25), virtual_gpus: bool, uid: bool) {
        let parsed = counters::parse(CSV, "test").unwrap();
        let pods = PodLabelling { virtual_gpus, uid, labels: None };
        let renderer = Renderer::new(parsed, labelling(pods), WINDOWS);
        let mut node = Node::new(LEDGER);
        let mut now = Instant::now() + Duration::from_secs(100);
        let mut counters_before: Series = Series::new();
        let mut seen_before: HashSet<String> = HashSet::new();
        for (second, tick) in ticks.iter().enumerate() {
            now += Duration::from_secs(1);
            let knowledge = knowledge(tick);
            node.learn(readings(tick, now, second as u64), &knowledge, now);
            let snapshot = node.snapshot(&knowledge, now);
            let page = renderer.render(&snapshot).text;
            let series = series(&page);

            // Divided or not, a family adds up to the device; a virtual GPU's copies to no more.
            if let Some(device) = series.iter().find(|((name, _), _)| name == "podgauge_gpu_utilization") {
                let parts = sum(&series, "DCGM_FI_DEV_GPU_UTIL", virtual_gpus);
                if virtual_gpus {
                    prop_assert!(parts <= device.1 + 1e-6, "{page}");
                } else {
                    prop_assert!((parts - device.1).abs() < 1e-6, "{page}");
                }
            }
            let memory = sum(&series, "DCGM_FI_DEV_FB_USED", virtual_gpus);
            prop_assert!(if virtual_gpus { memory <= 40_000.0 } else { memory == 40_000.0 }, "{page}");

            // And so does it in other units.
            let bytes = sum(&series, "DCGM_FI_DEV_FB_USED_BYTES", virtual_gpus);
            let all = 40_000.0 * 1024.0 * 1024.0;
            prop_assert!(if virtual_gpus { bytes <= all } else { bytes == all }, "{page}");
            let ratios = sum(&series, "DCGM_FI_DEV_GPU_UTIL_RATIO", virtual_gpus);
            let percents = sum(&series, "DCGM_FI_DEV_GPU_UTIL", virtual_gpus);
            prop_assert!((ratios * 100.0 - percents).abs() < 1e-6, "{page}");

            // No counter falls or gains more than the time that passed, nor does their sum.
            let counters: Series =
                series.iter().filter(|((name, _), _)| name.ends_with("_seconds_total")).map(|(k, v)| (k.clone(), *v)).collect();
            let (mut active, mut device) = (0.0, 0.0);
            for (key, value) in &counters {
                let before = counters_before.get(key);
                let gained = value - before.copied().unwrap_or(0.0);
                prop_assert!(gained >= -1e-6, "{page}");
                prop_assert!(gained <= 1.0 + 1e-6 || before.is_none() && seen_before.contains(&format!("{key:?}")), "{key:?} gained {gained}");
                if gained <= 1.0 + 1e-6 {
                    match key.0.as_str() {
                        "podgauge_gpu_active_seconds_total" if before.is_some() => active += gained,
                        "podgauge_gpu_device_active_seconds_total" => device += gained,
                        _ => {}
                    }
                }
            }
            prop_assert!(active <= device + 1e-5, "{active} of {device}");
            seen_before.extend(counters.keys().map(|key| format!("{key:?}")));
            counters_before = counters;

            // What was not read is not there.
            if tick.memory.is_none() && snapshot.devices[0].owners.is_some_and(|owners| owners > 1) {
                let labelled = |(name, labels): &&(String, BTreeMap<String, String>)| name == "DCGM_FI_DEV_FB_USED" && labels.contains_key("pod");
                let several = snapshot.devices[0].owner.is_none();
                prop_assert!(!several || !series.keys().any(|key| labelled(&key)), "{page}");
            }
            if let Knowledge::Lost = knowledge {
                prop_assert!(!page.contains("pod="), "{page}");
            }
        }
    }
}

/// One pod uses the device, another only holds it; then processes cannot be told apart.
#[test]
fn a_share_and_the_rest_make_the_device() {
    let tick = Tick {
        held: 0b1100,
        whole: false,
        running: 0b1_0100,
        kubelet: true,
        blind: false,
        memory: Some(10_000),
        slots: vec![(50, 2), (50, 2), (0, 2), (30, 4), (0, 4)],
    };
    let renderer =
        Renderer::new(counters::parse(CSV, "test").unwrap(), labelling(PodLabelling::default()), WINDOWS);
    let mut node = Node::new(LEDGER);
    let mut now = Instant::now() + Duration::from_secs(100);
    let mut page = |node: &mut Node, tick: &Tick| {
        now += Duration::from_secs(1);
        let knowledge = knowledge(tick);
        node.learn(readings(tick, now, 1), &knowledge, now);
        series(&renderer.render(&node.snapshot(&knowledge, now)).text)
    };
    for _ in 0..3 {
        page(&mut node, &tick);
    }
    let series = page(&mut node, &tick);
    let value = |family: &str, pod: &str| {
        let fits = |((name, labels), _): &(&(String, BTreeMap<String, String>), &f64)| {
            name == family && labels.get("pod").map_or("", String::as_str) == pod
        };
        let found: Vec<_> = series.iter().filter(fits).map(|(_, value)| *value).collect();
        assert!(found.len() <= 1);
        found.first().copied()
    };
    let values = |family| ["p1", "p2", ""].map(|pod| value(family, pod));
    assert_eq!(values("DCGM_FI_DEV_GPU_UTIL"), [Some(20.0), Some(0.0), Some(6.0)]);
    assert_eq!(values("DCGM_FI_DEV_FB_USED"), [Some(10_000.0), Some(0.0), Some(30_000.0)]);
    assert_eq!(values("DCGM_FI_DEV_GPU_UTIL_RATIO"), [Some(0.2), Some(0.0), Some(0.06)]);
    let mib = |mib: f64| Some(mib * 1024.0 * 1024.0);
    assert_eq!(values("DCGM_FI_DEV_FB_USED_BYTES"), [mib(10_000.0), mib(0.0), mib(30_000.0)]);
    assert_eq!(values("DCGM_FI_DEV_GPU_TEMP"), [None, None, Some(30.0)]);
    assert_eq!(values("podgauge_gpu_active_seconds_total"), [Some(0.8), Some(0.0), Some(0.24)]);
    assert_eq!(values("podgauge_gpu_observed_seconds_total"), [Some(4.0), Some(4.0), Some(4.0)]);
    assert_eq!(value("podgauge_gpu_owners", ""), Some(3.0));

    let blind = page(&mut node, &Tick { blind: true, ..tick });
    assert!(blind.keys().all(|(name, labels)| !name.starts_with("DCGM") || !labels.contains_key("pod")));
    let reasons: Vec<_> =
        blind.keys().filter(|(name, _)| name == "podgauge_attribution_unavailable").collect();
    assert_eq!(reasons.len(), 1);
    assert_eq!(reasons[0].1["reason"], "no_host_pid_namespace");
}
