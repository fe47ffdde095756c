//! Exporters of many nodes in one process: pages in the form of the shipped exporter's.
//!
//! The form is one page of a real exporter whose node, GPUs and pods have names that are replaced by
//! those of each node; the counters that a utilization is made of go on with the clock.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use parking_lot::Mutex;
use podgauge_common::http::gzip;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::process::{Programs, free_address};
use crate::simulated::Node;

/// GPUs of each node, each held by one pod.
pub(crate) const GPUS: usize = 8;
/// The address of the first node's exporter; all of 127.0.0.0/8 is loopback.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 0);
/// How long an exporter is said to have run.
const OBSERVED_BEFORE: f64 = 3600.0;

const FORM_NODE: &str = "form-node";
/// Makes the piece of a page that is of a GPU.
type PieceOf = fn(usize) -> Piece;
/// Families in seconds, and what grows in them.
const COUNTERS: [(&str, PieceOf); 7] = [
    ("podgauge_gpu_active_seconds_total", Piece::Active),
    ("podgauge_gpu_device_active_seconds_total", Piece::Active),
    ("podgauge_gpu_observed_seconds_total", |_| Piece::Observed),
    ("podgauge_gpu_recent_active_seconds", Piece::RecentActive),
    ("podgauge_gpu_recent_device_active_seconds", Piece::RecentActive),
    ("podgauge_gpu_recent_observed_seconds", |_| Piece::RecentObserved),
    ("podgauge_gpu_recent_device_observed_seconds", |_| Piece::RecentObserved),
];
/// An exporter's sums of the last seconds.
const RECENT: f64 = 60.0;

/// A piece of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Node,
    Uuid(usize),
    Pod(usize),
    PodUid(usize),
    /// Seconds of this GPU: busy ones.
    Active(usize),
    /// Seconds since the exporter began.
    Observed,
    /// … of the last minute.
    RecentActive(usize),
    RecentObserved,
}

/// A page with places for what differs from node to node.
#[derive(Debug)]
pub(crate) struct Form {
    /// By family, in the page's order.
    lines: Vec<(String, Vec<Piece>)>,
    /// The parts of a page that were asked for before, by query.
    parts: Mutex<HashMap<String, Arc<[Piece]>>>,
    started: Instant,
}

/// How the fleet answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Serving {
    /// All of the page, plain, as an exporter that knows nothing else.
    Whole,
    /// The families that are asked for, plain.
    Parts,
    /// … compressed.
    PartsCompressed,
}

/// Exporters that are served, and what was sent.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) addresses: Vec<SocketAddr>,
    traffic: Arc<Traffic>,
}

#[derive(Debug, Default)]
struct Traffic {
    requests: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

/// Requests, and bytes of them and of their answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exchanged {
    pub(crate) requests: f64,
    pub(crate) received: f64,
    pub(crate) sent: f64,
}

/// The node of that number.
pub(crate) fn node_name(node: usize) -> String {
    format!("gpu-node-{node:05}")
}

/// The pod on a GPU of a node.
pub(crate) fn pod_name(node: usize, gpu: usize) -> String {
    format!("inference-{:05}-7c9f6d5b8-x{gpu}", node * GPUS + gpu)
}

fn pod_uid(node: usize, gpu: usize) -> String {
    format!("5f0e1c9a-0000-4000-8000-{:012x}", node * GPUS + gpu)
}

fn uuid(node: usize, gpu: usize) -> String {
    format!("GPU-7b1f33aa-{gpu:04x}-4000-9000-{node:012x}")
}

/// Percent; of pods side by side different ones.
pub(crate) fn load(node: usize, gpu: usize) -> usize {
    10 + (node * 7 + gpu * 11) % 80
}

/// A node's scenario: what the API server makes its pods of.
pub(crate) fn scenario(node: usize) -> String {
    let mut yaml = format!("node: {}\ngpus:\n", node_name(node));
    for gpu in 0..GPUS {
        let _ = writeln!(yaml, "  - {{uuid: {}}}", uuid(node, gpu));
    }
    yaml.push_str("pods:\n");
    for gpu in 0..GPUS {
        let pod = node * GPUS + gpu;
        let _ = writeln!(
            yaml,
            "  - {{name: {}, uid: {}, labels: {{app: model-{}, tier: tier-{}, \
             pod-template-hash: 7c9f6d5b8, app.kubernetes.io/part-of: inference}}, \
             containers: [{{devices: [\"{gpu}\"]}}]}}",
            pod_name(node, gpu),
            pod_uid(node, gpu),
            pod / 100,
            pod / 1000,
        );
    }
    yaml
}

