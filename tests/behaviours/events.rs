//! XIDs and clock events: last, within a window, and since the start.

use podgauge_tests::node::Node;
use podgauge_tests::page::Page;
use podgauge_tests::program::Exporter;

const FIELDS: &str = "DCGM_FI_DEV_XID_ERRORS, gauge, x\nDCGM_EXP_XID_ERRORS_COUNT, counter, x\n\
                      DCGM_EXP_XID_ERRORS_TOTAL, counter, x\nDCGM_EXP_CLOCK_EVENTS_COUNT, counter, x\n\
                      DCGM_EXP_CLOCK_EVENTS_TOTAL, counter, x\nDCGM_FI_DEV_CLOCKS_EVENT_REASONS, gauge, x\n";

const REASONS: [&str; 9] = [
    "gpu_idle",
    "clocks_setting",
    "power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal",
    "hw_thermal",
    "hw_power_brake",
    "display_clocks",
];

async fn exporter(node: &Node, more: &[&str]) -> Exporter {
    let file = node.path().join("counters.csv");
    std::fs::write(&file, FIELDS).unwrap();
    node.exporter_with(|command| {
        command.arg("-f").arg(file).args(more);
    })
    .await
}

fn reasons(page: &Page, family: &str) -> Vec<String> {
    page.all(family, &[]).iter().filter_map(|sample| sample.labels.get("clock_event").cloned()).collect()
}

#[tokio::test]
async fn d1_no_xid_is_0_from_the_start() {
    let node = Node::new("gpus: [{}]");
    let exporter = exporter(&node, &[]).await;
    let page = exporter
        .until("an XID of 0", |page| {
            page.want("DCGM_FI_DEV_XID_ERRORS", &[("err_code", "0"), ("err_msg", "No Error")])
                .map(|_| page.clone())
        })
        .await;
    assert_eq!(page.value("DCGM_FI_DEV_XID_ERRORS", &[]), Some(0.0));
    let window = [("window_size_in_ms", "300000"), ("xid", "")];
    assert_eq!(page.value("DCGM_EXP_XID_ERRORS_COUNT", &window), Some(0.0));
    // A counter has no series before the first event.
    assert!(page.all("DCGM_EXP_XID_ERRORS_TOTAL", &[]).is_empty());
    assert!(page.all("podgauge_gpu_xid_errors_total", &[]).is_empty());
}

