//! The adapter's requests to exporters and its reading of their pages: the families it needs, compressed; the
//! names of dcgm-exporter 4.9 beside the classic ones; copies, parts and wholes distinguished; and no
//! number that cannot be a measurement.

use podgauge_tests::cluster::{Cluster, number};
use podgauge_tests::fake_exporter::{FakeExporter, Manner};
use podgauge_tests::fleet::{Answered, Fleet, near, scenarios, told};
use podgauge_tests::wait::until;

async fn answered(fleet: &Fleet, pod: &str, metric: &str) -> Answered {
    until(&format!("{metric} of {pod}"), || fleet.ask_metric(pod, metric)).await
}

#[tokio::test]
async fn an_exporter_is_asked_for_the_families_that_are_needed() {
    let modern = FakeExporter::start(vec![told("modern", 10.0)]).await;
    let plain = FakeExporter::start(vec![told("plain", 20.0)]).await;
    plain.behave(Manner::Plain);
    let refusing = [400, 404, 414];
    let mut fakes = Vec::new();
    for status in refusing {
        let fake = FakeExporter::start(vec![told(&format!("no-{status}"), 30.0)]).await;
        fake.behave(Manner::NoQuery(status));
        fakes.push(fake);
    }
    let mut arguments: Vec<String> =
        ["--scrape-interval=500ms", "--window=10s", "--staleness=5s", "--metric=DCGM_FI_DEV_SM_CLOCK"]
            .map(str::to_owned)
            .to_vec();
    let all = [&modern, &plain, &fakes[0], &fakes[1], &fakes[2]];
    arguments.extend(all.iter().enumerate().map(|(node, exporter)| {
        let query = if node == 0 { "/metrics?collect=all" } else { "" };
        format!("--exporter-url=gpu-node-{node}=http://{}{query}", exporter.address)
    }));
    let pods = ["modern", "plain", "no-400", "no-404", "no-414"];
    let nodes: Vec<[&str; 1]> = pods.map(|pod| [pod]).to_vec();
    let nodes: Vec<&[&str]> = nodes.iter().map(<[&str; 1]>::as_slice).collect();
    let fleet = Fleet::launch(&scenarios(&nodes), &arguments).await;
    for (pod, load) in pods.into_iter().zip([10.0, 20.0, 30.0, 30.0, 30.0]) {
        near(fleet.value(pod).await, load);
    }
    let head = modern.last_head();
    assert!(head.starts_with("get /metrics?collect=all&name[]="), "{head}");
    for family in [
        "podgauge_gpu_active_seconds_total",
        "podgauge_gpu_recent_observed_seconds",
        "podgauge_gpu_part_unknown",
        "dcgm_fi_dev_gpu_util",
        "dcgm_fi_dev_gpu_util_ratio",
        "dcgm_fi_dev_sm_clock",
        "dcgm_fi_dev_sm_clock_hertz",
    ] {
        assert!(
            head.contains(&format!("name[]={family}&")) || head.contains(&format!("name[]={family} ")),
            "{head}"
        );
    }
    assert!(!head.contains("mem_clock"), "{head}");
    assert!(head.contains("accept-encoding: gzip"), "{head}");
    // One that refused is asked for its page from then on, and that is said once.
    until("some more scrapes", || async {
        let requests: Vec<usize> = fakes.iter().map(FakeExporter::requests).collect();
        if requests.iter().all(|requests| *requests >= 6) { Ok(()) } else { Err(requests) }
    })
    .await;
    for (at, (fake, status)) in fakes.iter().zip(refusing).enumerate() {
        let heads = fake.heads();
        assert_eq!(heads.iter().filter(|head| head.contains("name[]=")).count(), 1, "{heads:?}");
        let said = format!(
            "exporter on node gpu-node-{} at http://{}/metrics answers {status}",
            at + 2,
            fake.address
        );
        fleet.adapter.program.logs(&said, 1).await;
    }
    // Restarted, it may be another version.
    let before = fakes[0].heads().len();
    fakes[0].behave(Manner::Raw(Vec::new()));
    until("a scrape that fails", || async {
        let requests = fakes[0].requests();
        if requests > before { Ok(()) } else { Err(requests) }
    })
    .await;
    fakes[0].behave(Manner::Page);
    until("families to be asked for again", || async {
        let head = fakes[0].last_head();
        if head.contains("name[]=") { Ok(()) } else { Err(head) }
    })
    .await;
    near(fleet.value("no-400").await, 30.0);
}

