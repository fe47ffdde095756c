//! Many scrapes and few rights: no growth, no further calls, no privilege.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use podgauge_tests::lacking::{WITHOUT_NAMESPACES, leave_out};
use podgauge_tests::node::Node;
use podgauge_tests::page::Page;
use podgauge_tests::program::{Exporter, run};
use podgauge_tests::{built, nvml_library};
use tokio::net::TcpStream;

const POD: &str = "gpus: [{load: {constant: 50}}]\npods: [{name: a, containers: [{devices: [\"0\"]}]}]";
/// Connections that scrape side by side.
const CONNECTIONS: usize = 4;
/// What an allocator may keep more after as many scrapes as before, KiB.
const NOISE_KIB: u64 = 1024;

/// Resident KiB, threads, open files.
fn footprint(exporter: &Exporter) -> (u64, u64, usize) {
    let proc = format!("/proc/{}", exporter.program.pid());
    let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
    let number = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (number("VmRSS:"), number("Threads:"), std::fs::read_dir(format!("{proc}/fd")).unwrap().count())
}

/// Scrapes so often over each of some kept connections.
async fn scrape(address: &str, times: usize) {
    let connections = (0..CONNECTIONS).map(|_| async {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        for round in 0..times {
            let request = Request::get("/metrics").header("host", address);
            let request = if round % 2 == 0 { request.header("accept-encoding", "gzip") } else { request };
            let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200);
            assert!(!answer.into_body().collect().await.unwrap().to_bytes().is_empty());
        }
        drop(sender);
        connection.await.unwrap().unwrap();
    });
    futures::future::join_all(connections).await;
}

#[tokio::test]
async fn e1_a_hundred_thousand_scrapes_leave_no_trace() {
    let node = Node::new(POD);
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    exporter.until("labels", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[("pod", "a")])).await;
    // Warm: buffers have their size, each thread its arena.
    scrape(&exporter.address, 1000).await;
    let warm = footprint(&exporter);
    scrape(&exporter.address, 25_000).await;
    // Connections are gone when the other side has seen their end.
    podgauge_tests::wait::until("the connections' end", || async {
        let after = footprint(&exporter);
        if after.2 <= warm.2 { Ok(()) } else { Err(after) }
    })
    .await;
    let after = footprint(&exporter);
    assert!(after.0 <= warm.0 + NOISE_KIB, "resident KiB, threads, files: {warm:?}, then {after:?}");
    assert!(after.1 <= warm.1, "resident KiB, threads, files: {warm:?}, then {after:?}");
}

/// Calls so far, by name.
fn calls(page: &Page) -> BTreeMap<String, f64> {
    let family = page.all("podgauge_exporter_nvml_calls_total", &[]);
    family.iter().map(|sample| (sample.labels["call"].clone(), sample.value)).collect()
}

/// What one page costs does not depend on how many read it: over as many pages as before, the
/// calls are as many, with ten scrapers or one.
#[tokio::test]
async fn e3_ten_parallel_scrapes_cause_no_further_calls() {
    let node = Node::new(POD);
    let kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes_with_own_metrics().await;
    exporter.until("labels", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[("pod", "a")])).await;
    let ticks = |page: &Page| calls(page)["nvmlDeviceGetPowerUsage"];
    // Over so many ticks of the NVML thread, other calls and lists grow by so many per tick.
    let measure = async |scrapers: usize| {
        let from = exporter.page().await;
        let lists = kubelet.calls().list;
        let begun = std::time::Instant::now();
        let to = podgauge_tests::wait::until("six ticks", || async {
            let pages =
                futures::future::join_all((0..scrapers).map(|_| async { exporter.page().await })).await;
            let page = pages.into_iter().next().unwrap();
            if ticks(&page) >= ticks(&from) + 6.0 { Ok(page) } else { Err("not yet") }
        })
        .await;
        let spent: f64 = calls(&to).values().sum::<f64>() - calls(&from).values().sum::<f64>();
        let lists = (kubelet.calls().list - lists) as f64;
        (spent / (ticks(&to) - ticks(&from)), lists / begun.elapsed().as_secs_f64())
    };
    let (one, _) = measure(1).await;
    let (ten, lists) = measure(10).await;
    // A count of GPUs comes every fifth tick: less than one call of difference per tick.
    assert!((ten - one).abs() < 1.0, "{one} calls per tick with one scraper, {ten} with ten");
    // Each 2 s; an edge may fall into the time measured.
    assert!(lists <= 0.9, "{lists} lists a second");
}

#[tokio::test]
async fn e4_root_without_capabilities_on_a_read_only_root() {
    // SAFETY: geteuid(2) cannot fail and touches no memory.
    #[allow(unsafe_code)]
    let root = unsafe { libc::geteuid() } == 0;
    let tried = run(Command::new("unshare").args(["--mount", "mount", "-o", "remount,bind,ro", "/"]));
    if !root || !tried.status.success() {
        let cause = String::from_utf8_lossy(&tried.stderr);
        let reason = format!("mounting / read-only and dropping capabilities needs root: {cause}");
        return leave_out(WITHOUT_NAMESPACES, &reason);
    }
    let node = Node::new(POD);
    let folder = node.path().join("pod-resources");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o750)).unwrap();
    let socket = folder.join("kubelet.sock");
    let options = podgauge_sim::kubelet::KubeletOptions::default();
    let _kubelet =
        podgauge_sim::kubelet::Kubelet::start(socket.clone(), node.scenario(), options).await.unwrap();
    let mut command = Command::new("unshare");
    // The root of a mount namespace of its own, read-only with all below it; then no capability.
    let script = "mount -o remount,bind,ro / && if touch \"$1\" 2>/dev/null; then exit 9; fi; shift; \
                  exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs \"$@\"";
    command.args(["--mount", "sh", "-c", script, "sh"]).arg("/podgauge-e4-probe");
    command.arg(built("podgauge-exporter")).args(["-a", "127.0.0.1:0", "-k"]);
    command.arg("--pod-resources-kubelet-socket").arg(&socket);
    command.arg("--path.pod-logs").arg(node.path().join("trees/pod-logs"));
    command.arg("--nvml-library").arg(nvml_library());
    command.env("PODGAUGE_SIM_SCENARIO", node.scenario()).env_remove("RUST_LOG");
    let mut program = podgauge_tests::program::Program::start("podgauge-exporter", command);
    let line = program.logged("serving on ").await;
    let address = line["serving on ".len()..].split(',').next().unwrap().to_owned();
    let exporter = Exporter { program, address };
    exporter.until("labels", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[("pod", "a")])).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", exporter.program.pid())).unwrap();
    let line = |key: &str| {
        status.lines().find(|line| line.starts_with(key)).unwrap().split_whitespace().nth(1).unwrap()
    };
    assert_eq!(
        (line("Uid:"), line("CapEff:"), line("CapBnd:")),
        ("0", "0000000000000000", "0000000000000000")
    );
}
