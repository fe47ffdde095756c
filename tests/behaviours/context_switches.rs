//! Who tells how a shared GPU's use is divided: the driver's trace of context switches, where it can be had and
//! believed, else NVML's samples. The driver is simulated at its ioctls.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use podgauge_sim_nvml::scenario::Scenario;
use podgauge_sim_nvml::switching::busy_s;
use podgauge_tests::built;
use podgauge_tests::node::Node;
use podgauge_tests::page::Page;
use podgauge_tests::program::Exporter;

const ACTIVE: &str = "podgauge_gpu_active_seconds_total";
const ESTIMATED: &str = "podgauge_attribution_estimated";
const SOURCE: &str = "podgauge_exporter_process_source";
const RECORDS: &str = "podgauge_exporter_context_switch_records_total";
const LOST: &str = "podgauge_exporter_context_switch_records_lost_total";
const OBSERVED: &str = "podgauge_gpu_observed_seconds_total";
const DEVICE_ACTIVE: &str = "podgauge_gpu_device_active_seconds_total";
const NOT_TRACED: &str = "context switches are not traced";

/// A GPU that two pods share, and one of a single pod.
const SHARED: &str = "
gpus: [{replicas: 2}, {}]
pods:
  - name: a
    containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 40}}]}]
  - name: b
    containers: [{devices: ['0::1'], processes: [{pid: 4100002, gpu: 0, load: {constant: 20}}]}]
  - name: alone
    containers: [{devices: ['1'], processes: [{pid: 4100003, gpu: 1, load: {constant: 30}}]}]
";

async fn tracing(node: &Node, device_files: &Path) -> Exporter {
    node.exporter_with(|command| {
        node.in_kubernetes(command);
        command.arg("--enable-exporter-metrics").arg("--path.device-files").arg(device_files);
    })
    .await
}

/// Waits for a page on which both pods have gained seconds.
async fn divided(exporter: &Exporter) -> Page {
    exporter
        .until("seconds of both pods", |page| {
            for pod in ["a", "b"] {
                let seconds = page.want(ACTIVE, &[("pod", pod)])?;
                if seconds < 0.3 {
                    return Err(format!("{pod} has {seconds} s"));
                }
            }
            Ok(page.clone())
        })
        .await
}

/// Waits until the page says that shares are estimates, of the shared GPU alone.
async fn are_estimates(exporter: &Exporter) {
    let page = exporter
        .until("shares by NVML's samples", |page| {
            let labels = [("gpu", "0"), ("source", "nvml")];
            [ESTIMATED, SOURCE]
                .map(|family| page.want(family, &labels))
                .into_iter()
                .collect::<Result<Vec<_>, _>>()?;
            Ok(page.clone())
        })
        .await;
    for family in [ESTIMATED, SOURCE] {
        assert_eq!(page.all(family, &[]).len(), 1, "only a shared GPU is divided: {}", page.text);
    }
}

#[tokio::test]
async fn without_the_drivers_files_shares_are_nvmls_and_one_line_says_why() {
    let node = Node::new(SHARED);
    let _kubelet = node.kubelet().await;
    let files = node.path().join("no-device-files");
    let exporter = tracing(&node, &files).await;
    divided(&exporter).await;
    are_estimates(&exporter).await;
    let log = exporter.program.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(NOT_TRACED)).collect();
    let [line] = lines[..] else { panic!("{log}") };
    let missing = files.join("nvidiactl");
    assert!(line.contains(missing.to_str().unwrap()) && line.contains("No such file"), "{line}");
    assert!(line.contains("GPU 0") && line.contains("estimate"), "{line}");
}

/// Files that are no driver's refuse the first call.
#[tokio::test]
async fn files_that_are_no_drivers_are_refused_with_the_call() {
    let node = Node::new(SHARED);
    let _kubelet = node.kubelet().await;
    let files = node.path().join("device-files");
    std::fs::create_dir(&files).unwrap();
    for name in ["nvidiactl", "nvidia0"] {
        std::fs::write(files.join(name), "").unwrap();
    }
    let exporter = tracing(&node, &files).await;
    divided(&exporter).await;
    are_estimates(&exporter).await;
    let log = exporter.program.log();
    assert!(log.contains(NOT_TRACED) && log.contains("allocating a client: Inappropriate ioctl"), "{log}");
}

