//! Clients that only take: half-open connections, answers that are not read. Those who matter are
//! answered meanwhile, and memory stays bounded.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use podgauge_sim::aggregator::{AdapterClient, Protocol};
use podgauge_sim::apiserver::ADMIN_TOKEN;
use podgauge_tests::client;
use podgauge_tests::cluster::{Cluster, SERVICE, headers};
use podgauge_tests::flood::{Flood, Kind};
use podgauge_tests::node::Node;
use podgauge_tests::page::Page;
use podgauge_tests::program::Program;
use podgauge_tests::raw;
use podgauge_tests::wait::{LIMIT, until};
use tokio::io::AsyncWriteExt as _;

const NODE: &str =
    "gpus: [{load: {constant: 64}}]\npods: [{name: a, labels: {app: a}, containers: [{devices: [\"0\"]}]}]";
const METRIC: &str = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/a/gpu_utilization";
/// Resident memory that neither program may exceed, KiB: the exporter's limit in the manifests.
const MEMORY: u64 = 128 * 1024;
/// Answers that may wait to be read, KiB.
const UNSENT: u64 = 32 * 1024;
/// KiB that an allocator may keep of the memory that passed through it.
const SLACK: u64 = 40 * 1024;
/// More connections than either program has places.
const CONNECTIONS: usize = 720;
const ADDRESSES: u8 = 16;

/// Resident memory of a program, KiB.
fn resident(program: &Program) -> u64 {
    program.memory_kib("VmRSS:")
}

/// The longest wait of each of those who must be answered, and the highest memory, KiB.
#[derive(Debug, Default)]
struct Worst {
    read: Duration,
    probe: Duration,
    memory: u64,
}

/// Takes every place with connections that may be idle for minutes, and comes with others besides.
async fn flood(target: SocketAddr, tls: bool, connections: usize, path: &'static str) -> [Flood; 2] {
    let idle = Flood::start(target, tls, ADDRESSES, connections * 3 / 4, &[Kind::Idle(path)]);
    idle.open().await;
    let kinds = [Kind::HalfOpen, Kind::Unread(path), Kind::HalfHead];
    let others = Flood::start(target, tls, ADDRESSES, connections / 4, &kinds);
    others.open().await;
    [idle, others]
}

/// Reads as the API server does and probes as a kubelet does, each over new connections, while the
/// flood goes on. Every one must be answered.
async fn adapter_under(connections: usize, goes_on: impl Fn(usize) -> bool) -> Worst {
    let cluster = Cluster::start(NODE).await;
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    let floods = flood(cluster.adapter.address, true, connections, "/apis/custom.metrics.k8s.io").await;
    let certificate = cluster.server.certificates().front_proxy_client.clone();
    let hpa = headers(&[("x-remote-user", "m"), ("x-remote-group", "system:masters")]);
    let (mut worst, mut rounds) = (Worst::default(), 0);
    while goes_on(rounds) {
        let (began, ca) = (Instant::now(), cluster.adapter.authority.pem());
        let client =
            AdapterClient::new(cluster.adapter.address, SERVICE, ca, Some(&certificate), Protocol::Http2);
        let client = client.unwrap();
        let read = tokio::time::timeout(LIMIT, client.send(Method::GET, METRIC, hpa.clone(), LIMIT)).await;
        let read = read.unwrap_or_else(|_| panic!("the API server was kept out"));
        let read = read.unwrap_or_else(|error| panic!("the API server was kept out: {error}"));
        assert_eq!(read.status, 200, "{}", read.text());
        worst.read = worst.read.max(began.elapsed());
        for path in ["/livez", "/readyz"] {
            let began = Instant::now();
            let probe = tokio::time::timeout(LIMIT, cluster.adapter.get(None, path, HeaderMap::new())).await;
            let probe = probe.unwrap_or_else(|_| panic!("the kubelet was kept out of {path}"));
            let probe = probe.unwrap_or_else(|error| panic!("the kubelet was kept out of {path}: {error}"));
            assert_eq!(probe.status, 200, "{}", probe.text());
            worst.probe = worst.probe.max(began.elapsed());
        }
        worst.memory = worst.memory.max(resident(&cluster.adapter.program));
        rounds += 1;
    }
    assert!(worst.memory < MEMORY, "{worst:?}");
    let opened: usize = floods.iter().map(Flood::opened).sum();
    println!("{rounds} rounds, {opened} connections opened, {worst:?}");
    worst
}

