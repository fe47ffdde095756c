//! The adapter with 10,000 pods on a fleet of simulated nodes: latency, memory, CPU.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use podgauge_common::exposition::parse;
use podgauge_sim::apiserver::{
    ADAPTER_TOKEN, ApiServer, ApiServerHandle, ApiServerOptions, Credentials, Exporter as Endpoint,
};
use podgauge_sim::certs::Authority;
use podgauge_sim::hpa;
use tokio::runtime::Runtime;

use crate::fleet::{self, Fleet, Form, Serving};
use crate::front_proxy::{Answer, FrontProxy, User};
use crate::latency::Latencies;
use crate::process::{Program, Programs};
use crate::report::{Budget, Report, Unit};
use crate::rows;
use crate::simulated::runtime;

/// The name that the aggregation layer verifies.
const SERVICE: &str = "podgauge-adapter.podgauge.svc";
const API: &str = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods";
const HPA: User = User {
    name: "system:serviceaccount:kube-system:horizontal-pod-autoscaler",
    group: "system:authenticated",
};
const ADMIN: User = User { name: "bench", group: "system:masters" };
/// Until histories are as long as they get: the window of 60 s and some intervals.
const FILL: Duration = Duration::from_secs(75);
/// Over which the CPU of scraping alone is counted.
const SCRAPING: Duration = Duration::from_secs(20);
/// Until every exporter was scraped a few times.
const SETTLE: Duration = Duration::from_secs(10);
/// That a pod with one GPU has in the adapter.
const SERIES: usize = 4;
const REQUESTS_100: usize = 5_000;
const REQUESTS_1000: usize = 2_000;

/// A stand-in API server with pods and exporters.
#[derive(Debug)]
pub(crate) struct Cluster {
    server: ApiServerHandle,
}

/// A running podgauge-adapter, and the aggregation layer's connection to it.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) program: Program,
    connection: FrontProxy,
}

impl Cluster {
    pub(crate) fn start(
        runtime: &Runtime,
        scenarios: Vec<PathBuf>,
        exporters: &[(String, SocketAddr)],
    ) -> anyhow::Result<Self> {
        let endpoint = |(node, address): &(String, SocketAddr)| Endpoint {
            node: Some(node.clone()),
            address: *address,
            ready: true,
        };
        let options = ApiServerOptions {
            scenarios,
            exporters: exporters.iter().map(endpoint).collect(),
            ..ApiServerOptions::default()
        };
        Ok(Self { server: runtime.block_on(ApiServer::start(options))? })
    }
}

impl Adapter {
    /// Starts it, and gives it once it is ready.
    pub(crate) fn start(
        programs: &Programs,
        cluster: &Cluster,
        folder: &Path,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let server = &cluster.server;
        let authority = Authority::new("podgauge-adapter-ca")?;
        let (certificate, key) = (folder.join("adapter.crt"), folder.join("adapter.key"));
        authority.server("podgauge-adapter", &[SERVICE])?.write(&certificate, &key)?;
        let kubeconfig = folder.join("adapter.kubeconfig");
        server.write_kubeconfig(&kubeconfig, &Credentials::Token(ADAPTER_TOKEN.to_owned()))?;
        let mut command = Command::new(&programs.adapter);
        command
            .env_remove("RUST_LOG")
            .env_remove("POD_NAMESPACE")
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--bind-address", "127.0.0.1", "--secure-port", "0"])
            .args(["--exporter-service", "podgauge/podgauge-exporter"])
            .arg("--tls-cert-file")
            .arg(certificate)
            .arg("--tls-private-key-file")
            .arg(key)
            .args(arguments);
        let mut program = Program::start("podgauge-adapter", command)?;
        let address: SocketAddr = program.logged("serving on https://")?.trim().parse()?;
        let leaf = &server.certificates().front_proxy_client;
        let connection = FrontProxy::connect(address, SERVICE, authority.pem(), leaf)?;
        let mut adapter = Self { program, connection };
        let connection = &adapter.connection;
        adapter.program.wait(Duration::from_secs(40), Duration::from_millis(50), "readiness", || {
            connection.get("/readyz", HPA).ok()?.status.is_success().then_some(())
        })?;
        Ok(adapter)
    }