#[tokio::test]
async fn with_nvmls_samples_alone_nothing_is_said_of_a_trace() {
    let node = Node::new(&turns(""));
    let _kubelet = node.kubelet().await;
    let exporter = traced_from(&node, "nvml").await;
    let page = exporter.until("both pods' seconds", |page| seconds(page).map(|_| page.clone())).await;
    are_estimates(&exporter).await;
    assert!(page.all("podgauge_exporter_context_switch_records_total", &[]).is_empty(), "{}", page.text);
    assert!(!exporter.program.log().contains("context switches"), "{}", exporter.program.log());
}

/// Of [`turns`].
const PODS: [&str; 2] = ["long", "short"];

/// Two services that answer requests of unlike length, and what is wrong with the trace.
fn turns(trace: &str) -> String {
    format!(
        "gpus: [{{replicas: 2, switch_trace: {{{trace}}}}}]\n\
         pods:\n\
         - name: long\n  containers:\n  - devices: ['0::0']\n\
        \x20   processes: [{{pid: 4100001, gpu: 0, load: {{requests: {{ms: 5.3, percent: 40}}}}}}]\n\
         - name: short\n  containers:\n  - devices: ['0::1']\n\
        \x20   processes: [{{pid: 4100002, gpu: 0, load: {{requests: {{ms: 0.43, percent: 20}}}}}}]\n"
    )
}

/// The files that a driver would have.
fn device_files(node: &Node) -> PathBuf {
    let files = node.path().join("device-files");
    if !files.exists() {
        std::fs::create_dir(&files).unwrap();
        for name in ["nvidiactl", "nvidia0", "nvidia1"] {
            std::fs::write(files.join(name), "").unwrap();
        }
    }
    files
}

/// An exporter whose driver has a trace, with no flag for it.
async fn traced(node: &Node) -> Exporter {
    traced_from(node, "").await
}

/// … and with this `--process-source`.
async fn traced_from(node: &Node, source: &str) -> Exporter {
    let files = device_files(node);
    node.exporter_with(|command| {
        node.in_kubernetes(command);
        command.arg("--enable-exporter-metrics");
        if !source.is_empty() {
            command.args(["--process-source", source]);
        }
        command.arg("--path.device-files").arg(files);
        command.env("LD_PRELOAD", built("libpodgauge_sim_driver.so"));
    })
    .await
}

fn source(page: &Page, source: &str) -> Result<(), String> {
    page.want(SOURCE, &[("gpu", "0"), ("source", source)]).map(|_| ())
}

/// Seconds of use of both pods, and observed.
fn seconds(page: &Page) -> Result<[f64; 3], String> {
    Ok([
        page.want(ACTIVE, &[("pod", PODS[0])])?,
        page.want(ACTIVE, &[("pod", PODS[1])])?,
        page.want(OBSERVED, &[("pod", PODS[0])])?,
    ])
}

/// What both pods used of the next `span` observed seconds, percent.
async fn shares(exporter: &Exporter, span: f64) -> [f64; 2] {
    let first = exporter.until("both pods' seconds", seconds).await;
    exporter
        .until("a span of them", |page| {
            let now = seconds(page)?;
            let observed = now[2] - first[2];
            if observed < span {
                return Err(format!("{observed} s of {span}"));
            }
            Ok([0, 1].map(|pod| 100.0 * (now[pod] - first[pod]) / observed))
        })
        .await
}

/// What they really used lately, percent.
fn truth(node: &Node, span: Duration) -> [f64; 2] {
    let scenario = Scenario::read(&node.scenario()).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap();
    let seconds = busy_s(&scenario.services(0), ns(now - span), ns(now));
    [0, 1].map(|pod| 100.0 * seconds[pod] / span.as_secs_f64())
}

