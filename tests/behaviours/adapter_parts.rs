//! A pod's use is a percentage of the part of the device that it was given, by its exporter or by its
//! annotations. An unknown part is left out; above all it is not the whole device.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use podgauge_tests::cluster::{Cluster, headers};
use podgauge_tests::fake_exporter::FakeExporter;
use podgauge_tests::wait::until;

use podgauge_tests::fleet::{Fleet, near};

/// A container's part, as an exporter reports it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Size(f64),
    Unknown,
    None,
}

/// A container on a GPU, as an exporter's page reports it.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) gpu: u8,
    pub(crate) pod: &'static str,
    pub(crate) container: &'static str,
    pub(crate) part: Part,
    /// Percent of the device; `None`: without series of use.
    pub(crate) load: Option<f64>,
}

pub(crate) const fn row(gpu: u8, pod: &'static str, container: &'static str, part: Part, load: f64) -> Row {
    Row { gpu, pod, container, part, load: Some(load) }
}

/// An exporter of GPUs with 40,000 MiB each, whose page can be changed. Counters begin again with
/// each change of `life`.
pub(crate) struct Exporter {
    pub(crate) fake: FakeExporter,
    pub(crate) rows: Arc<Mutex<Vec<Row>>>,
    extra: Arc<Mutex<String>>,
    life: Arc<Mutex<Instant>>,
}

impl Exporter {
    pub(crate) async fn start(rows: Vec<Row>) -> Self {
        let rows = Arc::new(Mutex::new(rows));
        let extra = Arc::new(Mutex::new(String::new()));
        let life = Arc::new(Mutex::new(Instant::now()));
        let (shown, added, began) = (Arc::clone(&rows), Arc::clone(&extra), Arc::clone(&life));
        let fake = FakeExporter::start_with(move || {
            let observed = 100.0 + began.lock().elapsed().as_secs_f64();
            page(&shown.lock(), observed) + &added.lock()
        })
        .await;
        Self { fake, rows, extra, life }
    }

    /// The exporter restarts, and reports this from then on.
    fn restart(&self, rows: Vec<Row>) {
        *self.life.lock() = Instant::now();
        *self.rows.lock() = rows;
    }

    pub(crate) fn arguments(&self) -> Vec<String> {
        vec![format!("--exporter-url=gpu-node-0=http://{}", self.fake.address)]
    }
}

fn page(all: &[Row], observed: f64) -> String {
    let mut page = String::new();
    for Row { gpu, pod, container, part, load } in all {
        let device = format!("gpu=\"{gpu}\",UUID=\"GPU-{gpu}\"");
        let owner = format!("{device},namespace=\"demo\",pod=\"{pod}\",container=\"{container}\"");
        if let Some(load) = load {
            let _ = write!(
                page,
                "podgauge_gpu_active_seconds_total{{{owner}}} {}\n\
                 podgauge_gpu_observed_seconds_total{{{owner}}} {observed}\n\
                 DCGM_FI_DEV_FB_USED{{{owner}}} 4000\n",
                observed * load / 100.0
            );
        }
        let uid = format!("{owner},pod_uid=\"uid-{pod}\"");
        let _ = match part {
            Part::Size(part) => writeln!(page, "podgauge_gpu_allocation{{{uid}}} {part}"),
            Part::Unknown => writeln!(page, "podgauge_gpu_part_unknown{{{uid}}} 1"),
            Part::None => Ok(()),
        };
    }
    for gpu in all.iter().map(|row| row.gpu).collect::<std::collections::BTreeSet<_>>() {
        let device = format!("gpu=\"{gpu}\",UUID=\"GPU-{gpu}\"");
        let on = || all.iter().filter(|row| row.gpu == gpu);
        let _ = write!(
            page,
            "podgauge_gpu_owners{{{device}}} {}\n\
             podgauge_gpu_utilization{{{device}}} {}\n\
             DCGM_FI_DEV_FB_FREE{{{device}}} {}\n",
            on().count(),
            on().filter_map(|row| row.load).sum::<f64>(),
            40000 - 4000 * on().filter(|row| row.load.is_some()).count(),
        );
    }
    page
}

