//! The integrals: active over observed seconds is the mean of what really was.

use std::time::{SystemTime, UNIX_EPOCH};

use podgauge_sim_nvml::scenario::Scenario;
use podgauge_tests::checkout;
use podgauge_tests::node::Node;
use podgauge_tests::page::Page;
use podgauge_tests::program::Exporter;
use podgauge_tests::wait::{LIMIT, until_within};

const ACTIVE: &str = "podgauge_gpu_active_seconds_total";
const OBSERVED: &str = "podgauge_gpu_observed_seconds_total";
/// A page is at most so old, seconds: readings that are older are not on it.
const PAGE_AGE: f64 = 5.0;

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn counters(page: &Page, gpu: &str) -> (f64, f64) {
    let value = |name| {
        page.value(name, &[("gpu", gpu)]).unwrap_or_else(|| panic!("no {name} of {gpu}\n{}", page.text))
    };
    (value(ACTIVE), value(OBSERVED))
}

/// A first page on which every GPU has begun to be observed.
async fn first_page(exporter: &Exporter) -> Page {
    exporter
        .until("observed seconds", |page| page.want(OBSERVED, &[("gpu", "0")]).map(|_| page.clone()))
        .await
}

/// Every run of the recording of a real H100 is played once through the C ABI, side by side.
#[tokio::test]
async fn a_recorded_gpu_gives_its_plain_mean() {
    let recording = checkout("tests/data/h100-utilization.json");
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&recording).unwrap()).unwrap();
    let runs: Vec<(String, Vec<f64>)> = json["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| {
            let slots = run["utilization_sample_buffer"].as_array().unwrap();
            let percents = slots.iter().map(|slot| slot[1].as_f64().unwrap()).collect();
            (run["load"].as_str().unwrap().to_owned(), percents)
        })
        .collect();
    assert_eq!(runs.len(), 7);
    // Far enough away for the exporter to be there before the first slot, on a busy machine later.
    let mut ahead = 4.0;
    let (start, exporter, before, _node) = loop {
        let start = now_s() + ahead;
        let replay = |(run, _): &(String, Vec<f64>)| {
            format!("  - replay: {{file: {}, run: {run:?}, start: {start}}}\n", recording.display())
        };
        let gpus: String = runs.iter().map(replay).collect();
        let node = Node::new(&format!("gpus:\n{gpus}"));
        let exporter = node.exporter().await;
        let before = first_page(&exporter).await;
        if now_s() < start {
            break (start, exporter, before, node);
        }
        ahead *= 3.0;
        assert!(ahead < 200.0, "the exporter always comes too late for the first slot");
    };
    // Once every slot of every run has been observed, and nothing after them is known, it is over.
    let after = until_within(LIMIT, "the recording's end", || async {
        let page = exporter.page().await;
        let done =
            (0..runs.len()).all(|gpu| counters(&page, &gpu.to_string()).1 >= 8.5) && now_s() > start + 13.0;
        if done { Ok(page) } else { Err(page.text) }
    })
    .await;
    for (gpu, (run, percents)) in runs.iter().enumerate() {
        let gpu = gpu.to_string();
        let ((active_0, observed_0), (active_1, observed_1)) =
            (counters(&before, &gpu), counters(&after, &gpu));
        let mean = percents.iter().sum::<f64>() / percents.len() as f64;
        let measured = (active_1 - active_0) / (observed_1 - observed_0) * 100.0;
        let length = percents.len() as f64 * 0.2;
        assert!((measured - mean).abs() <= 0.5, "{run}: {measured:.2} measured, {mean:.2} recorded");
        assert!(
            (observed_1 - observed_0 - length).abs() <= 0.3,
            "{run}: {} s of {length} s",
            observed_1 - observed_0
        );
    }
}

/// A load that changes faster than a scrape: snapshots alias, integrals do not.
#[tokio::test]
async fn a_square_wave_gives_its_mean_over_any_interval() {
    let yaml = "gpus: [{load: {square: {low: 20, high: 60, period_s: 2}}}, {load: {constant: 37}}]";
    let node = Node::new(yaml);
    let exporter = node.exporter().await;
    first_page(&exporter).await;
    let scenario = Scenario::parse(yaml).unwrap();
    for length in [16.0, 6.0] {
        let before = exporter.page().await;
        let from = now_s();
        let (_, observed_0) = counters(&before, "0");
        let after = exporter
            .until("a span of observation", |page| {
                let (_, observed) = counters(page, "0");
                if observed - observed_0 >= length { Ok(page.clone()) } else { Err(observed.to_string()) }
            })
            .await;
        for (gpu, index) in [("0", 0), ("1", 1)] {
            let ((a0, o0), (a1, o1)) = (counters(&before, gpu), counters(&after, gpu));
            let measured = (a1 - a0) / (o1 - o0) * 100.0;
            // Whole periods: the truth does not depend on where the span begins.
            let truth = scenario.mean_load(index, from, from + 2.0).unwrap();
            // A span of slots is a whole number of periods but for one tick at either end.
            let slack = if index == 0 { 40.0 / length } else { 0.5 };
            assert!((measured - truth).abs() <= slack, "gpu {gpu}: {measured} measured, {truth} true");
            assert!(o1 - o0 <= now_s() - from + PAGE_AGE, "no more is observed than time has passed");
        }
    }
    let page = exporter.page().await;
    let gauge = page.value("podgauge_gpu_utilization", &[("gpu", "1")]).unwrap();
    assert!((gauge - 37.0).abs() <= 0.5, "{gauge}");
    assert_eq!(page.value("DCGM_FI_DEV_GPU_UTIL", &[("gpu", "1")]), Some(gauge));
}

/// The ring falls dry while the GPU answers: an idle GPU reads 0, not unknown, and time counts once.
#[tokio::test]
async fn a_dry_ring_is_replaced_by_readings() {
    let node = Node::new("gpus: [{load: {constant: 50}, errors: {nvmlDeviceGetSamples: NOT_FOUND}}]");
    let from = now_s();
    let exporter = node.exporter().await;
    let page = exporter
        .until("ten observed seconds", |page| match page.want(OBSERVED, &[])? {
            observed if observed >= 10.0 => Ok(page.clone()),
            observed => Err(observed.to_string()),
        })
        .await;
    let (active, observed) = counters(&page, "0");
    assert!(observed <= now_s() - from + 1.0, "{observed}");
    assert!((active / observed * 100.0 - 50.0).abs() <= 0.5, "{active} of {observed}");
    node.play("gpus: [{load: {constant: 50}}]");
    let then = now_s();
    let later = exporter
        .until("the ring's return", |page| match page.want(OBSERVED, &[])? {
            more if more >= observed + 20.0 => Ok(more),
            more => Err(more.to_string()),
        })
        .await;
    assert!(later - observed <= now_s() - then + PAGE_AGE, "{} in {}", later - observed, now_s() - then);
}