fn worst(shares: [f64; 2], truth: [f64; 2]) -> f64 {
    (shares[0] - truth[0]).abs().max((shares[1] - truth[1]).abs())
}

/// Files of the driver's that the exporter has open.
fn open_files(exporter: &Exporter) -> usize {
    let links = std::fs::read_dir(format!("/proc/{}/fd", exporter.program.pid())).unwrap();
    let path = |link: std::io::Result<std::fs::DirEntry>| std::fs::read_link(link.ok()?.path()).ok();
    links.filter_map(path).filter(|path| path.ends_with("nvidiactl") || path.ends_with("nvidia0")).count()
}

#[tokio::test]
async fn services_of_unlike_requests_have_what_they_used() {
    let node = Node::new(&turns(""));
    let _kubelet = node.kubelet().await;
    let (by_trace, by_samples) = (traced(&node).await, traced_from(&node, "nvml").await);
    let page =
        by_trace.until("the trace", |page| source(page, "context-switches").map(|()| page.clone())).await;
    assert!(page.all(ESTIMATED, &[]).is_empty(), "{}", page.text);
    let (traced, sampled) = tokio::join!(shares(&by_trace, 40.0), shares(&by_samples, 40.0));
    let truth = truth(&node, Duration::from_secs(60));
    assert!(worst(traced, truth) <= 4.0, "traced {traced:.1?}, true {truth:.1?}");
    // It is no matter of course.
    assert!(worst(sampled, truth) >= 8.0, "sampled {sampled:.1?}, true {truth:.1?}");
    let page = by_trace.page().await;
    assert_eq!(page.value(LOST, &[("gpu", "0")]), Some(0.0), "{}", page.text);
    assert!(page.value(RECORDS, &[("gpu", "0")]).unwrap() > 1000.0, "{}", page.text);
    assert_eq!(by_trace.program.count_logged("context switches"), 1, "{}", by_trace.program.log());
}

/// Shares by a trace with this fault are near the truth; gives how many records were lost.
async fn near_the_truth_all_the_same(trace: &str) -> f64 {
    let node = Node::new(&turns(trace));
    let _kubelet = node.kubelet().await;
    let exporter = traced(&node).await;
    exporter.until("the trace", |page| source(page, "context-switches")).await;
    let shares = shares(&exporter, 30.0).await;
    let truth = truth(&node, Duration::from_secs(60));
    assert!(worst(shares, truth) <= 5.0, "{trace}: {shares:.1?}, true {truth:.1?}");
    exporter.page().await.value(LOST, &[("gpu", "0")]).unwrap()
}

/// As drivers before 545 and busy machines do.
#[tokio::test]
async fn records_that_come_a_second_late_cost_no_truth() {
    assert_eq!(near_the_truth_all_the_same("late_s: 1.0").await, 0.0);
}

#[tokio::test]
async fn lost_records_are_counted_and_cost_no_truth() {
    assert!(near_the_truth_all_the_same("loses_after: 4000").await > 0.0);
}

