//! Shared GPUs whose process samples come late, are lacking or are of another clock: through both
//! programs, no pod's number is wrong, and one that is not known is left out with the reason.

use std::time::{Duration, Instant};

use podgauge_sim::aggregator::Aggregator;
use podgauge_tests::cluster::{Cluster, number};
use podgauge_tests::wait::{until, until_within};

/// Two pods with a half each: 40 and 20 % of the device are 80 and 40 % of what they were given.
const SHARED: &str = "
gpus: [{replicas: 2GPU}]
pods:
  - {name: a, containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 40}}]}]}
  - {name: b, containers: [{devices: ['0::1'], processes: [{pid: 4100002, gpu: 0, load: {constant: 20}}]}]}
";

fn shared(gpu: &str) -> String {
    SHARED.replace("GPU", gpu)
}

/// The answer for a pod: its value, or the text of the 404.
async fn answer(aggregator: &Aggregator, pod: &str) -> Result<f64, String> {
    let path = format!("namespaces/demo/pods/{pod}/gpu_utilization");
    let answer = aggregator.metric_request(&path, vec![]).await.unwrap();
    match answer.status.as_u16() {
        200 => Ok(number(&answer.json().unwrap()["items"][0]["value"])),
        _ => Err(answer.text()),
    }
}

/// Asks for so long, and checks that every value is the truth within `tolerance`.
async fn is_true_for(aggregator: &Aggregator, time: Duration, truth: &[(&str, f64)], tolerance: f64) {
    let begin = Instant::now();
    let answered = until_within(time + Duration::from_secs(40), "the time to pass", || async {
        let mut answered = 0;
        for (pod, truth) in truth {
            if let Ok(value) = answer(aggregator, pod).await {
                assert!((value - truth).abs() <= tolerance, "{pod}: {value}, {truth} true");
                answered += 1;
            }
        }
        if begin.elapsed() < time { Err(()) } else { Ok(answered) }
    })
    .await;
    assert_eq!(answered, truth.len(), "every pod has a value in the end");
}

const TRUTH: [(&str, f64); 2] = [("a", 80.0), ("b", 40.0)];

async fn values(cluster: &Cluster, aggregator: &Aggregator) {
    for (pod, _) in TRUTH {
        cluster.value(aggregator, pod, "gpu_utilization").await;
    }
}

#[tokio::test]
async fn without_a_ring_the_samples_of_processes_divide_the_readings() {
    let cluster = Cluster::start(&shared(", errors: {nvmlDeviceGetSamples: NOT_SUPPORTED}")).await;
    let aggregator = cluster.aggregator();
    values(&cluster, &aggregator).await;
    is_true_for(&aggregator, Duration::from_secs(10), &TRUTH, 8.0).await;
}

/// The wall clock, and the driver's with it, is set back by an hour.
#[tokio::test]
async fn a_driver_clock_that_goes_back_takes_no_value_away() {
    let cluster = Cluster::start(&shared("")).await;
    let aggregator = cluster.aggregator();
    values(&cluster, &aggregator).await;
    cluster.node.play(&format!("driver_clock_s: -3600{}", shared("")));
    is_true_for(&aggregator, Duration::from_secs(20), &TRUTH, 8.0).await;
    // It counts on by the new clock: what the counters gain is the loads.
    let page = cluster.exporter.as_ref().unwrap().page().await;
    let active = |page: &podgauge_tests::page::Page, pod: &str| {
        page.value("podgauge_gpu_active_seconds_total", &[("pod", pod)]).unwrap()
    };
    let observed = |page: &podgauge_tests::page::Page, pod: &str| {
        page.value("podgauge_gpu_observed_seconds_total", &[("pod", pod)]).unwrap()
    };
    let later = cluster
        .exporter
        .as_ref()
        .unwrap()
        .until("eight seconds more", |later| {
            let gained = observed(later, "a") - observed(&page, "a");
            if gained >= 8.0 { Ok(later.clone()) } else { Err(gained.to_string()) }
        })
        .await;
    for (pod, truth) in [("a", 40.0), ("b", 20.0)] {
        let gained = observed(&later, pod) - observed(&page, pod);
        let share = (active(&later, pod) - active(&page, pod)) / gained * 100.0;
        assert!((share - truth).abs() <= 4.0, "{pod}: {share}, {truth} true");
    }
}

