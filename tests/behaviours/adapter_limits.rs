//! The series kept of exporters are bounded for all of them together, and what has no room is said and
//! never half of a number.

use std::sync::Arc;
use std::time::Duration;

use podgauge_tests::fake_exporter::{FakeExporter, Manner};
use podgauge_tests::fleet::{Fleet, near, scenarios, told};
use podgauge_tests::wait::{until, until_within};

const LIARS: usize = 16;
/// As many as one page may have.
const OWNERS: usize = 8192;

/// Pages that each exporter shows before it begins with the first again.
const ROUNDS: usize = 4;
/// Bytes of the program's own file in memory where it is optimized.
const PROGRAM: u64 = 13 << 20;

/// A page of owners that no page before had.
fn lies(round: usize, uid_bytes: usize) -> String {
    let uid = "u".repeat(uid_bytes);
    let line = |i: usize| {
        format!(
            "podgauge_gpu_allocation{{gpu=\"0\",UUID=\"GPU-0\",namespace=\"demo\",pod=\"r{round}-{i}\",container=\"main\",pod_uid=\"{uid}{i}\"}} 1\n"
        )
    };
    (0..OWNERS).map(line).collect()
}

/// Sixteen pages of up to 3 MB each, three times: that takes its time in programs that are not
/// optimized.
#[tokio::test]
async fn exporters_that_lie_take_their_share_and_no_more() {
    let honest = [told("a", 30.0), told("b", 60.0)];
    let mut exporters = Vec::new();
    for told in &honest {
        exporters.push(FakeExporter::start(vec![told.clone()]).await);
    }
    // Half of them with long UIDs, half with many short ones.
    let pages = [200, 20].map(|uid_bytes| {
        let pages: Vec<String> = (0..ROUNDS).map(|round| lies(round, uid_bytes)).collect();
        Arc::new(pages)
    });
    for liar in 0..LIARS {
        let pages = Arc::clone(&pages[liar % 2]);
        let mut round = 0;
        let fake = FakeExporter::start_with(move || {
            round += 1;
            pages[round % ROUNDS].clone()
        })
        .await;
        fake.behave(Manner::Plain);
        exporters.push(fake);
    }
    let mut arguments: Vec<String> =
        ["--scrape-interval=10s", "--window=20s", "--staleness=30s"].map(str::to_owned).to_vec();
    arguments.extend(
        exporters
            .iter()
            .enumerate()
            .map(|(node, exporter)| format!("--exporter-url=gpu-node-{node}=http://{}", exporter.address)),
    );
    let names: Vec<String> = (0..LIARS).map(|at| format!("lied-about-{at}")).collect();
    let mut pods: Vec<Vec<&str>> = vec![vec!["a"], vec!["b"]];
    pods.extend(names.iter().map(|name| vec![name.as_str()]));
    let pods: Vec<&[&str]> = pods.iter().map(Vec::as_slice).collect();
    let fleet = Fleet::launch(&scenarios(&pods), &arguments).await;
    near(fleet.value("a").await, 30.0);
    near(fleet.value("b").await, 60.0);
    until_within(Duration::from_secs(300), "three pages of each", || async {
        let mut read = Vec::new();
        for node in 2..LIARS + 2 {
            let name =
                format!("podgauge_adapter_scrapes_total{{exporter=\"gpu-node-{node}\",result=\"success\"}}");
            read.push(fleet.own_metric(&name).await.unwrap_or(0.0));
        }
        // The honest ones have all they need meanwhile.
        near(fleet.value("a").await, 30.0);
        near(fleet.value("b").await, 60.0);
        if read.iter().all(|read| *read >= 3.0) { Ok(()) } else { Err(read) }
    })
    .await;
    // Unoptimized, the program itself is larger than all that is kept.
    let (most, file) = (fleet.memory_line("VmHWM:"), fleet.memory_line("RssFile:"));
    let most = (most - file + PROGRAM) >> 20;
    assert!(most < 128, "{most} MiB resident at most, {} MiB of the program's file", file >> 20);
    let (used, max) = (
        fleet.own_metric("podgauge_adapter_series_used").await.unwrap(),
        fleet.own_metric("podgauge_adapter_series_max").await.unwrap(),
    );
    assert!(max == 200_000.0 && used <= 1.1 * max, "{used} of {max}");
    for node in 0..2 {
        assert_eq!(
            fleet
                .own_metric(&format!("podgauge_adapter_pages_cut_total{{exporter=\"gpu-node-{node}\""))
                .await,
            None
        );
    }
    assert!(
        fleet.own_metric("podgauge_adapter_pages_cut_total{exporter=\"gpu-node-2\"").await.unwrap() >= 1.0
    );
    fleet.adapter.program.logs("share of --max-series", LIARS).await;
    let log = fleet.adapter.program.log();
    for node in 2..LIARS + 2 {
        let said = log.lines().filter(|line| {
            line.contains(&format!("exporter on node gpu-node-{node} at"))
                && line.contains("share of --max-series")
        });
        assert_eq!(said.count(), 1, "{log}");
    }
}

/// More devices than are read: the rest is left out, and every pod of theirs, with the reason.
#[tokio::test]
async fn a_page_with_too_many_devices_says_so() {
    const DEVICES: usize = 4096;
    let line = |device: usize, pod: &str| {
        format!(
            "DCGM_FI_DEV_GPU_UTIL{{gpu=\"{device}\",UUID=\"GPU-{device}\",namespace=\"demo\",pod=\"{pod}\",container=\"main\"}} 50\n"
        )
    };
    let mut page: String = (0..DEVICES - 1).map(|device| line(device, &format!("pod-{device}"))).collect();
    page = line(DEVICES, "first") + &line(DEVICES + 2, "torn") + &page[..];
    page += &(line(DEVICES + 3, "last") + &line(DEVICES + 4, "torn"));
    let exporter = FakeExporter::start_with(move || page.clone()).await;
    let pods: [&[&str]; 1] = [&["first", "torn", "last"]];
    // A busy machine takes more than a second to read so long a page.
    let times = ["--scrape-interval=5s", "--window=20s", "--staleness=30s"].map(str::to_owned);
    let fleet = Fleet::start_with(&pods, &[(0, "http", exporter.address)], &times).await;
    near(fleet.value("first").await, 50.0);
    // One has no device that is kept, the other a half of its devices.
    for pod in ["last", "torn"] {
        fleet.refused(pod, "more than 4096 devices on its page").await;
        let explained = fleet.explained(pod, "gpu_utilization").await.unwrap();
        assert_eq!(explained["omitted"]["reason"], "page_limit", "{explained}");
        assert!(explained["exporters"][0]["limit"].as_str().unwrap().contains("4096 devices"), "{explained}");
    }
    let node = fleet.ask_path("nodes/gpu-node-0/gpu_utilization").await.unwrap_err();
    assert!(node.contains("more than 4096 devices"), "{node}");
    let asked = exporter.requests();
    until("some more pages", || async {
        let requests = exporter.requests();
        if requests > asked + 3 { Ok(()) } else { Err(requests) }
    })
    .await;
    fleet.adapter.program.logs("more than 4096 devices on its page", 1).await;
    assert!(fleet.own_metric("podgauge_adapter_omissions_total{reason=\"page_limit\"}").await.unwrap() > 0.0);
}