/// A page of NVIDIA's exporter: families with the value of pod `pod` on its own GPU.
fn page_of(pod: &str, families: &[(&str, f64)]) -> String {
    let line = |(family, value): &(&str, f64)| {
        format!(
            "# TYPE {family} gauge\n{family}{{gpu=\"0\",UUID=\"GPU-{pod}\",namespace=\"demo\",pod=\"{pod}\",container=\"main\"}} {value}\n"
        )
    };
    families.iter().map(line).collect()
}

const MIB: f64 = 1_048_576.0;

/// Exporters with gauges only, one of each version and one with both names of everything.
#[tokio::test]
async fn names_of_4_9_mean_what_they_say_beside_the_classic_ones() {
    let classic = [
        ("DCGM_FI_DEV_GPU_UTIL", 90.0),
        ("DCGM_FI_DEV_FB_USED", 30_000.0),
        ("DCGM_FI_DEV_FB_FREE", 50_000.0),
        ("DCGM_FI_DEV_FB_RESERVED", 0.0),
        ("DCGM_FI_DEV_POWER_USAGE", 350.0),
        ("DCGM_FI_DEV_SM_CLOCK", 1980.0),
        ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 0.25),
    ];
    let newer = [
        ("DCGM_FI_DEV_GPU_UTIL_RATIO", 0.9),
        ("DCGM_FI_DEV_FB_USED_BYTES", 30_000.0 * MIB),
        ("DCGM_FI_DEV_FB_FREE_BYTES", 50_000.0 * MIB),
        ("DCGM_FI_DEV_FB_RESERVED_BYTES", 0.0),
        ("DCGM_FI_DEV_FB_CAPACITY_BYTES", 80_000.0 * MIB),
        ("DCGM_FI_DEV_BOARD_POWER_WATTS", 350.0),
        ("DCGM_FI_DEV_SM_CLOCK_HERTZ", 1.98e9),
        ("DCGM_FI_PROF_TENSOR_UTIL_RATIO", 0.25),
    ];
    let pages = [
        page_of("old", &classic),
        page_of("new", &newer),
        page_of("both", &newer) + &page_of("both", &classic),
        // Less than one percent: by its size it could be a ratio.
        page_of("idle", &[("DCGM_FI_DEV_GPU_UTIL", 0.9)]),
    ];
    let mut exporters = Vec::new();
    for page in pages {
        exporters.push(FakeExporter::start_with(move || page.clone()).await);
    }
    let addresses: Vec<_> =
        exporters.iter().enumerate().map(|(node, exporter)| (node, "http", exporter.address)).collect();
    let metrics = [
        "DCGM_FI_DEV_SM_CLOCK",
        "DCGM_FI_DEV_SM_CLOCK_HERTZ",
        "DCGM_FI_DEV_GPU_UTIL",
        "DCGM_FI_DEV_GPU_UTIL_RATIO",
        "DCGM_FI_DEV_FB_USED_BYTES",
    ];
    let flags = metrics.map(|metric| format!("--metric={metric}"));
    let pods: [&[&str]; 4] = [&["old"], &["new"], &["both"], &["idle"]];
    let fleet = Fleet::start_with(&pods, &addresses, &flags).await;
    for (metric, value) in [
        ("gpu_utilization", 90.0),
        ("gpu_device_utilization", 90.0),
        ("gpu_memory_used_bytes", 30_000.0 * MIB),
        ("gpu_memory_utilization", 37.5),
        ("gpu_power_watts", 350.0),
        ("gpu_tensor_active", 25.0),
        ("DCGM_FI_DEV_SM_CLOCK", 1980.0),
        ("DCGM_FI_DEV_SM_CLOCK_HERTZ", 1.98e9),
        ("DCGM_FI_DEV_GPU_UTIL", 90.0),
        ("DCGM_FI_DEV_GPU_UTIL_RATIO", 0.9),
        ("DCGM_FI_DEV_FB_USED_BYTES", 30_000.0 * MIB),
    ] {
        for pod in ["old", "new", "both"] {
            let found = answered(&fleet, pod, metric).await.value;
            assert!((found / value - 1.0).abs() < 1e-6, "{metric} of {pod}: {found}, not {value}");
        }
    }
    near(answered(&fleet, "idle", "gpu_utilization").await.value, 0.9);
    near(answered(&fleet, "idle", "DCGM_FI_DEV_GPU_UTIL_RATIO").await.value, 0.009);
}