/// Both pods use the GPU in every other second alone: an owner's busy slots may not be left out while
/// its idle ones count. A late call returns one of several slots of a.
const IN_WAVES: &str = "
gpus: [{replicas: 2}]
pods:
  - {name: a, containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {square: {low: 0, high: 80, period_s: 2}}}]}]}
  - {name: b, containers: [{devices: ['0::1'], processes: [{pid: 4100002, gpu: 0, load: {square: {low: 0, high: 10, period_s: 2}}}]}]}
";

/// The exporter gets no CPU for most of each second.
#[tokio::test]
async fn an_exporter_without_time_to_ask_is_not_biased() {
    const TRUTH: [(&str, f64); 2] = [("a", 80.0), ("b", 10.0)];
    let cluster = Cluster::start(IN_WAVES).await;
    let aggregator = cluster.aggregator();
    values(&cluster, &aggregator).await;
    let program = &cluster.exporter.as_ref().unwrap().program;
    let mut judged = 0;
    for round in 0..25 {
        program.signal(libc::SIGSTOP);
        tokio::time::sleep(Duration::from_millis(700)).await;
        program.signal(libc::SIGCONT);
        tokio::time::sleep(Duration::from_millis(300)).await;
        for (pod, truth) in TRUTH {
            // A value is made of ten seconds: before that they may not be whole waves.
            match answer(&aggregator, pod).await {
                Ok(value) if round >= 12 => {
                    assert!((value - truth).abs() <= 12.0, "{pod}: {value}, {truth} true");
                    judged += 1;
                }
                Err(text) if round >= 12 => judged += u32::from(text.contains("samples_missed")),
                _ => {}
            }
        }
    }
    assert!(judged > 0, "neither a value nor a reason");
    // Where too many samples were missed there are none for a while.
    values(&cluster, &aggregator).await;
    is_true_for(&aggregator, Duration::from_secs(3), &TRUTH, 12.0).await;
}

/// The driver returns no sample of any process, from some moment on.
#[tokio::test]
async fn without_any_sample_the_counters_stand_still_and_the_reason_is_there() {
    let cluster = Cluster::start(&shared("")).await;
    let aggregator = cluster.aggregator();
    values(&cluster, &aggregator).await;
    cluster.node.play(&shared(", errors: {nvmlDeviceGetProcessUtilization: NOT_FOUND}"));
    let exporter = cluster.exporter.as_ref().unwrap();
    let page = exporter
        .until("the reason", |page| {
            let reason = [("reason", "samples_missed")];
            page.want("podgauge_attribution_unavailable", &reason).map(|_| page.clone())
        })
        .await;
    let observed = |page: &podgauge_tests::page::Page, pod: &str| {
        page.value("podgauge_gpu_observed_seconds_total", &[("pod", pod)])
    };
    // Their last values stand, and then they are left out: never 0.
    until("both to be left out", || async {
        for (pod, truth) in TRUTH {
            match answer(&aggregator, pod).await {
                Ok(value) => {
                    assert!((value - truth).abs() <= 8.0, "{pod}: {value}, {truth} true");
                    return Err(value.to_string());
                }
                Err(text) if text.contains("samples_missed") => {}
                Err(text) => return Err(text),
            }
        }
        Ok(())
    })
    .await;
    let later = exporter.page().await;
    for (pod, _) in TRUTH {
        assert_eq!(observed(&later, pod), observed(&page, pod), "{}", later.text);
    }
}

/// A third of the use is of processes that end before anybody can look them up.
#[tokio::test]
async fn processes_that_are_gone_before_they_are_looked_up_cost_nobody_a_value() {
    let cluster = Cluster::start(&shared(", passing: {constant: 30}")).await;
    let aggregator = cluster.aggregator();
    values(&cluster, &aggregator).await;
    is_true_for(&aggregator, Duration::from_secs(12), &TRUTH, 10.0).await;
    let page = cluster.exporter.as_ref().unwrap().page().await;
    assert_eq!(page.all("podgauge_attribution_unavailable", &[]).len(), 0, "{}", page.text);
    let rest = page.value("DCGM_FI_DEV_GPU_UTIL", &[("pod", "")]).unwrap();
    assert!((rest - 30.0).abs() <= 8.0, "{rest} without labels, 30 true\n{}", page.text);
}
