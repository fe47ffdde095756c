//! An adapter that keeps its own certificate, and the cluster around it: what a cluster with the
//! shipped manifests does.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use http::Method;
use podgauge_sim::aggregator::{Aggregation, Aggregator, Answer, AvailabilityStatus, Protocol};
use podgauge_sim::apiserver::{
    ADAPTER_TOKEN, ADMIN_TOKEN, ApiServer, ApiServerHandle, ApiServerOptions, Credentials,
};
use serde_json::Value;

use crate::built;
use crate::cluster::SERVICE;
use crate::program::{Program, without_this_machines_settings};
use crate::wait::until;

/// The Secret that the adapter keeps unless told otherwise.
pub const SECRET: &str = "podgauge-adapter-certificates";
/// The APIServices, as they are called.
pub const API_SERVICES: [&str; 2] = ["v1beta1.custom.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io"];

/// An API server without pods, and a folder.
#[derive(Debug)]
pub struct Site {
    pub folder: tempfile::TempDir,
    pub server: ApiServerHandle,
}

/// A running adapter that nobody gave a certificate.
#[derive(Debug)]
pub struct Managed {
    pub program: Program,
    pub address: SocketAddr,
}

impl Site {
    pub async fn start() -> Self {
        let server = ApiServer::start(ApiServerOptions::default()).await.unwrap();
        Self { folder: tempfile::tempdir().unwrap(), server }
    }

    /// An adapter as the manifests start it, plus these arguments.
    pub async fn adapter(&self, arguments: &[&str]) -> Managed {
        let kubeconfig = self.folder.path().join("adapter.kubeconfig");
        let credentials = Credentials::Token(ADAPTER_TOKEN.to_owned());
        self.server.write_kubeconfig(&kubeconfig, &credentials).unwrap();
        Managed::start(&kubeconfig, arguments).await
    }

    /// The aggregation layer in front of an adapter, with APIServices as the manifests make them:
    /// without a caBundle.
    pub fn aggregate(&self, address: SocketAddr) -> Arc<Aggregator> {
        self.server.aggregate(Aggregation::of_adapter(address, String::new())).unwrap()
    }

    /// The Secret's texts by key, once it is there.
    pub fn secret(&self) -> Option<std::collections::BTreeMap<String, String>> {
        let secret = self.server.object("", "secrets", "podgauge", SECRET)?;
        let text = |value: &Value| {
            use base64::Engine as _;
            let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        let data = secret["data"].as_object()?;
        Some(data.iter().map(|(key, value)| (key.clone(), text(value))).collect())
    }

    /// The caBundle of an APIService, PEM; empty if it has none.
    pub fn ca_bundle(&self, name: &str) -> String {
        use base64::Engine as _;
        let object = self.server.object("apiregistration.k8s.io", "apiservices", "", name).unwrap();
        let encoded = object["spec"]["caBundle"].as_str().unwrap_or_default();
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// A request of the administrator to the API server, with a body of this content type.
    pub async fn administrate(
        &self,
        method: Method,
        target: &str,
        content_type: &str,
        body: &Value,
    ) -> Answer {
        let client = crate::raw::client(self.server.certificates().cluster.pem(), Protocol::Http1);
        let request = http::Request::builder()
            .method(method)
            .uri(format!("{}{target}", self.server.url()))
            .header("authorization", format!("Bearer {ADMIN_TOKEN}"))
            .header("user-agent", "gitops/1.0")
            .header("content-type", content_type)
            .body(http_body_util::Full::new(bytes::Bytes::from(body.to_string())))
            .unwrap();
        let (parts, body) = client.request(request).await.unwrap().into_parts();
        let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
        Answer { status: parts.status, version: parts.version, headers: parts.headers, body }
    }

    /// A merge patch of an APIService by somebody who is not the adapter.
    pub async fn patch_api_service(&self, name: &str, patch: &Value) {
        let target = format!("/apis/apiregistration.k8s.io/v1/apiservices/{name}");
        let answer = self.administrate(Method::PATCH, &target, "application/merge-patch+json", patch).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

impl Managed {
    /// Starts the adapter under a kubeconfig, with no exporter that answers.
    pub async fn start(kubeconfig: &Path, arguments: &[&str]) -> Self {
        Self::start_with(kubeconfig, arguments, |_| {}).await
    }

    /// As [`start`](Self::start), with a changed command.
    pub async fn start_with(
        kubeconfig: &Path,
        arguments: &[&str],
        configure: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = Command::new(built("podgauge-adapter"));
        without_this_machines_settings(&mut command);
        command.arg("--kubeconfig").arg(kubeconfig);
        command.args(["--bind-address=127.0.0.1", "--secure-port=0", "--exporter-service=podgauge/none"]);
        command.args(arguments);
        configure(&mut command);
        let mut program = Program::start("podgauge-adapter", command);
        let line = program.logged("serving on https://").await;
        let address = line["serving on https://".len()..].trim().parse().unwrap();
        Self { program, address }
    }
}

impl Managed {
    /// GETs over a new connection that verifies nothing.
    pub async fn get_unverified(&self, path: &str) -> String {
        let mut stream = crate::raw::connect(self.address, crate::raw::tls_unverified(), &[]).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        crate::raw::exchange(&mut stream, request.as_bytes()).await
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&self) {
        until("/readyz", || async {
            let answer = self.get_unverified("/readyz").await;
            if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
        })
        .await;
    }
}

/// Waits until every APIService is available, verified over connections of this moment.
pub async fn available(aggregator: &Aggregator) {
    until("the APIServices to be available", || async {
        let failures = unavailable(aggregator).await;
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    })
    .await;
}

/// What is wrong with each APIService that is not available, checked over new connections.
pub async fn unavailable(aggregator: &Aggregator) -> Vec<String> {
    aggregator.dial(aggregator.address());
    let checked = aggregator.check_availability().await;
    assert_eq!(checked.len(), 2, "{SERVICE} has two APIServices");
    checked.into_iter().filter(|api| api.status != AvailabilityStatus::True).map(|api| api.message).collect()
}