impl Form {
    /// Takes the form of the shipped exporter's page.
    pub(crate) fn of_exporter(runtime: &Runtime, programs: &Programs) -> anyhow::Result<Self> {
        let mut yaml = format!("node: {FORM_NODE}\ngpus:\n");
        for gpu in 0..GPUS {
            let _ = writeln!(yaml, "  - {{uuid: GPU-form-{gpu}, load: {{constant: 50}}}}");
        }
        yaml.push_str("pods:\n");
        for gpu in 0..GPUS {
            let _ = writeln!(
                yaml,
                "  - {{name: form-pod-{gpu}, uid: form-uid-{gpu}, containers: [{{devices: [\"{gpu}\"]}}]}}"
            );
        }
        let node = Node::start(runtime, &yaml)?;
        let mut exporter = node.exporter(programs, free_address()?)?;
        let address = exporter.address;
        let page = exporter.program.wait(
            Duration::from_secs(20),
            Duration::from_millis(100),
            "a page with every pod",
            || {
                let page = crate::http1::get(address, "/metrics").ok()?;
                (0..GPUS).all(|gpu| page.contains(&format!("form-uid-{gpu}"))).then_some(page)
            },
        )?;
        Self::parse(&page)
    }

    fn parse(page: &str) -> anyhow::Result<Self> {
        let mut lines = Vec::new();
        for line in page.lines().filter(|line| !line.contains("podgauge_exporter_")) {
            let family = family(line).to_owned();
            let counter = COUNTERS.iter().find(|(name, _)| !line.starts_with('#') && *name == family);
            let mut pieces = Vec::new();
            match counter {
                None => split(line, &mut pieces),
                Some((_, grows)) => {
                    let (head, _) = line.rsplit_once(' ').context("a sample without a value")?;
                    let gpu = (0..GPUS)
                        .find(|gpu| head.contains(&format!("GPU-form-{gpu}\"")))
                        .context("a counter of no GPU")?;
                    split(head, &mut pieces);
                    pieces.extend([Piece::Text(" ".to_owned()), grows(gpu)]);
                }
            }
            pieces.push(Piece::Text("\n".to_owned()));
            lines.push((family, pieces));
        }
        Ok(Self { lines, parts: Mutex::default(), started: Instant::now() })
    }

    /// The page of a node as it is now: the families of a query, or all of them.
    pub(crate) fn page(&self, node: usize, query: &str) -> String {
        let observed = OBSERVED_BEFORE + self.started.elapsed().as_secs_f64();
        let busy = |gpu: usize, seconds: f64| seconds * load(node, gpu) as f64 / 100.0;
        let mut page = String::with_capacity(64 << 10);
        for piece in &*self.pieces(query) {
            // Writing to a String cannot fail.
            let _ = match piece {
                Piece::Text(text) => write!(page, "{text}"),
                Piece::Node => write!(page, "{}", node_name(node)),
                Piece::Uuid(gpu) => write!(page, "{}", uuid(node, *gpu)),
                Piece::Pod(gpu) => write!(page, "{}", pod_name(node, *gpu)),
                Piece::PodUid(gpu) => write!(page, "{}", pod_uid(node, *gpu)),
                Piece::Active(gpu) => write!(page, "{:.6}", busy(*gpu, observed)),
                Piece::Observed => write!(page, "{observed:.6}"),
                Piece::RecentActive(gpu) => write!(page, "{:.6}", busy(*gpu, RECENT)),
                Piece::RecentObserved => write!(page, "{RECENT:.6}"),
            };
        }
        page
    }

    fn pieces(&self, query: &str) -> Arc<[Piece]> {
        let mut parts = self.parts.lock();
        if let Some(known) = parts.get(query) {
            return Arc::clone(known);
        }
        let names: Vec<&str> = query.split('&').filter_map(|part| part.strip_prefix("name[]=")).collect();
        let asked =
            |(family, _): &&(String, Vec<Piece>)| names.is_empty() || names.contains(&family.as_str());
        let pieces = self.lines.iter().filter(asked).flat_map(|(_, pieces)| pieces.clone()).collect();
        let pieces: Arc<[Piece]> = joined(pieces).into();
        parts.insert(query.to_owned(), Arc::clone(&pieces));
        pieces
    }
}

/// The family that a line is of, a comment too.
fn family(line: &str) -> &str {
    let rest = line.strip_prefix("# HELP ").or(line.strip_prefix("# TYPE ")).unwrap_or(line);
    rest.split([' ', '{']).next().unwrap_or_default()
}

/// Cuts a line at the names that stand for others.
fn split(line: &str, pieces: &mut Vec<Piece>) {
    let named = |gpu: usize| {
        [
            (format!("GPU-form-{gpu}"), Piece::Uuid(gpu)),
            (format!("form-pod-{gpu}"), Piece::Pod(gpu)),
            (format!("form-uid-{gpu}"), Piece::PodUid(gpu)),
        ]
    };
    let names = (0..GPUS).flat_map(named).chain([(FORM_NODE.to_owned(), Piece::Node)]);
    let first = names
        .filter_map(|(name, piece)| Some((line.find(&name)?, name.len(), piece)))
        .min_by_key(|(at, ..)| *at);
    let Some((at, length, piece)) = first else {
        pieces.push(Piece::Text(line.to_owned()));
        return;
    };
    pieces.push(Piece::Text(line[..at].to_owned()));
    pieces.push(piece);
    split(&line[at + length..], pieces);
}

/// The address of a node's exporter.
fn address_of(node: usize, port: u16) -> SocketAddr {
    (Ipv4Addr::from_bits(FIRST_ADDRESS.to_bits() + node as u32), port).into()
}