    /// The HPA's request below the pods of the namespace.
    fn ask_metric(&self, below: &str) -> anyhow::Result<Answer> {
        let answer = self.connection.get(&format!("{API}/{below}"), HPA)?;
        ensure!(answer.status.is_success(), "{below}: {} {}", answer.status, answer.text());
        Ok(answer)
    }

    /// A pod's utilization, percent.
    pub(crate) fn value(&self, pod: &str) -> anyhow::Result<f64> {
        let answer = serde_json::from_slice(&self.ask_metric(&format!("{pod}/gpu_utilization"))?.body)?;
        let items = hpa::items(&answer).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(*items.values().next().context("no value")? as f64 / 1000.0)
    }

    /// A gauge of the adapter's own.
    fn own(&self, name: &str) -> anyhow::Result<f64> {
        let answer = self.connection.get("/metrics", ADMIN)?;
        let text = answer.text();
        let sample = parse::samples(&text).filter_map(Result::ok).find(|sample| sample.name == name);
        Ok(sample.with_context(|| format!("no {name} in {text}"))?.value)
    }

    /// The same request many times; each answer must have so many items.
    fn repeat(&self, selector: &str, items: usize, requests: usize) -> anyhow::Result<(Latencies, usize)> {
        let below = format!("*/gpu_utilization?labelSelector={}", selector.replace('=', "%3D"));
        let mut bytes = 0;
        let mut all = Latencies::default();
        for request in 0..requests + requests / 10 {
            let start = Instant::now();
            let answer = self.ask_metric(&below)?;
            let elapsed = start.elapsed();
            if request == 0 {
                let answered: serde_json::Value = serde_json::from_slice(&answer.body)?;
                let found = answered["items"].as_array().map_or(0, Vec::len);
                ensure!(found == items, "{selector} matches {items} pods, {found} have a value");
                bytes = answer.body.len();
            }
            ensure!(answer.body.len().abs_diff(bytes) < bytes / 10, "{selector}: an answer of another size");
            // The first tenth warms up.
            if request >= requests / 10 {
                all.push(elapsed);
            }
        }
        Ok((all, bytes))
    }
}

/// How large the measured cluster is, and its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) pods: usize,
    pub(crate) rss: Budget,
    /// Of a selector that matches 100 pods, p50 and p99, and of one that matches 1,000.
    pub(crate) latencies: [Budget; 3],
    /// Compressing the fleet's pages takes more than reading them.
    pub(crate) serving: Serving,
    pub(crate) arguments: &'static [&'static str],
}