#[tokio::test]
async fn what_cannot_be_a_measurement_is_no_value() {
    let page = page_of(
        "a",
        &[
            ("DCGM_FI_DEV_GPU_UTIL", 50.0),
            // All ones of 32 bits, mW.
            ("DCGM_FI_DEV_POWER_USAGE", 4_294_967.295),
            ("DCGM_FI_DEV_FB_USED", 30_000.0),
            // The rest of a smaller total, without a sign.
            ("DCGM_FI_DEV_FB_FREE", 17_592_186_044_415.0),
        ],
    );
    let more = page_of(
        "b",
        &[
            ("DCGM_FI_DEV_GPU_UTIL", 50.0),
            ("DCGM_FI_DEV_BOARD_POWER_WATTS", 1e6),
            ("DCGM_FI_DEV_FB_USED", 90_000.0),
            ("DCGM_FI_DEV_FB_FREE", 1.0),
            ("DCGM_FI_DEV_FB_TOTAL", 81_559.0),
        ],
    );
    let (a, b) = (
        FakeExporter::start_with(move || page.clone()).await,
        FakeExporter::start_with(move || more.clone()).await,
    );
    let fleet = Fleet::start(&[&["a"], &["b"]], &[(0, "http", a.address), (1, "http", b.address)]).await;
    for pod in ["a", "b"] {
        near(fleet.value(pod).await, 50.0);
        for metric in ["gpu_power_watts", "gpu_memory_utilization"] {
            let text = fleet.ask_metric(pod, metric).await.unwrap_err();
            assert!(text.contains("its exporter gives no "), "{metric} of {pod}: {text}");
        }
    }
    assert!(fleet.own_metric("podgauge_adapter_samples_dropped_total").await.unwrap() > 0.0);
    // The whole device cannot be used for more than it has either.
    assert!(fleet.ask_path("nodes/gpu-node-1/gpu_memory_used_bytes").await.is_err());
}

