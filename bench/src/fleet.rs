//! Exporters of many nodes in one process: pages in the form of the shipped exporter's.
//!
//! The form is one page of a real exporter whose node, GPUs and pods have names that stand for
//! others; the counters that a utilization is made of go on with the clock.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::process::{Programs, free_address};
use crate::simulated::Node;

/// GPUs of each node, each held by one pod.
pub(crate) const GPUS: usize = 8;
/// How long an exporter is said to have run.
const OBSERVED_BEFORE: f64 = 3600.0;

const FORM_NODE: &str = "form-node";
/// Counters in seconds: what part of the load grows in them.
const COUNTERS: [&str; 3] = [
    "podgauge_gpu_active_seconds_total{",
    "podgauge_gpu_device_active_seconds_total{",
    "podgauge_gpu_observed_seconds_total{",
];

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
}

/// A page with places for what differs from node to node.
#[derive(Debug)]
pub(crate) struct Form {
    pieces: Vec<Piece>,
    started: Instant,
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
        let mut pieces = Vec::new();
        for line in page.lines().filter(|line| !line.contains("podgauge_exporter_")) {
            let counter = COUNTERS.iter().position(|name| line.starts_with(name));
            let (head, value) = match counter {
                None => (line, None),
                Some(counter) => {
                    let (head, _) = line.rsplit_once(' ').context("a sample without a value")?;
                    let gpu = (0..GPUS)
                        .find(|gpu| head.contains(&format!("GPU-form-{gpu}\"")))
                        .context("a counter of no GPU")?;
                    (
                        head,
                        Some(if COUNTERS[counter].contains("observed") {
                            Piece::Observed
                        } else {
                            Piece::Active(gpu)
                        }),
                    )
                }
            };
            split(head, &mut pieces);
            if let Some(value) = value {
                pieces.push(Piece::Text(" ".to_owned()));
                pieces.push(value);
            }
            pieces.push(Piece::Text("\n".to_owned()));
        }
        Ok(Self { pieces: joined(pieces), started: Instant::now() })
    }

    /// The page of a node as it is now.
    pub(crate) fn page(&self, node: usize) -> String {
        let observed = OBSERVED_BEFORE + self.started.elapsed().as_secs_f64();
        let mut page = String::with_capacity(64 << 10);
        for piece in &self.pieces {
            // Writing to a String cannot fail.
            let _ = match piece {
                Piece::Text(text) => write!(page, "{text}"),
                Piece::Node => write!(page, "{}", node_name(node)),
                Piece::Uuid(gpu) => write!(page, "{}", uuid(node, *gpu)),
                Piece::Pod(gpu) => write!(page, "{}", pod_name(node, *gpu)),
                Piece::PodUid(gpu) => write!(page, "{}", pod_uid(node, *gpu)),
                Piece::Active(gpu) => write!(page, "{:.6}", observed * load(node, *gpu) as f64 / 100.0),
                Piece::Observed => write!(page, "{observed:.6}"),
            };
        }
        page
    }
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

/// Serves the pages of so many nodes, each on a loopback port of its own; their addresses.
pub(crate) fn serve(runtime: &Runtime, form: &Arc<Form>, nodes: usize) -> anyhow::Result<Vec<SocketAddr>> {
    runtime.block_on(async {
        let mut addresses = Vec::with_capacity(nodes);
        for node in 0..nodes {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .await
                .context("the fleet needs two open files a node: raise `ulimit -n`")?;
            addresses.push(listener.local_addr()?);
            let form = Arc::clone(form);
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let form = Arc::clone(&form);
                    tokio::spawn(async move { drop(answer(stream, &form, node).await) });
                }
            });
        }
        Ok(addresses)
    })
}

/// Answers every request of a connection with the node's page.
async fn answer(mut stream: TcpStream, form: &Form, node: usize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        request.clear();
        let page = form.page(node);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\r\n",
            page.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(page.as_bytes()).await?;
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
        let page = form.page(12);
        let active: f64 =
            page.lines().nth(1).and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).unwrap_or(0.0);
        assert!(active >= OBSERVED_BEFORE * load(12, 1) as f64 / 100.0, "{page}");
        assert!(page.contains(&format!("pod=\"{}\"", pod_name(12, 1))), "{page}");
        assert!(page.contains(&format!("pod_uid=\"{}\"}} 1\n", pod_uid(12, 1))), "{page}");
        assert!(page.contains("hostname=\"gpu-node-00012\"") && !page.contains("form"), "{page}");
        assert!(!page.contains("podgauge_exporter_"), "{page}");
        Ok(())
    }
}
