//! A simulated cluster of one GPU node: kubelet, API server, and the two shipped programs.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use podgauge_sim::aggregator::{AdapterClient, Aggregation, Aggregator, Answer, Protocol};
use podgauge_sim::apiserver::{
    ADAPTER_TOKEN, ADMIN_TOKEN, ApiServer, ApiServerHandle, ApiServerOptions, Credentials,
    Exporter as Endpoint,
};
use podgauge_sim::certs::{Authority, Leaf};
use podgauge_sim::kubelet::KubeletHandle;
use podgauge_sim_nvml::scenario::Scenario;
use serde_json::Value;

use crate::built;
use crate::node::Node;
use crate::program::{Exporter, Program, without_this_machines_settings};
use crate::wait::until;

/// The name that the aggregation layer verifies.
pub const SERVICE: &str = "podgauge-adapter.podgauge.svc";

/// Everything that answers one HPA request.
#[derive(Debug)]
pub struct Cluster {
    pub node: Node,
    pub kubelet: KubeletHandle,
    pub exporter: Option<Exporter>,
    pub server: ApiServerHandle,
    pub adapter: Adapter,
}

/// A running podgauge-adapter.
#[derive(Debug)]
pub struct Adapter {
    pub program: Program,
    pub address: SocketAddr,
    pub authority: Authority,
}

impl Cluster {
    /// Starts all of it on a scenario, the adapter asking each second for a window of 10 s.
    pub async fn start(yaml: &str) -> Self {
        Self::start_with(yaml, |_| {}).await
    }

    /// As [`start`](Self::start), with more arguments for the adapter.
    pub async fn start_with(yaml: &str, configure: impl FnOnce(&mut Command)) -> Self {
        Self::both_on(Node::new(yaml), |_| {}, configure).await
    }

    /// As [`start_with`](Self::start_with), on a node that is there.
    pub async fn on(node: Node, configure: impl FnOnce(&mut Command)) -> Self {
        Self::both_on(node, |_| {}, configure).await
    }

    /// As [`start`](Self::start), with more arguments for the exporter.
    pub async fn start_exporter(yaml: &str, configure: impl FnOnce(&mut Command)) -> Self {
        Self::both_on(Node::new(yaml), configure, |_| {}).await
    }

    async fn both_on(
        node: Node,
        exporter: impl FnOnce(&mut Command),
        configure: impl FnOnce(&mut Command),
    ) -> Self {
        let kubelet = node.kubelet().await;
        let exporter = node
            .exporter_with(|command| {
                node.in_kubernetes(command);
                exporter(command);
            })
            .await;
        let endpoint = Endpoint {
            node: Some(Scenario::read(&node.scenario()).unwrap().node),
            address: exporter.address.parse().unwrap(),
            ready: true,
        };
        let server = ApiServer::start(ApiServerOptions {
            scenarios: vec![node.scenario()],
            exporters: vec![endpoint],
            ..ApiServerOptions::default()
        })
        .await
        .unwrap();
        let adapter = Adapter::start(&node, &server, |command| {
            command.args(["--exporter-service", "podgauge/podgauge-exporter"]);
            command.args(["--scrape-interval", "1s", "--window", "10s", "--staleness", "5s"]);
            configure(command);
        })
        .await;
        Self { node, kubelet, exporter: Some(exporter), server, adapter }
    }

    /// The aggregation layer in front of the adapter, as kube-apiserver has it.
    pub fn aggregator(&self) -> Arc<Aggregator> {
        self.aggregator_with(|_| {})
    }

    /// As [`aggregator`](Self::aggregator), with another protocol or certificate.
    pub fn aggregator_with(&self, change: impl FnOnce(&mut Aggregation)) -> Arc<Aggregator> {
        let mut settings =
            Aggregation::of_adapter(self.adapter.address, self.adapter.authority.pem().to_owned());
        change(&mut settings);
        self.server.aggregate(settings).unwrap()
    }

    /// A kubeconfig of the administrator.
    pub fn admin_kubeconfig(&self) -> std::path::PathBuf {
        let path = self.node.path().join("admin.kubeconfig");
        self.server.write_kubeconfig(&path, &Credentials::Token(ADMIN_TOKEN.to_owned())).unwrap();
        path
    }

    /// Asks as the HPA does until a pod has a value, and gives it.
    pub async fn value(&self, aggregator: &Aggregator, pod: &str, metric: &str) -> f64 {
        until(&format!("{metric} of {pod}"), || async {
            let answer =
                aggregator.metric_request(&format!("namespaces/demo/pods/{pod}/{metric}"), vec![]).await;
            let answer = answer.map_err(|error| error.to_string())?;
            if answer.status != 200 {
                return Err(answer.text());
            }
            Ok(number(&answer.json().unwrap()["items"][0]["value"]))
        })
        .await
    }
}

impl Adapter {
    /// Starts the adapter with a serving certificate of its Service, and waits until it is ready.
    pub async fn start(node: &Node, server: &ApiServerHandle, configure: impl FnOnce(&mut Command)) -> Self {
        let adapter = Self::launch(node, server, configure).await;
        adapter.ready().await;
        adapter
    }

    /// As [`start`](Self::start), without waiting until it is ready: it listens.
    pub async fn launch(node: &Node, server: &ApiServerHandle, configure: impl FnOnce(&mut Command)) -> Self {
        let authority = Authority::new("podgauge-adapter-ca").unwrap();
        let (certificate, key) = (node.path().join("adapter.crt"), node.path().join("adapter.key"));
        authority.server("podgauge-adapter", &[SERVICE]).unwrap().write(&certificate, &key).unwrap();
        let kubeconfig = node.path().join("adapter.kubeconfig");
        server.write_kubeconfig(&kubeconfig, &Credentials::Token(ADAPTER_TOKEN.to_owned())).unwrap();
        let mut command = Command::new(built("podgauge-adapter"));
        without_this_machines_settings(&mut command);
        command.arg("--kubeconfig").arg(kubeconfig);
        command.args(["--bind-address", "127.0.0.1", "--secure-port", "0"]);
        command.arg("--tls-cert-file").arg(certificate).arg("--tls-private-key-file").arg(key);
        configure(&mut command);
        let mut program = Program::start("podgauge-adapter", command);
        let line = program.logged("serving on https://").await;
        let address = line["serving on https://".len()..].trim().parse().unwrap();
        Self { program, address, authority }
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&self) {
        until("/readyz", || async {
            let answer =
                self.get(None, "/readyz", HeaderMap::new()).await.map_err(|error| error.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
        })
        .await;
    }

    /// GETs straight from the adapter's port, under a client certificate or none.
    pub async fn get(
        &self,
        certificate: Option<&Leaf>,
        target: &str,
        headers: HeaderMap,
    ) -> Result<Answer, podgauge_sim::aggregator::AdapterError> {
        let client = AdapterClient::new(
            self.address,
            SERVICE,
            self.authority.pem(),
            certificate,
            Protocol::Negotiated,
        )
        .unwrap();
        client.send(Method::GET, target, headers, Duration::from_secs(20)).await
    }
}

/// A quantity as a number.
pub fn number(quantity: &Value) -> f64 {
    podgauge_sim::hpa::milli(quantity.as_str().unwrap()).unwrap() as f64 / 1000.0
}

/// Headers from pairs; a name may come more than once.
pub fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| {
            (http::HeaderName::try_from(*name).unwrap(), http::HeaderValue::from_str(value).unwrap())
        })
        .collect()
}
