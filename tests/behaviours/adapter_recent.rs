//! No restart changes a value: an adapter that has just begun answers from the exporter's own sums of
//! the last seconds, and says how much time a value is really a mean over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use podgauge_sim::aggregator::Aggregation;
use podgauge_tests::cluster::{Adapter, Cluster};
use podgauge_tests::fake_exporter::{Counted, FakeExporter, Sums, Told, page};
use podgauge_tests::fleet::{Fleet, near, scenarios, told};
use podgauge_tests::node::Node;
use podgauge_tests::wait::until;

/// The time that is summed up, and how often the load changes: a tenth of the defaults' 60 s and 20 s.
const WINDOW: f64 = 6.0;
const PERIOD: f64 = 2.0;
const INTERVAL: &str = "200ms";
/// Time that passes on the node from one step of the test to the next.
const STEP: f64 = 0.4;
/// Percent before a change and after.
const LOADS: [f64; 2] = [20.0, 80.0];

/// Busy seconds of the node's first `seconds`.
fn busy(seconds: f64) -> f64 {
    let whole = (seconds / PERIOD) as usize;
    let full: f64 = (0..whole).map(|period| PERIOD * LOADS[period % 2] / 100.0).sum();
    full + (seconds - whole as f64 * PERIOD) * LOADS[whole % 2] / 100.0
}

/// The page of a node that has run for so long.
fn node_page(told: &Told, seconds: f64) -> String {
    let recent = busy(seconds) - busy(seconds - WINDOW);
    let sums = Sums { window: WINDOW, active: recent, observed: WINDOW };
    page(&[Counted { told, active: busy(seconds), observed: seconds, sums: Some(sums) }])
}

/// Which replica a request is from.
fn replica(head: &str) -> String {
    let token = head.lines().find_map(|line| line.strip_prefix("authorization: Bearer "));
    token.unwrap_or_default().trim().to_owned()
}

/// An adapter whose requests can be distinguished from another one's.
async fn adapter(
    fleet_node: &Node,
    server: &podgauge_sim::apiserver::ApiServerHandle,
    url: &str,
    name: &str,
    times: &[&str],
) -> Adapter {
    let token = fleet_node.path().join(name);
    std::fs::write(&token, name).unwrap();
    Adapter::start(fleet_node, server, |command| {
        command.arg(url).args(times).arg("--exporter-credentials-without-tls");
        command.arg("--exporter-token-file").arg(&token);
    })
    .await
}

/// Nobody's clock counts here: the node's time goes on with the test's steps, and both replicas are
/// asked once both have read the page of the step.
#[tokio::test]
async fn a_restarted_adapter_answers_as_one_that_goes_on() {
    let seconds = Arc::new(Mutex::new(100.0));
    let asked: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let (shown, count) = (Arc::clone(&seconds), Arc::clone(&asked));
    let exporter = FakeExporter::start_for(move |head| {
        *count.lock().entry(replica(head)).or_default() += 1;
        node_page(&told("a", 0.0), *shown.lock())
    })
    .await;
    let url = format!("--exporter-url=gpu-node-0=http://{}", exporter.address);
    let interval = format!("--scrape-interval={INTERVAL}");
    let window = format!("--window={WINDOW}s");
    let times = [interval.as_str(), window.as_str(), "--staleness=3s"];
    // Each has read a page of the present step: of two requests the second was sent after the first
    // was answered.
    let read = async |names: &[&str]| {
        let before = asked.lock().clone();
        until("two more scrapes of each", || async {
            let now = asked.lock().clone();
            let more =
                |name: &&str| now.get(*name) >= before.get(*name).map(|count| count + 2).or(Some(2)).as_ref();
            if names.iter().all(more) { Ok(()) } else { Err(now) }
        })
        .await;
    };
    let first = {
        let mut arguments: Vec<String> = times.into_iter().map(str::to_owned).collect();
        let folder = Node::new("gpus: []");
        let token = folder.path().join("token");
        std::fs::write(&token, "first").unwrap();
        arguments.extend([url.clone(), "--exporter-credentials-without-tls".to_owned()]);
        arguments.push(format!("--exporter-token-file={}", token.display()));
        Fleet::launch(&scenarios(&[&["a"]]), &arguments).await
    };
    // A whole window of readings.
    let steps = (WINDOW / STEP) as usize + 2;
    for _ in 0..steps {
        *seconds.lock() += STEP;
        read(&["first"]).await;
    }
    let folder = Node::new("gpus: []");
    let second = adapter(&folder, &first.server, &url, "second", &times).await;
    let settings = Aggregation::of_adapter(second.address, second.authority.pem().to_owned());
    let aggregator = first.server.aggregate(settings).unwrap();
    let paths = [
        "namespaces/demo/pods/a/gpu_utilization",
        "namespaces/demo/pods/a/gpu_device_utilization",
        "nodes/gpu-node-0/gpu_utilization",
        "namespaces/demo/metrics/gpu_utilization",
    ];
    let mut seen = (f64::MAX, f64::MIN);
    for step in 0..steps {
        read(&["first", "second"]).await;
        let now = *seconds.lock();
        let truth = (busy(now) - busy(now - WINDOW)) / WINDOW * 100.0;
        for path in paths {
            let one = first.ask_path(path).await.unwrap();
            let answer = aggregator.metric_request(path, vec![]).await.unwrap();
            assert_eq!(answer.status, 200, "step {step}, {path}: {}", answer.text());
            let item = &answer.json().unwrap()["items"][0];
            let two = podgauge_tests::cluster::number(&item["value"]);
            assert!(
                (one.value - two).abs() <= 1.0,
                "step {step}, {path}: {one:?} and {two}, {truth} is true"
            );
            assert!((two - truth).abs() <= 1.0, "step {step}, {path}: {two}, {truth} is true");
            assert_eq!((one.window, item["windowSeconds"].as_u64()), (6, Some(6)), "step {step}, {path}");
        }
        seen = (seen.0.min(truth), seen.1.max(truth));
        *seconds.lock() += STEP;
    }
    assert!(seen.1 - seen.0 > 15.0, "the load changed: {seen:?}");
}