/// Node 0 with these pods; annotations as YAML.
pub(crate) fn scenario(pods: &[(&str, &str)]) -> Vec<String> {
    let mut yaml = "node: gpu-node-0\ngpus: [{}]\npods:\n".to_owned();
    for (pod, annotations) in pods {
        let _ = writeln!(
            yaml,
            "  - {{name: {pod}, uid: uid-{pod}, annotations: {{{annotations}}}, containers: [{{name: main}}, {{name: side}}]}}"
        );
    }
    vec![yaml]
}

const NOT_KNOWN: &str = "the part of its device that it was given is not known";

#[tokio::test]
async fn an_unknown_part_is_left_out_and_the_last_known_one_is_kept() {
    let unknown = vec![row(0, "a", "main", Part::Unknown, 20.0), row(0, "b", "main", Part::Size(0.5), 40.0)];
    let known = vec![row(0, "a", "main", Part::Size(0.25), 20.0), unknown[1].clone()];
    let exporter = Exporter::start(unknown.clone()).await;
    let mut fleet = Fleet::of(&scenario(&[("a", ""), ("b", "")]), &exporter.arguments()).await;
    near(fleet.value("b").await, 80.0);
    // 20 % of the device: of the whole it would be 20, of a quarter 80.
    fleet.refused("a", NOT_KNOWN).await;
    near(fleet.value_of("a", "gpu_utilization_share").await, 20.0);
    near(fleet.value_of("a", "gpu_memory_utilization").await, 10.0);
    let page = fleet.adapter.get(None, "/metrics", headers(&[("authorization", "Bearer sim-admin")])).await;
    let page = page.unwrap().text();
    assert!(page.contains("podgauge_adapter_omissions_total{reason=\"part_unknown\"}"), "{page}");
    assert_eq!(fleet.explained("a", "gpu_utilization").await.unwrap()["omitted"]["reason"], "part_unknown");

    *exporter.rows.lock() = known;
    near(fleet.value("a").await, 80.0);
    // The exporter restarts and does not know any more: of the same pod it was known.
    exporter.restart(unknown);
    let asked = exporter.fake.requests();
    until("eight more scrapes", || async {
        match fleet.ask("a").await {
            Ok(value) => near(value, 80.0),
            Err(text) => assert!(!text.contains(NOT_KNOWN), "{text}"),
        }
        let scrapes = exporter.fake.requests() - asked;
        if scrapes >= 8 { Ok(()) } else { Err(scrapes) }
    })
    .await;
    let device = &fleet.explained("a", "gpu_utilization").await.unwrap()["devices"][0];
    assert_eq!((&device["part"], &device["partSource"]), (&0.25.into(), &"exporter, earlier".into()));
    // An adapter that begins never saw it.
    fleet.restart_adapter(&exporter.arguments()).await;
    near(fleet.value("b").await, 80.0);
    fleet.refused("a", NOT_KNOWN).await;
    near(fleet.value_of("a", "gpu_utilization_share").await, 20.0);
}

#[tokio::test]
async fn one_container_of_unknown_part_makes_the_pods_part_unknown() {
    let exporter = Exporter::start(vec![
        row(0, "a", "main", Part::Size(0.5), 30.0),
        row(0, "a", "side", Part::Unknown, 10.0),
        // Twice the same whole device.
        row(1, "b", "main", Part::Size(1.0), 30.0),
        row(1, "b", "side", Part::Size(1.0), 20.0),
        // Beside the device plugin.
        row(2, "c", "main", Part::None, 35.0),
    ])
    .await;
    let fleet = Fleet::of(&scenario(&[("a", ""), ("b", ""), ("c", "")]), &exporter.arguments()).await;
    near(fleet.value("b").await, 50.0);
    near(fleet.value("c").await, 35.0);
    fleet.refused("a", NOT_KNOWN).await;
    near(fleet.value_of("a", "gpu_utilization_share").await, 40.0);
}