#[tokio::test]
async fn d2_an_xid_is_told_counted_and_ages_out_of_the_window() {
    let node = Node::new("gpus: [{}, {}, {}, {}]");
    let exporter = exporter(&node, &["-x", "4000"]).await;
    exporter.until("no XID", |page| page.want("DCGM_FI_DEV_XID_ERRORS", &[("gpu", "3")])).await;
    node.play("gpus: [{}, {}, {}, {xids: [79]}]");
    let count = |page: &Page, xid: &str| {
        let labels = [("gpu", "3"), ("window_size_in_ms", "4000"), ("xid", xid)];
        page.want("DCGM_EXP_XID_ERRORS_COUNT", &labels)
    };
    let page = exporter.until("the XID", |page| count(page, "79").map(|_| page.clone())).await;
    assert_eq!(count(&page, "79"), Ok(1.0));
    let told = [("gpu", "3"), ("err_code", "79"), ("err_msg", "GPU has fallen off the bus")];
    assert_eq!(page.value("DCGM_FI_DEV_XID_ERRORS", &told), Some(79.0));
    assert_eq!(page.all("DCGM_FI_DEV_XID_ERRORS", &[("gpu", "3")]).len(), 1);
    assert_eq!(page.value("DCGM_FI_DEV_XID_ERRORS", &[("gpu", "0")]), Some(0.0));
    // The same XID again: the last one looks the same, the counters do not.
    node.play("gpus: [{}, {}, {}, {xids: [79, 79, 31]}]");
    let total = |page: &Page, family: &str, xid: &str| page.want(family, &[("gpu", "3"), ("xid", xid)]);
    for family in ["DCGM_EXP_XID_ERRORS_TOTAL", "podgauge_gpu_xid_errors_total"] {
        exporter
            .until(family, |page| match (total(page, family, "79")?, total(page, family, "31")?) {
                (2.0, 1.0) => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await;
    }
    let page = exporter.until("the window to pass", |page| count(page, "").map(|_| page.clone())).await;
    assert_eq!(count(&page, ""), Ok(0.0));
    assert_eq!(page.all("DCGM_EXP_XID_ERRORS_COUNT", &[("gpu", "3")]).len(), 1, "{}", page.text);
    assert_eq!(total(&page, "DCGM_EXP_XID_ERRORS_TOTAL", "79"), Ok(2.0));
}

/// The XID that says why a GPU is lost comes from a GPU that answers nothing any more.
#[tokio::test]
async fn the_xid_of_a_lost_gpu_stays_on_the_page() {
    let node = Node::new("gpus: [{load: {constant: 10}}, {load: {constant: 20}}]");
    let exporter = exporter(&node, &[]).await;
    exporter.until("both", |page| page.want("DCGM_FI_DEV_XID_ERRORS", &[("gpu", "1")])).await;
    node.play(
        "gpus: [{load: {constant: 10}}, {load: {constant: 20}, xids: [79], errors: {all: GPU_IS_LOST}}]",
    );
    let page = exporter
        .until("the loss", |page| match page.want("podgauge_gpu_up", &[("gpu", "1")])? {
            0.0 => {
                page.want("DCGM_FI_DEV_XID_ERRORS", &[("gpu", "1"), ("err_code", "79")]).map(|_| page.clone())
            }
            up => Err(up.to_string()),
        })
        .await;
    assert_eq!(page.value("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", &[("gpu", "1")]), None);
    assert_eq!(page.value("podgauge_gpu_xid_errors_total", &[("gpu", "1"), ("xid", "79")]), Some(1.0));
    assert!(page.value("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", &[("gpu", "0")]).is_some());
}

#[tokio::test]
async fn d6_clock_event_bits_have_their_nine_names() {
    let with = |bits: u64| format!("gpus: [{{answers: {{nvmlDeviceGetCurrentClocksEventReasons: {bits}}}}}]");
    // Two bits that have no name stand in the bitmask alone.
    let node = Node::new(&with(0x1ff | 0x600));
    let exporter = exporter(&node, &["--clock-events-count-window-size", "4000"]).await;
    let page = exporter
        .until("clock events", |page| {
            page.want("DCGM_EXP_CLOCK_EVENTS_COUNT", &[("clock_event", "gpu_idle")]).map(|_| page.clone())
        })
        .await;
    assert_eq!(page.value("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", &[]), Some(f64::from(0x7ff)));
    let mut names = reasons(&page, "DCGM_EXP_CLOCK_EVENTS_COUNT");
    names.sort_unstable();
    let mut all = REASONS.to_vec();
    all.sort_unstable();
    assert_eq!(names, all);
    assert!(page.all("DCGM_EXP_CLOCK_EVENTS_COUNT", &[("window_size_in_ms", "4000")]).len() == 9);
    // What was there at the start began at a moment that nobody saw.
    assert!(page.all("DCGM_EXP_CLOCK_EVENTS_TOTAL", &[]).is_empty(), "{}", page.text);

    node.play(&with(0));
    let none = [("clock_event", ""), ("window_size_in_ms", "4000")];
    let page = exporter
        .until("the window to pass", |page| {
            page.want("DCGM_EXP_CLOCK_EVENTS_COUNT", &none).map(|_| page.clone())
        })
        .await;
    assert_eq!(page.value("DCGM_EXP_CLOCK_EVENTS_COUNT", &[]), Some(0.0));
    // Each bit, by its place, under its name: it begins once, and goes on being there.
    for (bit, name) in REASONS.into_iter().enumerate() {
        node.play(&with(1 << bit));
        let page = exporter
            .until(name, |page| {
                page.want("DCGM_EXP_CLOCK_EVENTS_TOTAL", &[("clock_event", name)]).map(|_| page.clone())
            })
            .await;
        assert_eq!(reasons(&page, "DCGM_EXP_CLOCK_EVENTS_TOTAL").len(), bit + 1, "{}", page.text);
        assert!(page.all("DCGM_EXP_CLOCK_EVENTS_TOTAL", &[]).iter().all(|sample| sample.value == 1.0));
    }
}