/// The same of an exporter, which has scrapers and probes.
async fn exporter_under(connections: usize, goes_on: impl Fn(usize) -> bool) -> Worst {
    let node = Node::new(NODE);
    let exporter = node.exporter().await;
    exporter.until("a page", |page| page.want("DCGM_FI_DEV_SM_CLOCK", &[])).await;
    let floods = flood(exporter.address.parse().unwrap(), false, connections, "/metrics").await;
    let (mut worst, mut rounds) = (Worst::default(), 0);
    while goes_on(rounds) {
        for path in ["/metrics", "/health"] {
            let began = Instant::now();
            let no_headers = HeaderMap::new();
            let answer = tokio::time::timeout(LIMIT, client::get(&exporter.address, path, &no_headers)).await;
            let answer = answer.unwrap_or_else(|_| panic!("the scraper was kept out of {path}"));
            let answer = answer.unwrap_or_else(|error| panic!("{path} could not be had: {error}"));
            assert_eq!(answer.status(), 200, "{path}");
            let wait = if path == "/metrics" { &mut worst.read } else { &mut worst.probe };
            *wait = began.elapsed().max(*wait);
        }
        worst.memory = worst.memory.max(resident(&exporter.program));
        rounds += 1;
    }
    assert!(worst.memory < MEMORY, "{worst:?}");
    let opened: usize = floods.iter().map(Flood::opened).sum();
    println!("{rounds} rounds, {opened} connections opened, {worst:?}");
    worst
}

#[tokio::test]
async fn the_api_server_and_the_kubelet_are_answered_whoever_holds_connections_to_the_adapter() {
    adapter_under(CONNECTIONS, |rounds| rounds < 10).await;
}

#[tokio::test]
async fn scrapers_and_the_kubelet_are_answered_whoever_holds_connections_to_the_exporter() {
    exporter_under(CONNECTIONS, |rounds| rounds < 50).await;
}

/// Pods enough for an explanation of more than a hundred KiB, and one with a GPU.
fn many_pods() -> String {
    let pods: Vec<String> = (0..300).map(|n| format!("{{name: idle-{n}, containers: [{{}}]}}")).collect();
    format!("{}, {}]", NODE.strip_suffix(']').unwrap(), pods.join(", "))
}

/// How often these limits of the adapter took effect.
async fn limited(cluster: &Cluster, limits: &[&str]) -> f64 {
    let masters = headers(&[("x-remote-user", "m"), ("x-remote-group", "system:masters")]);
    let certificate = &cluster.server.certificates().front_proxy_client;
    let answer = cluster.adapter.get(Some(certificate), "/metrics", masters).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let page = Page::parse(answer.text());
    let counts = page.all("podgauge_adapter_http_limited_total", &[]);
    counts.iter().filter(|sample| limits.contains(&sample.labels["limit"].as_str())).map(|s| s.value).sum()
}