#[tokio::test]
async fn annotations_of_fractional_schedulers_give_the_part() {
    let exporter = Exporter::start(vec![
        row(0, "half", "", Part::None, 30.0),
        row(0, "memory", "", Part::None, 10.0),
        row(1, "hami", "main", Part::None, 20.0),
        row(1, "volcano", "main", Part::None, 10.0),
        row(2, "given", "main", Part::Size(0.5), 20.0),
        row(3, "malformed", "main", Part::None, 20.0),
    ])
    .await;
    let fleet = Fleet::of(
        &scenario(&[
            ("half", "gpu-fraction: '0.5'"),
            ("memory", "gpu-memory: '10000'"),
            ("hami", "hami.io/vgpu-devices-allocated: 'GPU-1,NVIDIA,10000,40:;;'"),
            ("volcano", "volcano.sh/vgpu-ids-new: 'GPU-1,NVIDIA,10000,20:'"),
            // The exporter comes first.
            ("given", "gpu-fraction: '0.25'"),
            ("malformed", "gpu-fraction: '150%'"),
        ]),
        &exporter.arguments(),
    )
    .await;
    for (pod, value) in [("half", 60.0), ("memory", 40.0), ("hami", 50.0), ("volcano", 50.0), ("given", 40.0)]
    {
        near(fleet.value(pod).await, value);
    }
    fleet.refused("malformed", NOT_KNOWN).await;
    let half = fleet.explained("half", "gpu_utilization").await.unwrap();
    assert_eq!(half["devices"][0]["partSource"], "annotation gpu-fraction", "{half}");
    let malformed = fleet.explained("malformed", "gpu_utilization").await.unwrap();
    assert_eq!(
        malformed["ignoredAnnotations"][0]["reason"], "\"150%\" is not a number above 0 and below 1",
        "{malformed}"
    );
}

