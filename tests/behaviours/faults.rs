//! Whatever breaks around the exporter: every scrape is answered, and all comes back by itself.

use std::time::Duration;

use podgauge_tests::node::Node;
use podgauge_tests::page::Page;
use podgauge_tests::program::Exporter;
use podgauge_tests::wait::until;

const POD: &str = "gpus: [{load: {constant: 50}}]\npods: [{name: a, containers: [{devices: [\"0\"]}]}]";

fn labelled(page: &Page) -> Result<(), String> {
    page.want("DCGM_FI_DEV_GPU_TEMP", &[("pod", "a")]).map(drop)
}

/// Scrapes until the page is as wanted. Each scrape is answered 200.
async fn answered_until(exporter: &Exporter, what: &str, wanted: impl Fn(&Page) -> Result<(), String>) {
    until(what, || async { wanted(&exporter.page().await) }).await;
}

#[tokio::test]
async fn c3_a_kubelet_that_hangs_fails_or_answers_five_mebibytes_delays_no_scrape() {
    let node = Node::new(POD);
    let kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes_with_own_metrics().await;
    let errors = |error: &'static str| {
        move |page: &Page| page.want("podgauge_exporter_kubelet_errors_total", &[("error", error)]).map(drop)
    };
    answered_until(&exporter, "labels", labelled).await;
    // The labels stay while it hangs: its last list counts for 60 s.
    kubelet.set_hang(Duration::from_secs(3600));
    until("a scrape that is answered while a List hangs", || async {
        let before = kubelet.calls();
        labelled(&exporter.page().await).unwrap();
        let after = kubelet.calls();
        if before.pending > 0 && before == after { Ok(()) } else { Err((before, after)) }
    })
    .await;
    answered_until(&exporter, "a time-out", |page| {
        labelled(page).unwrap();
        errors("timeout")(page)
    })
    .await;
    kubelet.set_hang(Duration::ZERO);
    exporter.ready(200).await;

    kubelet.set_padding(5 << 20);
    let before = kubelet.calls().list;
    answered_until(&exporter, "two lists of 5 MiB", |page| {
        labelled(page).unwrap();
        if kubelet.calls().list >= before + 3 { Ok(()) } else { Err("not asked yet".to_owned()) }
    })
    .await;
    exporter.ready(200).await;
    kubelet.set_padding(0);

    // Gone and back, on another socket of the same name.
    kubelet.stop().await;
    answered_until(&exporter, "a refused connection", |page| {
        labelled(page).unwrap();
        errors("connect")(page)
    })
    .await;
    kubelet.restart().await.unwrap();
    exporter.ready(200).await;
    answered_until(&exporter, "labels after the restart", labelled).await;
}

#[tokio::test]
async fn c3_a_kubelet_that_is_absent_or_limits_the_rate_is_waited_for() {
    let node = Node::new(POD);
    let kubelet = podgauge_sim::kubelet::Kubelet::start(
        node.socket(),
        node.scenario(),
        podgauge_sim::kubelet::KubeletOptions {
            absent: true,
            calls_per_second: 0.4,
            burst: 1.0,
            ..podgauge_sim::kubelet::KubeletOptions::default()
        },
    )
    .await
    .unwrap();
    let exporter = node.exporter_in_kubernetes_with_own_metrics().await;
    answered_until(&exporter, "values without pods", |page| {
        page.want("podgauge_attribution_unavailable", &[("reason", "kubelet_unavailable")]).map(drop)
    })
    .await;
    kubelet.restart().await.unwrap();
    answered_until(&exporter, "labels in spite of the limit", labelled).await;
    assert!(kubelet.calls().rejected > 0, "{:?}", kubelet.calls());
    answered_until(&exporter, "the rejections", |page| {
        page.want("podgauge_exporter_kubelet_errors_total", &[("error", "resource_exhausted")]).map(drop)
    })
    .await;
}

#[tokio::test]
async fn d5_a_replaced_driver_is_loaded_again_without_a_restart() {
    let healthy = "gpus: [{load: {constant: 30}}]";
    let node = Node::new(healthy);
    let exporter = node.exporter().await;
    exporter.until("values", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[])).await;
    let pid = exporter.program.pid();
    node.play("gpus: [{load: {constant: 30}}]\nerrors: {all: LIB_RM_VERSION_MISMATCH, nvmlInit: LIB_RM_VERSION_MISMATCH}");
    answered_until(&exporter, "the values to go", |page| match page.value("podgauge_gpu_up", &[]) {
        None => Ok(()),
        Some(_) => Err(page.text.clone()),
    })
    .await;
    exporter.unready(&["nvml"]).await;
    node.play(healthy);
    answered_until(&exporter, "values again", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[]).map(drop)).await;
    exporter.ready(200).await;
    assert_eq!(exporter.program.pid(), pid);
}

/// Only a new container gets the new library: the kubelet must be made to start one.
#[tokio::test]
async fn d5_a_driver_that_stays_replaced_ends_the_process() {
    let node = Node::new("gpus: [{}]\nerrors: {nvmlInit: LIB_RM_VERSION_MISMATCH}");
    let mut exporter = node.exporter().await;
    assert_eq!(exporter.program.ended().await.code(), Some(1));
    let log = exporter.program.log();
    assert!(log.contains("LIB_RM_VERSION_MISMATCH") && log.contains("for 60 s"), "{log}");
}