#[tokio::test]
async fn a_trace_that_is_refused_or_cannot_be_believed_leaves_nvmls_samples_and_says_why() {
    for (trace, why) in [
        ("refuses: {client: 81}", "allocating a client: the driver answers out of memory (0x51)"),
        ("refuses: {device: 27}", "allocating the device: the driver answers insufficient permissions"),
        ("refuses: {subdevice: 34}", "allocating the subdevice: the driver answers invalid class"),
        ("refuses: {memory: 81}", "allocating the ring's memory: the driver answers out of memory"),
        ("refuses: {ring: 58}", "allocating the ring: the driver answers invalid structure"),
        ("refuses: {map: 31}", "mapping the ring's header: the driver answers invalid argument"),
        ("refuses: {enable: 86}", "enabling the ring: the driver answers not supported"),
        ("refuses: {bind: 27}, reason: 4", "only an administrator may trace"),
        ("refuses: {bind: 86}, reason: 1", "older than Turing"),
        ("refuses: {bind: 99}", "binding the trace: the driver answers in use (0x63)"),
        ("hides: true", "the exporter lacks CAP_SYS_ADMIN"),
        ("record_type: 134", "records of type 134"),
        ("clock_s: 90000", "off what it was, or off this machine's"),
        ("clock_s: 3600", "no slot of 10 s has all of its records: they are lost, or of another clock"),
        ("pids_off: 1000000", "it names none of the processes that NVML lists"),
        ("refuses: {room: 15}", "giving room in the ring: the driver answers"),
    ] {
        let node = Node::new(&turns(trace));
        let _kubelet = node.kubelet().await;
        let mut exporter = traced(&node).await;
        let line = exporter.program.logged(NOT_TRACED).await;
        assert!(line.contains(why), "{trace}: {line}");
        exporter.until("both pods' seconds", seconds).await;
        are_estimates(&exporter).await;
        assert_eq!(open_files(&exporter), 0, "{trace}");
        assert_eq!(exporter.program.count_logged(NOT_TRACED), 1, "{trace}: {}", exporter.program.log());
    }
}

/// The driver's trace stops without a word, and comes again with the next driver.
#[tokio::test]
async fn a_trace_that_falls_silent_is_not_believed() {
    let node = Node::new(&turns(""));
    let _kubelet = node.kubelet().await;
    let mut exporter = traced(&node).await;
    exporter.until("the trace", |page| source(page, "context-switches")).await;
    node.play(&turns("silent: true"));
    let [long, short] = shares(&exporter, 12.0).await;
    assert!(
        long.min(short) >= 0.25 * (long + short),
        "the last one there has all of it: {long:.1} {short:.1}"
    );
    exporter.program.logged("while NVML names several processes").await;
    assert_eq!(exporter.program.count_logged("context switches are not traced: no record came for"), 1);
    are_estimates(&exporter).await;
}

/// The driver is exchanged, or its trace ends: no counter falls, and nothing is counted twice or not at all.
#[tokio::test]
async fn a_trace_that_ends_moves_no_counter() {
    let node = Node::new(&turns(""));
    let _kubelet = node.kubelet().await;
    let mut exporter = traced(&node).await;
    exporter.until("the trace", |page| source(page, "context-switches")).await;
    let all = |page: &Page| -> Result<[f64; 5], String> {
        let [long, short, observed] = seconds(page)?;
        let nobody = page.value(ACTIVE, &[("pod", "")]).unwrap_or(0.0);
        Ok([long, short, nobody, observed, page.want(DEVICE_ACTIVE, &[("gpu", "0")])?])
    };
    let before = exporter.until("seconds", |page| all(page)).await;
    node.play(&turns("refuses: {room: 15}"));
    let last = std::cell::Cell::new(before);
    let after = exporter
        .until("ten seconds by NVML's samples", |page| {
            let now = all(page)?;
            for (now, last) in now.iter().zip(last.get()) {
                assert!(*now >= last, "{:?} fell\n{}", last, page.text);
            }
            last.set(now);
            source(page, "nvml")?;
            if now[3] - before[3] < 10.0 { Err(format!("{now:?}")) } else { Ok(now) }
        })
        .await;
    let gained: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    let sum = gained[0] + gained[1] + gained[2];
    assert!((sum - gained[4]).abs() < 0.02, "{gained:?}");
    exporter.program.logged("giving room in the ring").await;
    assert_eq!(open_files(&exporter), 0);
}

/// Two services end, nobody is on the GPU for seconds, and two others come.
#[tokio::test]
async fn services_that_come_after_others_have_what_they_used() {
    let node = Node::new(&turns(""));
    let _kubelet = node.kubelet().await;
    let exporter = traced(&node).await;
    exporter.until("the trace", |page| source(page, "context-switches")).await;
    let others = turns("").replace("41000", "42000").replace("percent: 40", "percent: 10");
    let nobody = turns("").replace("processes: [", "processes: [] # ");
    node.play(&nobody);
    tokio::time::sleep(Duration::from_secs(4)).await;
    node.play(&others);
    let shares = shares(&exporter, 45.0).await;
    let truth = truth(&node, Duration::from_secs(40));
    assert!(worst(shares, truth) <= 5.0, "{shares:.1?}, true {truth:.1?}");
    let page = exporter.page().await;
    assert_eq!(source(&page, "context-switches"), Ok(()), "{}", page.text);
    assert_eq!(exporter.program.count_logged("context switches"), 1, "{}", exporter.program.log());
}