#[tokio::test]
async fn a_card_that_an_annotation_names_and_no_process_uses_was_not_used_if_that_is_proven() {
    let on =
        |gpu: u8, more: &str| format!("hami.io/vgpu-devices-allocated: 'GPU-{gpu},NVIDIA,10000,50:{more};'");
    let busy = |gpu: u8| row(gpu, "busy", "main", Part::None, 70.0);
    let exporter = Exporter::start(vec![busy(0), row(1, "two", "main", Part::None, 40.0), busy(3)]).await;
    *exporter.extra.lock() =
        "podgauge_attribution_unavailable{gpu=\"3\",UUID=\"GPU-3\",reason=\"mps_server\"} 1\n".to_owned();
    let fleet = Fleet::of(
        &scenario(&[
            ("idle", &on(0, "")),
            ("two", &on(1, ":GPU-0,NVIDIA,10000,50")),
            ("elsewhere", &on(9, "")),
            ("hidden", &on(3, "")),
        ]),
        &exporter.arguments(),
    )
    .await;
    // 40 % of one card is 80 % of what it was given of it; it used nothing of the other.
    near(fleet.value("two").await, 40.0);
    near(fleet.value("idle").await, 0.0);
    fleet.refused("elsewhere", "names GPU-9, which its exporter does not report").await;
    fleet.refused("hidden", "cannot be attributed: mps_server").await;
    // A process of it begins to use the card.
    exporter.rows.lock().push(row(0, "idle", "main", Part::None, 20.0));
    until("its use", || async {
        match fleet.ask("idle").await {
            Ok(value) if (value - 40.0).abs() < 0.05 => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// The real exporter. A pod of its scheduler holds the GPU; the pods that share it are known by
/// their processes alone.
#[tokio::test]
async fn pods_beside_a_reservation_pod_are_measured_by_their_fractions() {
    let cluster = Cluster::start(
        "
gpus: [{memory_mib: 40000}]
pods:
  - {name: gpu-reservation-x, namespace: kai-resource-reservation, containers: [{devices: ['0']}]}
  - {name: half, annotations: {gpu-fraction: '0.5'}, containers: [{processes: [{pid: 4100001, gpu: 0, load: {constant: 30}}]}]}
  - {name: memory, annotations: {gpu-memory: '10000'}, containers: [{processes: [{pid: 4100002, gpu: 0, load: {constant: 15}}]}]}
  - {name: idle, annotations: {gpu-fraction: '0.1'}, containers: [{}]}
",
    )
    .await;
    let aggregator = cluster.aggregator();
    for (pod, truth) in [("half", 60.0), ("memory", 60.0)] {
        until(&format!("{truth} of {pod}"), || async {
            let value = cluster.value(&aggregator, pod, "gpu_utilization").await;
            if (value - truth).abs() <= 8.0 { Ok(()) } else { Err(value) }
        })
        .await;
    }
    let idle = aggregator.metric_request("namespaces/demo/pods/idle/gpu_utilization", vec![]).await.unwrap();
    assert_eq!(idle.status, 404, "{}", idle.text());
    assert!(idle.text().contains("its annotation gpu-fraction names none"), "{}", idle.text());
}

/// The real exporter, from which the driver hides the processes of one GPU: the pod on it works, and
/// must not read 0.
#[tokio::test]
async fn a_card_whose_processes_are_hidden_was_not_proven_to_be_unused() {
    let card = |gpu: u8| format!("GPU-00000000-0000-0000-0000-{gpu:012}");
    let on = |gpu: u8| {
        format!("annotations: {{hami.io/vgpu-devices-allocated: '{},NVIDIA,10000,50:;'}}", card(gpu))
    };
    let process = |pid: u32, gpu: u8| {
        format!("containers: [{{processes: [{{pid: {pid}, gpu: {gpu}, load: {{constant: 40}}}}]}}]")
    };
    let cluster = Cluster::start(&format!(
        "
gpus: [{{}}, {{lists_processes: false}}, {{}}]
pods:
  - {{name: seen, {}, {}}}
  - {{name: hidden, {}, {}}}
  - {{name: idle, {}, containers: [{{}}]}}
",
        on(0),
        process(4100001, 0),
        on(1),
        process(4100002, 1),
        on(2),
    ))
    .await;
    let aggregator = cluster.aggregator();
    until("80 of seen", || async {
        let value = cluster.value(&aggregator, "seen", "gpu_utilization").await;
        if (value - 80.0).abs() <= 4.0 { Ok(()) } else { Err(value) }
    })
    .await;
    assert_eq!(cluster.value(&aggregator, "idle", "gpu_utilization").await, 0.0);
    let hidden =
        aggregator.metric_request("namespaces/demo/pods/hidden/gpu_utilization", vec![]).await.unwrap();
    assert_eq!(hidden.status, 404, "{}", hidden.text());
    assert!(hidden.text().contains("of which its exporter does not know the owners"), "{}", hidden.text());
}

/// The real exporter: a kubelet lists one GPU for two containers of a pod.
#[tokio::test]
async fn a_whole_gpu_of_two_containers_is_one_gpu() {
    let cluster = Cluster::start(
        "
gpus: [{}]
pods:
  - name: a
    containers:
      - {name: x, devices: ['0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 50}}]}
      - {name: y, devices: ['0']}
",
    )
    .await;
    let aggregator = cluster.aggregator();
    let value = until("the value", || async {
        let value = cluster.value(&aggregator, "a", "gpu_utilization").await;
        // The first pages may have seen it idle.
        if (value - 50.0).abs() <= 3.0 { Ok(value) } else { Err(value) }
    })
    .await;
    assert!(value > 40.0);
}
