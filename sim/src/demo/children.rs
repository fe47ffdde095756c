//! Owns the demo's child processes: their command lines, logs, readiness and end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use http::{HeaderMap, Method};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use podgauge_sim_nvml::trees::Trees;
use tokio::process::Command;
use tokio::time::Instant;

use super::{Places, Programs};
use crate::aggregator::{AdapterClient, Protocol};
use crate::certs::CertificateError;

/// A child that was asked to end is killed after so long.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for one readiness request.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// Lines of a log shown with an error.
const LOG_LINES: usize = 15;

/// Why a child is not there.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("cannot start {program}: {source}")]
    Start { program: PathBuf, source: io::Error },
    #[error("{name} ended with {status}; the end of {log}:\n{tail}")]
    Died { name: &'static str, status: String, log: PathBuf, tail: String },
    #[error("{name} was not ready after {}s: {last}; the end of {log}:\n{tail}", limit.as_secs())]
    NotReady { name: &'static str, limit: Duration, last: String, log: PathBuf, tail: String },
}

/// A running child. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Child {
    name: &'static str,
    child: tokio::process::Child,
    log: PathBuf,
}

/// The exporter on the simulated node.
pub(super) fn exporter(
    programs: &Programs,
    places: &Places,
    trees: &Trees,
    kubelet: &Path,
    address: SocketAddr,
    node: &str,
) -> Result<Child, ChildError> {
    let mut command = Command::new(&programs.exporter);
    command
        .env("PODGAUGE_SIM_SCENARIO", &places.scenario)
        .env("NODE_NAME", node)
        .arg("-k")
        .args(["-a", &address.to_string()])
        .arg("--pod-resources-kubelet-socket")
        .arg(kubelet)
        .arg("--nvml-library")
        .arg(&programs.library)
        .arg("--path.procfs")
        .arg(&trees.procfs)
        .arg("--path.pod-logs")
        .arg(&trees.pod_logs)
        .arg("--path.container-logs")
        .arg(&trees.container_logs);
    Child::start("podgauge-exporter", command, &programs.exporter, places.dir.join("exporter.log"))
}

/// The adapter against the stand-in API server.
pub(super) fn adapter(
    programs: &Programs,
    places: &Places,
    kubeconfig: &Path,
    address: SocketAddr,
    window_s: u32,
    (certificate, key): (&Path, &Path),
) -> Result<Child, ChildError> {
    let mut command = Command::new(&programs.adapter);
    command
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["--exporter-service", "podgauge/podgauge-exporter", "--scrape-interval", "1s"])
        .args(["--bind-address", &address.ip().to_string(), "--secure-port", &address.port().to_string()])
        .args(["--window", &format!("{window_s}s")])
        // No kube-proxy is between the demo and it.
        .args(["--shutdown-delay-duration", "0s"])
        .arg("--tls-cert-file")
        .arg(certificate)
        .arg("--tls-private-key-file")
        .arg(key);
    Child::start("podgauge-adapter", command, &programs.adapter, places.dir.join("adapter.log"))
}

/// Whether the exporter's `/ready` answers 200; else what it says.
pub(super) async fn exporter_is_ready(address: SocketAddr) -> Result<(), String> {
    let client: Client<HttpConnector, Empty<bytes::Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let uri = format!("http://{address}/ready").parse().map_err(|error| format!("{error}"))?;
    let response = tokio::time::timeout(REQUEST_LIMIT, client.get(uri))
        .await
        .map_err(|_| "no answer to GET /ready".to_owned())?
        .map_err(|error| error.to_string())?;
    if response.status().is_success() { Ok(()) } else { Err(format!("GET /ready: {}", response.status())) }
}

/// A client of the adapter that presents nothing.
pub(super) fn adapter_client(
    address: SocketAddr,
    ca_bundle: &str,
) -> Result<AdapterClient, CertificateError> {
    AdapterClient::new(address, "podgauge-adapter.podgauge.svc", ca_bundle, None, Protocol::Negotiated)
}

/// Whether the adapter's `/readyz` answers 200; else what it says.
pub(super) async fn adapter_is_ready(client: &AdapterClient) -> Result<(), String> {
    let answer = client
        .send(Method::GET, "/readyz", HeaderMap::new(), REQUEST_LIMIT)
        .await
        .map_err(|error| error.to_string())?;
    if answer.status.is_success() {
        Ok(())
    } else {
        Err(format!("GET /readyz: {} {}", answer.status, answer.text().trim()))
    }
}

// === impl Child ===

impl Child {
    fn start(
        name: &'static str,
        mut command: Command,
        program: &Path,
        log: PathBuf,
    ) -> Result<Self, ChildError> {
        let failed = |source| ChildError::Start { program: program.to_owned(), source };
        let file = std::fs::File::create(&log).map_err(failed)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file)
            .kill_on_drop(true)
            // A group of its own: Ctrl-C reaches the demo alone, which ends its children in order.
            .process_group(0);
        die_with_parent(&mut command);
        Ok(Self { name, child: command.spawn().map_err(failed)?, log })
    }

    /// Where its output is.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// Looks until `ready` says so.
    pub(super) async fn wait_until_ready<F>(
        &mut self,
        limit: Duration,
        look: Duration,
        ready: impl Fn() -> F,
    ) -> Result<(), ChildError>
    where
        F: Future<Output = Result<(), String>>,
    {
        let until = Instant::now() + limit;
        loop {
            let last = tokio::select! {
                answer = ready() => match answer {
                    Ok(()) => return Ok(()),
                    Err(last) => last,
                },
                status = self.child.wait() => return Err(self.death(status)),
            };
            if Instant::now() >= until {
                let (log, tail) = (self.log.clone(), tail(&self.log));
                return Err(ChildError::NotReady { name: self.name, limit, last, log, tail });
            }
            tokio::time::sleep(look).await;
        }
    }

    /// Resolves when it ends by itself.
    pub(super) async fn died(&mut self) -> ChildError {
        let status = self.child.wait().await;
        self.death(status)
    }

    fn death(&self, status: io::Result<ExitStatus>) -> ChildError {
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        ChildError::Died { name: self.name, status, log: self.log.clone(), tail: tail(&self.log) }
    }

    /// Asks it to end, by its id, and waits; a child that does not end is killed.
    pub(super) async fn stop(&mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) {
            terminate(pid);
        }
        if tokio::time::timeout(END_LIMIT, self.child.wait()).await.is_err() {
            tracing::warn!("{} did not end within {}s: killed", self.name, END_LIMIT.as_secs());
            drop(self.child.kill().await);
        }
    }
}

#[allow(unsafe_code)]
fn terminate(pid: libc::pid_t) {
    // SAFETY: kill has no memory effects. The pid is a child's that was not waited for yet, so it
    // is no other process's.
    unsafe {
        libc::kill(pid, libc::SIGTERM);
    }
}

/// The kernel kills the child if this program dies without ending it.
#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command) {
    let die = || {
        // SAFETY: prctl with PR_SET_PDEATHSIG reads its two integers only, and is async-signal-safe.
        let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure runs between fork and exec; it allocates nothing, takes no lock and makes
    // one system call.
    unsafe {
        command.pre_exec(die);
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_else(|error| format!("({error})"));
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LOG_LINES);
    lines[from..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
