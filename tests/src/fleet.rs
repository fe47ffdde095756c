//! A cluster of several nodes with pods, and an adapter that scrapes the exporters it is pointed to.

use std::net::SocketAddr;
use std::sync::Arc;

use podgauge_sim::aggregator::{Aggregation, Aggregator};
use podgauge_sim::apiserver::{ApiServer, ApiServerHandle, ApiServerOptions};
use serde_json::Value;

use crate::cluster::{Adapter, headers, number};
use crate::fake_exporter::Told;
use crate::node::Node;
use crate::wait::until;

/// Nodes `gpu-node-0`, …, each with these pods, and an adapter that knows where their exporters are.
#[derive(Debug)]
pub struct Fleet {
    pub node: Node,
    pub adapter: Adapter,
    pub aggregator: Arc<Aggregator>,
    pub server: ApiServerHandle,
}

/// One item of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answered {
    pub value: f64,
    /// `windowSeconds`.
    pub window: u64,
}

/// Intervals that keep tests short.
const TIMES: [&str; 3] = ["--scrape-interval=1s", "--window=10s", "--staleness=5s"];

/// The first pod of a node is on its first GPU, and so on.
pub fn scenario(node: usize, pods: &[&str]) -> String {
    let gpus = vec!["{}"; pods.len()].join(", ");
    let pod = |(gpu, name): (usize, &&str)| {
        format!("{{name: {name}, uid: uid-{name}, containers: [{{devices: [\"{gpu}\"]}}]}}")
    };
    let pods: Vec<String> = pods.iter().enumerate().map(pod).collect();
    format!("node: gpu-node-{node}\ngpus: [{gpus}]\npods: [{}]\n", pods.join(", "))
}

/// The scenarios of nodes with these pods.
pub fn scenarios(pods: &[&[&str]]) -> Vec<String> {
    pods.iter().enumerate().map(|(number, pods)| scenario(number, pods)).collect()
}

/// The arguments, with the times of tests where they have none.
fn timed(arguments: &[String]) -> Vec<String> {
    let given = |time: &&str| {
        let name = time.split('=').next().unwrap_or_default();
        !arguments.iter().any(|argument| argument.starts_with(name))
    };
    let times = TIMES.into_iter().filter(given).map(str::to_owned);
    times.chain(arguments.iter().cloned()).collect()
}

async fn adapter(node: &Node, server: &ApiServerHandle, arguments: &[String]) -> (Adapter, Arc<Aggregator>) {
    let adapter = Adapter::start(node, server, |command| {
        command.args(arguments);
    })
    .await;
    let settings = Aggregation::of_adapter(adapter.address, adapter.authority.pem().to_owned());
    let aggregator = server.aggregate(settings).unwrap();
    (adapter, aggregator)
}

pub fn told(pod: &str, load: f64) -> Told {
    Told { uuid: format!("GPU-{pod}"), pod: pod.to_owned(), uid: format!("uid-{pod}"), load }
}

#[track_caller]
pub fn near(value: f64, truth: f64) {
    assert!((value - truth).abs() < 0.05, "{value}, {truth} is true");
}

impl Fleet {
    pub async fn start(pods: &[&[&str]], exporters: &[(usize, &str, SocketAddr)]) -> Self {
        Self::start_with(pods, exporters, &[]).await
    }

    /// Exporters by node, scheme and address.
    pub async fn start_with(
        pods: &[&[&str]],
        exporters: &[(usize, &str, SocketAddr)],
        arguments: &[String],
    ) -> Self {
        let urls = exporters
            .iter()
            .map(|(node, scheme, address)| format!("--exporter-url=gpu-node-{node}={scheme}://{address}"));
        let arguments: Vec<String> = urls.chain(arguments.iter().cloned()).collect();
        Self::of(&scenarios(pods), &arguments).await
    }

    /// Nodes with these scenarios, and an adapter with these arguments besides its times.
    pub async fn of(scenarios: &[String], arguments: &[String]) -> Self {
        Self::launch(scenarios, &timed(arguments)).await
    }