#[tokio::test]
async fn a_call_that_blocks_for_30_s_turns_health_red_and_all_comes_back() {
    let healthy = "gpus: [{load: {constant: 30}}, {load: {constant: 40}}]";
    let node = Node::new(healthy);
    let exporter = node
        .exporter_with(|command| {
            command.args(["--stuck-limit", "20s", "--enable-exporter-metrics"]);
        })
        .await;
    exporter.until("values", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[("gpu", "1")])).await;
    assert_eq!(exporter.get("/health").await.status(), 200);
    node.play("gpus: [{load: {constant: 30}}, {load: {constant: 40}, blocks: {nvmlDeviceGetClockInfo: 30}}]");
    answered_until(&exporter, "the values to go", |page| {
        match page.value("podgauge_gpu_up", &[("gpu", "0")]) {
            None => Ok(()),
            Some(_) => Err(page.text.clone()),
        }
    })
    .await;
    // Not yet red when the values go: a restart is the last resort.
    assert_eq!(exporter.get("/health").await.status(), 200);
    until("red health", || async {
        let answer = exporter.get("/health").await;
        let body = String::from_utf8_lossy(answer.body()).into_owned();
        if answer.status() == 503 && body.contains("--stuck-limit") { Ok(()) } else { Err(body) }
    })
    .await;
    // The page was rendered a moment before.
    answered_until(&exporter, "the age of the call", |page| {
        match page.want("podgauge_exporter_nvml_unseen_seconds", &[])? {
            unseen if unseen >= 8.0 => Ok(()),
            unseen => Err(unseen.to_string()),
        }
    })
    .await;
    node.play(healthy);
    answered_until(&exporter, "values again", |page| {
        page.want("DCGM_FI_DEV_SM_CLOCK", &[("gpu", "1")]).map(drop)
    })
    .await;
    assert_eq!(exporter.get("/health").await.status(), 200);
    exporter.ready(200).await;
}

#[tokio::test]
async fn calls_and_their_errors_are_counted_by_name_and_code() {
    let node = Node::new("gpus: [{load: {constant: 30}, errors: {nvmlDeviceGetPowerUsage: NO_PERMISSION}}]");
    let exporter = node
        .exporter_with(|command| {
            command.arg("--enable-exporter-metrics");
        })
        .await;
    let page = exporter
        .until("an error", |page| {
            let labels = [("call", "nvmlDeviceGetPowerUsage"), ("code", "NO_PERMISSION")];
            page.want("podgauge_exporter_nvml_errors_total", &labels).map(|_| page.clone())
        })
        .await;
    let call = [("call", "nvmlDeviceGetSamples")];
    assert!(page.value("podgauge_exporter_nvml_calls_total", &call).unwrap() >= 1.0);
    assert!(page.value("podgauge_exporter_nvml_call_seconds_total", &call).unwrap() > 0.0);
    for name in ["readings_age_seconds", "page_bytes", "page_series", "page_rendered_timestamp_seconds"] {
        assert!(page.value(&format!("podgauge_exporter_{name}"), &[]).is_some(), "{name}\n{}", page.text);
    }
    assert_eq!(page.value("podgauge_exporter_dropped_series_total", &[("reason", "not_finite")]), Some(0.0));
    // Every call is booked, whichever part of the program makes it, and the sum is the sum.
    let calls = "podgauge_exporter_nvml_calls_total";
    for call in [
        "nvmlInit_v2",
        "nvmlDeviceGetCount_v2",
        "nvmlDeviceGetHandleByIndex_v2",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetName",
        "nvmlDeviceGetPciInfo_v3",
        "nvmlDeviceGetMinorNumber",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetFieldValues",
        "nvmlGpmQueryDeviceSupport",
        "nvmlGpmSampleAlloc",
        "nvmlGpmSampleGet",
        "nvmlSystemGetDriverVersion",
        "nvmlEventSetCreate",
        "nvmlDeviceRegisterEvents",
        "nvmlDeviceGetGridLicensableFeatures_v4",
    ] {
        assert!(
            page.value(calls, &[("call", call)]).is_some_and(|count| count >= 1.0),
            "{call}\n{}",
            page.text
        );
    }
    let spent: f64 = page
        .all("podgauge_exporter_nvml_call_seconds_total", &[])
        .iter()
        .filter(|sample| sample.labels["call"] != "nvmlEventSetWait_v2")
        .map(|sample| sample.value)
        .sum();
    // The page is written while calls go on.
    let total = page.value("podgauge_exporter_nvml_seconds_total", &[]).unwrap();
    assert!(total > 0.0 && total <= spent + 1e-6, "{total} of {spent}");
}

/// A call that hangs in any thread is seen, and named.
#[tokio::test]
async fn a_call_that_hangs_while_a_gpu_is_opened_turns_health_red_by_its_name() {
    let node = Node::new("gpus: [{blocks: {nvmlDeviceGetPciInfo: 8}}]");
    let exporter = node
        .exporter_with(|command| {
            command.args(["--stuck-limit", "2s"]);
        })
        .await;
    until("red health", || async {
        let answer = exporter.get("/health").await;
        let body = String::from_utf8_lossy(answer.body()).into_owned();
        if answer.status() == 503 && body.contains("nvmlDeviceGetPciInfo_v3 has not returned") {
            Ok(())
        } else {
            Err(body)
        }
    })
    .await;
    node.play("gpus: [{}]");
    exporter.ready(200).await;
    assert_eq!(exporter.get("/health").await.status(), 200);
}