/// Replicas that read one page give one answer: each exporter is scraped at its own moments of the
/// wall clock, whenever an adapter began.
#[tokio::test]
async fn replicas_scrape_an_exporter_at_the_same_moments() {
    let arrived: Arc<Mutex<BTreeMap<String, Vec<Duration>>>> = Arc::default();
    let note = Arc::clone(&arrived);
    let exporter = FakeExporter::start_for(move |head| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        note.lock().entry(replica(head)).or_default().push(now);
        String::new()
    })
    .await;
    let url = format!("--exporter-url=gpu-node-0=http://{}", exporter.address);
    let times = ["--scrape-interval=3s", "--window=60s"];
    let server =
        Fleet::launch(&scenarios(&[&["a"]]), &["--exporter-url=http://127.0.0.1:9".to_owned()]).await.server;
    let folders = [Node::new("gpus: []"), Node::new("gpus: []")];
    let _first = adapter(&folders[0], &server, &url, "first", &times).await;
    // The other one begins in the middle between two scrapes of the first.
    until("the middle", || async {
        let last = arrived.lock().get("first").and_then(|times| times.last().copied());
        let since = last.map(|last| SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - last);
        if since.is_some_and(|since| since > Duration::from_millis(1300)) { Ok(()) } else { Err(since) }
    })
    .await;
    let _second = adapter(&folders[1], &server, &url, "second", &times).await;
    // A machine that is busy delays one or the other, but not always.
    until("both at once", || async {
        let arrived = arrived.lock().clone();
        let of = |name: &str| arrived.get(name).cloned().unwrap_or_default();
        let apart = |one: &Duration| of("second").iter().map(|two| one.abs_diff(*two)).min();
        // The first request of a process comes when it can. Once may be a coincidence.
        let first = of("first");
        let apart = first.iter().skip(1).filter_map(apart);
        if apart.filter(|apart| *apart < Duration::from_millis(60)).count() >= 3 {
            Ok(())
        } else {
            Err(arrived)
        }
    })
    .await;
}

/// The page of an exporter that has gauges only.
fn gauge(pod: &str, percent: f64) -> String {
    format!(
        "DCGM_FI_DEV_GPU_UTIL{{gpu=\"0\",UUID=\"GPU-{pod}\",namespace=\"demo\",pod=\"{pod}\",container=\"main\"}} {percent}\n"
    )
}

/// Without sums of the window an adapter has what it read itself: 15 s of it before it answers, which
/// is how long this test takes, and `windowSeconds` says how much it was.
#[tokio::test]
async fn a_mean_over_less_than_the_window_says_so() {
    let gauges = FakeExporter::start_with(|| gauge("gauges", 50.0)).await;
    let began = std::time::Instant::now();
    let counters = FakeExporter::start_with(move || {
        let observed = 1000.0 + began.elapsed().as_secs_f64();
        page(&[Counted { told: &told("counters", 0.0), active: 0.5 * observed, observed, sums: None }])
    })
    .await;
    let other_window = FakeExporter::start(vec![told("other", 50.0)]).await;
    let exporters = [&gauges, &counters, &other_window];
    let mut arguments: Vec<String> =
        ["--scrape-interval=500ms", "--window=60s", "--staleness=5s"].map(str::to_owned).to_vec();
    arguments.extend(
        exporters
            .iter()
            .enumerate()
            .map(|(node, exporter)| format!("--exporter-url=gpu-node-{node}=http://{}", exporter.address)),
    );
    let fleet = Fleet::launch(&scenarios(&[&["gauges"], &["counters"], &["other"]]), &arguments).await;
    for (node, pod) in ["gauges", "counters", "other"].into_iter().enumerate() {
        let node = format!("nodes/gpu-node-{node}/gpu_device_utilization");
        for path in [format!("namespaces/demo/pods/{pod}/gpu_utilization"), node] {
            let first = until(&path, || async {
                match fleet.ask_path(&path).await {
                    Ok(answered) => Ok(answered),
                    Err(text) => {
                        assert!(!text.contains("last answered"), "{text}");
                        Err(text)
                    }
                }
            })
            .await;
            near(first.value, 50.0);
            assert!((14..40).contains(&first.window), "{path}: {first:?}");
        }
        let explained = fleet.explained(pod, "gpu_utilization").await.unwrap();
        let device = &explained["devices"][0];
        assert_eq!(device["source"], "readings", "{explained}");
        let covered = device["coveredSeconds"].as_f64().unwrap();
        assert!((14.0..60.0).contains(&covered), "{explained}");
    }
}