    /// As [`of`](Self::of), with these arguments alone.
    pub async fn launch(scenarios: &[String], arguments: &[String]) -> Self {
        let node = Node::new(&scenarios[0]);
        let mut paths = vec![node.scenario()];
        for (number, scenario) in scenarios.iter().enumerate().skip(1) {
            let path = node.path().join(format!("node-{number}.yaml"));
            std::fs::write(&path, scenario).unwrap();
            paths.push(path);
        }
        let options = ApiServerOptions { scenarios: paths, ..ApiServerOptions::default() };
        let server = ApiServer::start(options).await.unwrap();
        let (adapter, aggregator) = adapter(&node, &server, arguments).await;
        Self { node, adapter, aggregator, server }
    }

    /// Another adapter takes the place of this one: it knows nothing yet.
    pub async fn restart_adapter(&mut self, arguments: &[String]) {
        (self.adapter, self.aggregator) = adapter(&self.node, &self.server, &timed(arguments)).await;
    }

    /// A pod's utilization, or the text of the 404.
    pub async fn ask(&self, pod: &str) -> Result<f64, String> {
        self.ask_for(pod, "gpu_utilization").await
    }

    /// A metric of a pod, or the text of the 404.
    pub async fn ask_metric(&self, pod: &str, metric: &str) -> Result<Answered, String> {
        self.ask_path(&format!("namespaces/demo/pods/{pod}/{metric}")).await
    }

    /// The only item below the API's version, or the text of the 404. Asks again where the simulated API
    /// server's answer about the right to ask came too late: no statement about the metric was made.
    pub async fn ask_path(&self, path: &str) -> Result<Answered, String> {
        until(&format!("an answer to {path}"), || async {
            let answer =
                self.aggregator.metric_request(path, vec![]).await.map_err(|error| error.to_string())?;
            match answer.status.as_u16() {
                200 => {
                    let item = &answer.json().unwrap()["items"][0];
                    Ok(Ok(Answered {
                        value: number(&item["value"]),
                        window: item["windowSeconds"].as_u64().or(item["window"].as_u64()).unwrap(),
                    }))
                }
                500 => Err(answer.text()),
                _ => Ok(Err(answer.text())),
            }
        })
        .await
    }

    /// The value of a metric of a pod, or the text of the 404.
    pub async fn ask_for(&self, pod: &str, metric: &str) -> Result<f64, String> {
        Ok(self.ask_metric(pod, metric).await?.value)
    }

    pub async fn value(&self, pod: &str) -> f64 {
        self.value_of(pod, "gpu_utilization").await
    }

    pub async fn value_of(&self, pod: &str, metric: &str) -> f64 {
        until(&format!("{metric} of {pod}"), || self.ask_for(pod, metric)).await
    }

    /// Waits until the pod has none because of this.
    pub async fn refused(&self, pod: &str, words: &str) {
        until(&format!("{pod} to be left out: {words}"), || async {
            match self.ask(pod).await {
                Err(text) if text.contains(words) => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }

    /// The answer of `explain` about a pod, or the text of the refusal.
    pub async fn explained(&self, pod: &str, metric: &str) -> Result<Value, String> {
        let path = format!("namespaces/demo/pods/{pod}/{metric}/explain");
        let answer =
            self.aggregator.metric_request(&path, vec![]).await.map_err(|error| error.to_string())?;
        let explanation = answer.json().map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(explanation["pods"][0].clone()) } else { Err(answer.text()) }
    }

    /// A sample of the adapter's own metrics; `None` if there is none that begins like this.
    pub async fn own_metric(&self, begins: &str) -> Option<f64> {
        let admin = headers(&[("authorization", "Bearer sim-admin")]);
        let page = self.adapter.get(None, "/metrics", admin).await.unwrap().text();
        let line = page.lines().find(|line| line.starts_with(begins))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    /// Bytes of the adapter's own memory.
    pub fn memory(&self) -> u64 {
        self.memory_line("RssAnon:")
    }

    /// Bytes that a line of the adapter's /proc/PID/status tells.
    pub fn memory_line(&self, name: &str) -> u64 {
        1024 * self.adapter.program.memory_kib(name)
    }
}