pub(crate) fn measure(programs: &Programs, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    let Scale { pods, .. } = *scale;
    ensure!(pods >= 1000 && pods.is_multiple_of(1000), "--pods must be a multiple of 1000");
    let nodes = pods / fleet::GPUS;
    let runtime = runtime()?;
    let folder = tempfile::tempdir()?;
    let form = Arc::new(Form::of_exporter(&runtime, programs)?);
    let fleet = Fleet::serve(&runtime, &form, nodes, scale.serving)?;
    let mut scenarios = Vec::with_capacity(nodes);
    for node in 0..nodes {
        let path = folder.path().join(format!("{node}.yaml"));
        std::fs::write(&path, fleet::scenario(node))?;
        scenarios.push(path);
    }
    let cluster = Cluster::start(&runtime, scenarios.clone(), &fleet.exporters())?;
    // The files are looked at ten times a second each. Without one the pods stay as they are.
    for path in scenarios {
        std::fs::remove_file(path)?;
    }
    let start = Instant::now();
    let adapter = Adapter::start(programs, &cluster, folder.path(), scale.arguments)?;
    adapter.connection.rest(FILL.saturating_sub(start.elapsed()));

    let filled = adapter.program.memory()?;
    let (small, small_bytes) = adapter.repeat("app=model-7", 100, REQUESTS_100)?;
    let (large, large_bytes) = adapter.repeat("tier=tier-0", 1000, REQUESTS_1000)?;
    let memory = adapter.program.memory()?;
    let value = adapter.value(&fleet::pod_name(3, 5))?;
    let truth = fleet::load(3, 5) as f64;
    ensure!((value - truth).abs() < 0.5, "a pod's value is {value}, {truth} is true");
    let [known, series, answering] =
        ["pods", "series", "exporters"].map(|name| adapter.own(&format!("podgauge_adapter_{name}")));
    let (known, series, answering) = (known?, series?, answering?);
    ensure!(
        (known, series, answering) == (pods as f64, (pods * SERIES) as f64, nodes as f64),
        "{known} pods, {series} series and {answering} exporters by the adapter's metrics, for {pods} pods of {SERIES} series on {nodes} nodes"
    );

    let how = format!(
        "TLS and HTTP/2 with the front-proxy certificate over one kept connection, the client's time included; {answering} exporters scraped every 2 s meanwhile"
    );
    let [p50_100, p99_100, p50_1000] = scale.latencies;
    report.judge(
        p50_100,
        small.quantile_ms(0.5),
        format!("{} requests, {} KiB an answer; {how}", small.len(), small_bytes / 1024),
    );
    report.judge(p99_100, small.quantile_ms(0.99), "the same");
    report.judge(
        p50_1000,
        large.quantile_ms(0.5),
        format!("{} requests, {} KiB an answer; likewise", large.len(), large_bytes / 1024),
    );
    report.tell(
        &format!("adapter, {pods} pods: selector matching 1,000 pods, p99"),
        Unit::Ms,
        large.quantile_ms(0.99),
        "the same",
    );
    report.judge(
        scale.rss,
        memory.resident,
        format!(
            "VmRSS after all requests, {known} pods and {series} series by its own metrics: {:.1} MiB of its own (RssAnon), {:.1} MiB mapped files; {:.1} MiB before the requests",
            memory.anonymous, memory.file, filled.resident
        ),
    );
    Ok(())
}

/// The CPU and the bytes of scraping so many exporters, and nothing else.
pub(crate) fn measure_scraping(
    programs: &Programs,
    exporters: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let form = Arc::new(Form::of_exporter(&runtime, programs)?);
    for serving in [Serving::Whole, Serving::PartsCompressed] {
        let folder = tempfile::tempdir()?;
        let fleet = Fleet::serve(&runtime, &form, exporters, serving)?;
        let cluster = Cluster::start(&runtime, Vec::new(), &fleet.exporters())?;
        let adapter = Adapter::start(programs, &cluster, folder.path(), &[])?;
        adapter.connection.rest(SETTLE);
        let (cpu, since, before) = (adapter.program.cpu()?, Instant::now(), fleet.exchanged());
        adapter.connection.rest(SCRAPING);
        let cpu = adapter.program.cpu()?.saturating_sub(cpu).as_secs_f64();
        let seconds = since.elapsed().as_secs_f64();
        let exchanged = fleet.exchanged().since(before);
        let due = exporters as f64 * seconds / 2.0;
        let late = match exchanged.requests / due {
            all if all > 0.98 => String::new(),
            part => format!(", only {:.0} % of those that were due", 100.0 * part),
        };
        let percent = 100.0 * cpu / seconds;
        let (sent, received) = (exchanged.sent / exchanged.requests, exchanged.received / exchanged.requests);
        let micros = 1e6 * cpu / exchanged.requests;
        let how = format!(
            "{exporters} exporters of 8 GPUs every 2 s, {:.0} scrapes in {seconds:.0} s{late}, {micros:.0} µs each; {:.1} KiB an answer with its head, {:.1} KiB a request",
            exchanged.requests,
            sent / 1024.0,
            received / 1024.0
        );
        match serving {
            Serving::Whole => {
                report.tell("adapter: CPU of scraping whole pages", Unit::PercentOfCore, percent, how);
            }
            _ => {
                report.judge(rows::SCRAPING_CPU, percent, how);
                report.judge(rows::SCRAPING_BYTES, sent / 1024.0, "an answer with its head, compressed");
            }
        }
    }
    Ok(())
}