/// Sums that cannot be true are dropped and counted; the counters beside them are good.
#[tokio::test]
async fn sums_that_cannot_be_true_are_not_believed() {
    for (active, observed) in [(10.5, 10.0), (5.0, 31.0)] {
        let began = std::time::Instant::now();
        let exporter = FakeExporter::start_with(move || {
            let passed = 1000.0 + began.elapsed().as_secs_f64();
            let sums = Some(Sums { window: 10.0, active, observed });
            page(&[Counted { told: &told("a", 0.0), active: 0.3 * passed, observed: passed, sums }])
        })
        .await;
        let fleet = Fleet::start(&[&["a"]], &[(0, "http", exporter.address)]).await;
        near(fleet.value("a").await, 30.0);
        let dropped = fleet.own_metric("podgauge_adapter_samples_dropped_total").await;
        assert!(dropped.is_some_and(|dropped| dropped >= 4.0), "{dropped:?}");
    }
}

/// An exporter that restarts knows nothing of before: the adapter's readings go on.
#[tokio::test]
async fn a_restarted_exporter_changes_no_value() {
    let state = Arc::new(Mutex::new((std::time::Instant::now(), 1000.0)));
    let shown = Arc::clone(&state);
    let exporter = FakeExporter::start_with(move || {
        let (began, before) = *shown.lock();
        let observed: f64 = before + began.elapsed().as_secs_f64();
        let recent = observed.min(10.0);
        // Before the restart 20 %, and 100 % since.
        let load = if before > 0.0 { 0.2 } else { 1.0 };
        let sums = Some(Sums { window: 10.0, active: load * recent, observed: recent });
        page(&[Counted { told: &told("a", 0.0), active: load * observed, observed, sums }])
    })
    .await;
    let fleet = Fleet::start(&[&["a"]], &[(0, "http", exporter.address)]).await;
    near(fleet.value("a").await, 20.0);
    until("a window of readings", || async {
        let explained = fleet.explained("a", "gpu_device_utilization").await.unwrap();
        let requests = exporter.requests();
        if requests > 12 { Ok(()) } else { Err(explained) }
    })
    .await;
    *state.lock() = (std::time::Instant::now(), 0.0);
    // The first pages after it have a second or two: the mean moves by as much, and not at once.
    let asked = exporter.requests();
    until("three scrapes", || async {
        // Where scrapes come too late it is not known for a while.
        let value = fleet.ask("a").await?;
        let since = state.lock().0.elapsed().as_secs_f64();
        // A second for what was read before and arrived later.
        let most = 20.0 + 80.0 * (since + 1.0) / 10.0;
        assert!((19.9..=most).contains(&value), "{value} % after {since} s of 100 %");
        if exporter.requests() >= asked + 4 { Ok(()) } else { Err(value.to_string()) }
    })
    .await;
}

/// Both shipped programs: the exporter has run longer than the adapter, whose first answers are its sums.
#[tokio::test]
async fn a_new_adapter_answers_from_the_shipped_exporters_sums() {
    let cluster =
        Cluster::start("gpus: [{load: {constant: 40}}]\npods: [{name: a, containers: [{devices: ['0']}]}]")
            .await;
    let labels = [("pod", "a"), ("window", "60s")];
    let exporter = cluster.exporter.as_ref().unwrap();
    exporter
        .until("more than an adapter needs of its own", |page| {
            match page.want("podgauge_gpu_recent_observed_seconds", &labels)? {
                observed if observed >= 20.0 => Ok(()),
                observed => Err(observed.to_string()),
            }
        })
        .await;
    let folder = Node::new("gpus: []");
    let adapter = Adapter::start(&folder, &cluster.server, |command| {
        command.args(["--exporter-service", "podgauge/podgauge-exporter", "--scrape-interval", "500ms"]);
    })
    .await;
    let settings = Aggregation::of_adapter(adapter.address, adapter.authority.pem().to_owned());
    let aggregator = cluster.server.aggregate(settings).unwrap();
    let device = until("a mean of the exporter's sums", || async {
        let path = "namespaces/demo/pods/a/gpu_utilization/explain";
        let answer = aggregator.metric_request(path, vec![]).await.map_err(|error| error.to_string())?;
        let device = answer.json().map_err(|error| error.to_string())?["pods"][0]["devices"][0].clone();
        if device["source"] == "exporter" { Ok(device) } else { Err(device.to_string()) }
    })
    .await;
    assert!(device["coveredSeconds"].as_f64().unwrap() >= 19.0, "{device}");
    assert!((device["mean"].as_f64().unwrap() - 40.0).abs() < 0.5, "{device}");
}