const VIRTUAL: &str = "
gpus: [{memory_mib: 80000}, {memory_mib: 80000, replicas: 2}]
pods:
  - {name: whole, containers: [{name: main, devices: [\"0\"], processes: [{pid: 4100001, gpu: 0, memory_mib: 30000}]}]}
  - {name: left, containers: [{name: main, devices: [\"1::0\"], processes: [{pid: 4100002, gpu: 1, memory_mib: 20000}]}]}
  - {name: right, containers: [{name: main, devices: [\"1::1\"], processes: [{pid: 4100003, gpu: 1, memory_mib: 10000}]}]}
";

/// With `--kubernetes-virtual-gpus` a page has the device's value and a copy of it for each container
/// and replica.
#[tokio::test]
async fn a_device_and_its_copies_are_not_added_up() {
    let cluster = Cluster::start_exporter(VIRTUAL, |command| {
        command.arg("--kubernetes-virtual-gpus");
    })
    .await;
    let aggregator = cluster.aggregator();
    let exporter = cluster.exporter.as_ref().unwrap();
    let memory = async |gpu: &str| {
        let gpu = ("gpu", gpu);
        exporter
            .until("memory", |page| {
                let of = |family: &str| -> Result<f64, String> {
                    let all = page.all(family, &[gpu]);
                    Ok(all.first().ok_or_else(|| page.text.clone())?.value)
                };
                let used = page.want("DCGM_FI_DEV_FB_USED", &[gpu, ("pod", "")])?;
                Ok((used, used + of("DCGM_FI_DEV_FB_FREE")? + of("DCGM_FI_DEV_FB_RESERVED")?))
            })
            .await
    };
    for (pod, gpu) in [("whole", "0"), ("left", "1"), ("right", "1")] {
        let (device, total) = memory(gpu).await;
        assert!(device >= 30_000.0 && total >= 79_000.0, "{device} of {total}");
        let used = exporter
            .until("the pod's memory", |page| {
                let all = page.all("DCGM_FI_DEV_FB_USED", &[("pod", pod)]);
                all.first().map(|sample| sample.value).ok_or_else(|| page.text.clone())
            })
            .await;
        let percent = cluster.value(&aggregator, pod, "gpu_memory_utilization").await;
        assert!((percent - 100.0 * used / total).abs() < 0.01, "{pod}: {percent} %, {used} of {total} MiB");
    }
    let (first, _) = memory("0").await;
    let (second, _) = memory("1").await;
    let path = "nodes/gpu-node-0/gpu_memory_used_bytes";
    let answer = until(path, || async {
        let answer = aggregator.metric_request(path, vec![]).await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(answer) } else { Err(answer.text()) }
    })
    .await;
    let node = number(&answer.json().unwrap()["items"][0]["value"]);
    assert!(
        (node - MIB * (first + second) / 2.0).abs() < MIB,
        "{node}: the mean of {first} and {second} MiB"
    );
    assert!(cluster.value(&aggregator, "whole", "gpu_power_watts").await > 0.0);
    for pod in ["left", "right"] {
        let path = format!("namespaces/demo/pods/{pod}/gpu_power_watts");
        let text = aggregator.metric_request(&path, vec![]).await.unwrap().text();
        assert!(text.contains("shared by 2 pods"), "{text}");
    }
}

/// podgauge's exporter and NVIDIA's on one node: NVIDIA's has the whole device's use for each pod.
#[tokio::test]
async fn what_podgauges_exporter_leaves_out_is_not_taken_from_another_page() {
    let shared = |pod: &str| {
        format!(
            "podgauge_gpu_allocation{{gpu=\"0\",UUID=\"GPU-0\",namespace=\"demo\",pod=\"{pod}\",container=\"main\",pod_uid=\"uid-{pod}\"}} 0.5\n"
        )
    };
    let ours = shared("a")
        + &shared("b")
        + "podgauge_attribution_unavailable{gpu=\"0\",UUID=\"GPU-0\",reason=\"mps_server\"} 1\n";
    let ours = FakeExporter::start_with(move || ours.clone()).await;
    // Only one of the pods has labels there, and one that podgauge's does not know.
    let theirs =
        page_of("a", &[("DCGM_FI_DEV_GPU_UTIL", 85.0)]) + &page_of("c", &[("DCGM_FI_DEV_GPU_UTIL", 40.0)]);
    let theirs = FakeExporter::start_with(move || theirs.clone()).await;
    let exporters = [(0, "http", ours.address), (0, "http", theirs.address)];
    let fleet = Fleet::start(&[&["a", "b", "c"]], &exporters).await;
    near(fleet.value("c").await, 40.0);
    for _ in 0..5 {
        let text = fleet.ask("a").await.unwrap_err();
        assert!(text.contains("cannot be attributed: mps_server"), "{text}");
    }
}

/// The shipped exporter under the names of 4.9.
#[tokio::test]
async fn the_profile_of_4_9_is_read_with_its_units() {
    let cluster = Cluster::start_exporter(
        "gpus: [{load: {constant: 40}, memory_mib: 80000}]
pods: [{name: a, containers: [{devices: ['0'], processes: [{pid: 4100001, gpu: 0, memory_mib: 30000}]}]}]",
        |command| {
            command.args(["--metric-names", "4.9"]);
        },
    )
    .await;
    let aggregator = cluster.aggregator();
    let used = cluster.value(&aggregator, "a", "gpu_memory_used_bytes").await;
    let page = cluster.exporter.as_ref().unwrap().page().await;
    let value = |family: &str| page.value(family, &[("pod", "a")]).unwrap();
    assert!((used / value("DCGM_FI_DEV_FB_USED_BYTES") - 1.0).abs() < 1e-6, "{used}\n{}", page.text);
    let percent = cluster.value(&aggregator, "a", "gpu_memory_utilization").await;
    assert!((percent - 37.5).abs() < 1.0, "{percent}");
    let watts = cluster.value(&aggregator, "a", "gpu_power_watts").await;
    assert!((60.0..=700.0).contains(&watts), "{watts}");
}