#[tokio::test]
async fn answers_that_are_not_read_take_a_bounded_part_of_memory_and_keep_nobody_out() {
    const EXPLAIN: &str =
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/*/gpu_utilization/explain";
    let cluster = Cluster::start(&many_pods()).await;
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    let before = resident(&cluster.adapter.program);
    // Half of them are verified clients, half have a token.
    let certificate = cluster.server.certificates().front_proxy_client.clone();
    let (token, user) =
        (format!("Bearer {ADMIN_TOKEN}"), [("x-remote-user", "m"), ("x-remote-group", "system:masters")]);
    let mut deaf = tokio::task::JoinSet::new();
    for n in 0..12u8 {
        let verified = n % 2 == 0;
        let config = raw::tls(cluster.adapter.authority.pem(), verified.then_some(&certificate));
        let from = std::net::Ipv4Addr::new(127, 0, 0, 2 + n % 4);
        let mut stream = raw::connect_from(from, cluster.adapter.address, config, &[b"h2"]).await.unwrap();
        let mut requests = raw::OPENING.to_vec();
        let token = [("authorization", token.as_str())];
        let identity: &[(&str, &str)] = if verified { &user } else { &token };
        (0..100).for_each(|n| requests.extend(raw::get_frame_with(2 * n + 1, EXPLAIN, identity)));
        stream.write_all(&requests).await.unwrap();
        stream.flush().await.unwrap();
        // The bytes are taken, but no window is ever opened for more of them.
        deaf.spawn(async move { tokio::io::copy(&mut stream, &mut tokio::io::sink()).await });
    }
    let client = AdapterClient::new(
        cluster.adapter.address,
        SERVICE,
        cluster.adapter.authority.pem(),
        Some(&certificate),
        Protocol::Http2,
    )
    .unwrap();
    until("room to be made, or answers to be refused", || async {
        let now = resident(&cluster.adapter.program);
        assert!(now < before + UNSENT + SLACK, "{before} KiB before, {now} KiB now");
        let read = client.send(Method::GET, METRIC, headers(&user), LIMIT).await.unwrap();
        assert_eq!(read.status, 200, "{}", read.text());
        let limited = limited(&cluster, &["unread", "unsent_bytes"]).await;
        if limited > 0.0 { Ok(()) } else { Err(limited) }
    })
    .await;
    drop(deaf);
}

#[tokio::test]
async fn a_stream_whose_client_reads_nothing_is_reset_and_its_connection_goes_on() {
    let node = Node::new(&format!("gpus: [{}]", ["{load: {constant: 40}}"; 24].join(", ")));
    let exporter = node
        .exporter_with(|command| {
            command.args(["--web-write-timeout", "1s"]);
        })
        .await;
    let length = exporter
        .until("a page that is longer than a window", |page| {
            if page.text.len() > 70_000 { Ok(page.text.len()) } else { Err(page.text.len().to_string()) }
        })
        .await;
    let mut stream = tokio::net::TcpStream::connect(&exporter.address).await.unwrap();
    // Room for everything on the connection, and 64 KiB on each stream.
    let room = raw::frame(raw::WINDOW_UPDATE, 0, 0, &(1u32 << 24).to_be_bytes());
    stream.write_all(&[raw::OPENING, &room, &raw::get_frame(1, "/metrics")].concat()).await.unwrap();
    let mut read = 0;
    let reset = tokio::time::timeout(LIMIT, async {
        loop {
            let frame = raw::read_frame(&mut stream).await.unwrap();
            match frame.kind {
                raw::DATA => read += frame.payload.len(),
                raw::RST_STREAM => return frame,
                _ => {}
            }
        }
    });
    let reset = reset.await.expect("the stream is reset");
    assert_eq!((reset.stream, read), (1, 65_535), "of {length} bytes");
    stream.write_all(&raw::get_frame(3, "/health")).await.unwrap();
    let answered = tokio::time::timeout(LIMIT, async {
        loop {
            let frame = raw::read_frame(&mut stream).await.unwrap();
            if frame.kind == raw::DATA && frame.stream == 3 {
                return frame;
            }
        }
    });
    assert!(answered.await.expect("the connection goes on").payload.starts_with(b"O"));
}

/// `cargo test -p podgauge-tests --test behaviours -- --ignored --nocapture a_minute_of_1000`
#[tokio::test]
#[ignore = "a measurement that takes two minutes"]
async fn a_minute_of_1000_connections_from_16_addresses() {
    let minute = || {
        let start = Instant::now();
        move |_| start.elapsed() < Duration::from_secs(60)
    };
    println!("adapter: {:?}", adapter_under(1000, minute()).await);
    println!("exporter: {:?}", exporter_under(1000, minute()).await);
}