/// The node whose exporter has that address.
fn node_at(address: SocketAddr) -> Option<usize> {
    let SocketAddr::V4(address) = address else { return None };
    let node = address.ip().to_bits().checked_sub(FIRST_ADDRESS.to_bits())?;
    address.ip().is_loopback().then_some(node as usize)
}

/// Texts that follow each other are one.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut all: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (all.last_mut(), piece) {
            (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
            (_, piece) => all.push(piece),
        }
    }
    all
}

impl Fleet {
    /// Serves the pages of so many nodes, each on a loopback address of its own.
    ///
    /// One socket listens for all of them, since a process may have few more files open than there are
    /// connections. It has every address of the machine; who does not come over loopback is turned away.
    pub(crate) fn serve(
        runtime: &Runtime,
        form: &Arc<Form>,
        nodes: usize,
        serving: Serving,
    ) -> anyhow::Result<Self> {
        let traffic = Arc::new(Traffic::default());
        let served = Arc::clone(&traffic);
        let form = Arc::clone(form);
        runtime.block_on(async {
            let listener =
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.context("a port for the fleet")?;
            let port = listener.local_addr()?.port();
            tokio::spawn(async move {
                let mut complained = false;
                loop {
                    let stream = match listener.accept().await {
                        Ok((stream, _)) => stream,
                        Err(error) => {
                            if !std::mem::replace(&mut complained, true) {
                                eprintln!("the fleet cannot take a connection: {error}: raise `ulimit -n`");
                            }
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            continue;
                        }
                    };
                    let Some(node) = stream.local_addr().ok().and_then(node_at).filter(|node| *node < nodes)
                    else {
                        continue;
                    };
                    let (form, traffic) = (Arc::clone(&form), Arc::clone(&served));
                    tokio::spawn(async move {
                        drop(answer(stream, &form, node, serving, &traffic).await);
                    });
                }
            });
            let addresses = (0..nodes).map(|node| address_of(node, port)).collect();
            Ok(Self { addresses, traffic })
        })
    }

    /// The nodes' names and addresses.
    pub(crate) fn exporters(&self) -> Vec<(String, SocketAddr)> {
        self.addresses.iter().enumerate().map(|(node, address)| (node_name(node), *address)).collect()
    }

    pub(crate) fn exchanged(&self) -> Exchanged {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
        let Traffic { requests, received, sent } = &*self.traffic;
        Exchanged { requests: of(requests), received: of(received), sent: of(sent) }
    }
}

impl Exchanged {
    /// The requests and bytes since then.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            received: self.received - before.received,
            sent: self.sent - before.sent,
        }
    }
}

/// Answers every request of a connection with the node's page.
async fn answer(
    mut stream: TcpStream,
    form: &Form,
    node: usize,
    serving: Serving,
    traffic: &Traffic,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::with_capacity(4096);
    loop {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        let head = String::from_utf8_lossy(&request);
        let target = head.split(' ').nth(1).unwrap_or_default();
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let query = if serving == Serving::Whole { "" } else { query };
        let page = form.page(node, query);
        let (coding, body) = match serving {
            Serving::PartsCompressed => ("Content-Encoding: gzip\r\n", gzip::compress(page.as_bytes())),
            Serving::Whole | Serving::Parts => ("", page.into()),
        };
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n{coding}Content-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        answer.extend_from_slice(&body);
        traffic.requests.fetch_add(1, Ordering::Relaxed);
        traffic.received.fetch_add(request.len() as u64, Ordering::Relaxed);
        traffic.sent.fetch_add(answer.len() as u64, Ordering::Relaxed);
        request.clear();
        stream.write_all(&answer).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_another_nodes_and_its_counters_go_on() -> anyhow::Result<()> {
        let form = Form::parse(
            "# TYPE podgauge_gpu_active_seconds_total counter\n\
             podgauge_gpu_active_seconds_total{UUID=\"GPU-form-1\",hostname=\"form-node\",pod=\"form-pod-1\"} 3\n\
             podgauge_gpu_allocation{UUID=\"GPU-form-1\",pod_uid=\"form-uid-1\"} 1\n\
             podgauge_exporter_pages_total 1\n",
        )?;
        let page = form.page(12, "");
        let active: f64 =
            page.lines().nth(1).and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).unwrap_or(0.0);
        assert!(active >= OBSERVED_BEFORE * load(12, 1) as f64 / 100.0, "{page}");
        assert!(page.contains(&format!("pod=\"{}\"", pod_name(12, 1))), "{page}");
        assert!(page.contains(&format!("pod_uid=\"{}\"}} 1\n", pod_uid(12, 1))), "{page}");
        assert!(page.contains("hostname=\"gpu-node-00012\"") && !page.contains("form"), "{page}");
        assert!(!page.contains("podgauge_exporter_"), "{page}");
        let part = form.page(12, "name[]=podgauge_gpu_allocation&name[]=other");
        assert!(part.starts_with("podgauge_gpu_allocation{") && part.lines().count() == 1, "{part}");
        Ok(())
    }
}