/// `--process-source=context-switches`: NVML's samples divide nothing.
#[tokio::test]
async fn without_the_trace_that_is_asked_for_nothing_is_divided() {
    let node = Node::new(&turns("refuses: {bind: 27}, reason: 4"));
    let _kubelet = node.kubelet().await;
    let mut exporter = traced_from(&node, "context-switches").await;
    let line = exporter.program.logged(NOT_TRACED).await;
    assert!(line.contains("only an administrator") && line.contains("is not divided"), "{line}");
    let reason = [("gpu", "0"), ("reason", "context_switches_not_traced")];
    let page = exporter
        .until("the reason", |page| {
            page.want("podgauge_attribution_unavailable", &reason).map(|_| page.clone())
        })
        .await;
    for pod in PODS {
        assert_eq!(page.value(ACTIVE, &[("pod", pod)]).unwrap_or(0.0), 0.0, "{}", page.text);
        assert_eq!(page.value(OBSERVED, &[("pod", pod)]).unwrap_or(0.0), 0.0, "{}", page.text);
    }
    assert!(page.want(DEVICE_ACTIVE, &[("gpu", "0")]).unwrap() > 0.0, "{}", page.text);
    assert!(page.all(ESTIMATED, &[]).is_empty(), "{}", page.text);
    assert_eq!(source(&page, "none"), Ok(()), "{}", page.text);
}

/// A process that ran alone does not get what a second one uses before the trace tells them apart.
#[tokio::test]
async fn the_first_process_has_nothing_of_the_second_ones() {
    let both = turns("");
    let (first, second) = both.split_at(both.find("- name: short").unwrap());
    let node = Node::new(&format!("{first}{}", second.replace("processes: [", "processes: [] # ")));
    let _kubelet = node.kubelet().await;
    let exporter = traced_from(&node, "context-switches").await;
    let ran = |page: &Page, seconds: f64| {
        let active = page.want(DEVICE_ACTIVE, &[("gpu", "0")])?;
        if active < seconds { Err(format!("{active}")) } else { Ok(page.clone()) }
    };
    let page = exporter.until("5 s of the first process", |page| ran(page, 5.0)).await;
    assert_eq!(source(&page, "none"), Ok(()), "{}", page.text);
    assert_eq!(page.value(OBSERVED, &[("pod", PODS[0])]).unwrap_or(0.0), 0.0, "{}", page.text);
    node.play(&both);
    // Nothing is counted before the trace tells them apart, and then of both.
    let [long, short, observed] = exporter
        .until("2 s that are counted", |page| {
            let now = seconds(page)?;
            if now[2] < 2.0 { Err(format!("{now:?}")) } else { Ok(now) }
        })
        .await;
    assert!(short >= 0.05 * observed, "{long} and {short} s of {observed}");
    exporter.until("the trace", |page| source(page, "context-switches")).await;
    let shares = shares(&exporter, 30.0).await;
    let truth = truth(&node, Duration::from_secs(40));
    assert!(worst(shares, truth) <= 5.0, "{shares:.1?}, true {truth:.1?}");
}

/// … and with it shares are as by default.
#[tokio::test]
async fn the_trace_alone_divides_as_it_does_beside_nvml() {
    let node = Node::new(&turns(""));
    let _kubelet = node.kubelet().await;
    let exporter = traced_from(&node, "context-switches").await;
    exporter.until("the trace", |page| source(page, "context-switches")).await;
    let shares = shares(&exporter, 30.0).await;
    let truth = truth(&node, Duration::from_secs(60));
    assert!(worst(shares, truth) <= 5.0, "{shares:.1?}, true {truth:.1?}");
}

/// Services come and go for `PODGAUGE_SOAK_MINUTES`, 30 by default.
#[tokio::test]
#[ignore = "takes 30 minutes"]
async fn the_trace_lasts_while_services_come_and_go() {
    let minutes: f64 =
        std::env::var("PODGAUGE_SOAK_MINUTES").map_or(30.0, |minutes| minutes.parse().unwrap());
    let generation = |number: u32| turns("").replace("4100", &format!("{}", 4100 + number % 90));
    let node = Node::new(&generation(0));
    let _kubelet = node.kubelet().await;
    let exporter = traced(&node).await;
    exporter.until("the trace", |page| source(page, "context-switches")).await;
    assert!(minutes > 5.5, "memory is looked at after 5 minutes");
    let begun = Instant::now();
    let (mut number, mut last, mut traced, mut warm_kib) = (0, [0.0; 4], 0, 0);
    while begun.elapsed().as_secs_f64() < minutes * 60.0 {
        number += 1;
        if number % 10 == 0 {
            node.play(&turns("").replace("processes: [", "processes: [] # "));
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        node.play(&generation(number));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let page = exporter.page().await;
        traced += u32::from(source(&page, "context-switches").is_ok());
        let [long, short, _] = seconds(&page).unwrap();
        let nobody = page.value(ACTIVE, &[("pod", "")]).unwrap_or(0.0);
        let now = [long, short, nobody, page.want(DEVICE_ACTIVE, &[("gpu", "0")]).unwrap()];
        assert!(now.iter().zip(last).all(|(now, last)| *now >= last), "{last:?} fell to {now:?}");
        last = now;
        // The simulated library remembers what happened for that long, in the same process.
        if begun.elapsed() > Duration::from_secs(300) && warm_kib == 0 {
            warm_kib = exporter.program.memory_kib("VmRSS:");
        }
    }
    let page = exporter.page().await;
    let kib = exporter.program.memory_kib("VmRSS:");
    println!(
        "{number} generations, {traced} of them traced; {} records, {} lost; {warm_kib} KiB, then {kib}; \
         {last:.1?} s of long, short, nobody and the device",
        page.value(RECORDS, &[("gpu", "0")]).unwrap(),
        page.value(LOST, &[("gpu", "0")]).unwrap(),
    );
    assert_eq!(page.value(LOST, &[("gpu", "0")]), Some(0.0), "{}", page.text);
    assert!(kib <= warm_kib + 1024, "{warm_kib} KiB, then {kib}");
    assert_eq!(open_files(&exporter), 2);
    assert!(f64::from(traced) >= 0.9 * f64::from(number), "{traced} of {number}");
    assert_eq!(exporter.program.count_logged("context switches"), 1, "{}", exporter.program.log());
}

#[tokio::test]
async fn a_trace_is_bound_while_a_gpu_is_shared_and_given_back_after() {
    let alone = turns("").split("- name: short").next().unwrap().to_owned();
    let node = Node::new(&alone);
    let _kubelet = node.kubelet().await;
    let exporter = traced(&node).await;
    exporter.until("the only pod", |page| page.want(OBSERVED, &[("pod", "long")])).await;
    assert_eq!(open_files(&exporter), 0, "{}", exporter.program.log());
    node.play(&turns(""));
    exporter.until("the trace", |page| source(page, "context-switches")).await;
    // The control file and the GPU's; those that were mapped are memory by now.
    assert_eq!(open_files(&exporter), 2);
    node.play(&alone);
    exporter
        .until("the files to be closed", |page| match open_files(&exporter) {
            0 => Ok(()),
            files => Err(format!("{files} are open\n{}", page.text)),
        })
        .await;
    let page = exporter.page().await;
    assert!(page.all(SOURCE, &[]).is_empty(), "{}", page.text);
    assert!(!exporter.program.log().contains(NOT_TRACED), "{}", exporter.program.log());
}
