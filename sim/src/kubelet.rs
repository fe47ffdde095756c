//! Owns the simulated kubelet: the pod-resources v1 service on a unix socket.
//!
//! It behaves as kubelet 1.36 was seen to: a restart makes a new socket file, old connections
//! die, and for a second List succeeds and is empty although pods run.

mod rate_limit;
mod service;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use podgauge_sim_nvml::scenario::{Scenario, ScenarioError};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::rate_limit::RateLimit;
use self::service::{Counters, Lister, Switches};
use crate::serving::{Serving, Stopped};

/// The generated types and client of the pod-resources v1 API.
pub mod v1 {
    #![allow(
        unreachable_pub,
        rust_2018_idioms,
        missing_debug_implementations,
        clippy::all,
        clippy::str_to_string,
        clippy::semicolon_if_nothing_returned,
        clippy::uninlined_format_args
    )]
    tonic::include_proto!("v1");
}

/// The kubelet's own limits on this API.
pub const CALLS_PER_SECOND: f64 = 100.0;
/// How many calls may come at once.
pub const CALL_BURST: f64 = 10.0;
/// How long List is empty after a start.
pub const EMPTY_AFTER_START: Duration = Duration::from_secs(1);

/// How a simulated kubelet starts. Everything but the rate can be changed while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KubeletOptions {
    /// For so long after every (re)start List is empty.
    pub empty_for: Duration,
    /// Calls per second, List and GetAllocatableResources together.
    pub calls_per_second: f64,
    /// Calls that may come at once.
    pub burst: f64,
    /// Every call waits so long before it is answered.
    pub hang: Duration,
    /// List answers are filled up with pods without devices to at least so many bytes.
    pub pad_to_bytes: usize,
    /// Start without a socket, as on a node whose kubelet is down; [`KubeletHandle::restart`] makes it.
    pub absent: bool,
}

impl Default for KubeletOptions {
    fn default() -> Self {
        Self {
            empty_for: EMPTY_AFTER_START,
            calls_per_second: CALLS_PER_SECOND,
            burst: CALL_BURST,
            hang: Duration::ZERO,
            pad_to_bytes: 0,
            absent: false,
        }
    }
}

/// Why a simulated kubelet could not start.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    #[error("cannot listen on {path}: {source}")]
    Listen { path: PathBuf, source: io::Error },
}

/// How often a simulated kubelet was called, since it was first started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// List calls, those that the rate limit rejected included.
    pub list: u64,
    /// GetAllocatableResources calls, those that the rate limit rejected included.
    pub allocatable: u64,
    /// Calls that the rate limit rejected.
    pub rejected: u64,
    /// Calls that have no answer at this moment, and a client that waits for it.
    pub pending: u64,
}

/// The simulated kubelet; see [`Kubelet::start`].
#[derive(Debug)]
pub struct Kubelet;

/// A running simulated kubelet. It stops when this is dropped.
#[derive(Debug)]
pub struct KubeletHandle {
    socket: PathBuf,
    scenario: watch::Receiver<Arc<Scenario>>,
    limit: Arc<RateLimit>,
    switches: Arc<Switches>,
    counters: Arc<Counters>,
    serving: Mutex<Option<Serving>>,
}

// === impl Kubelet ===

impl Kubelet {
    /// Serves the pods of `scenario` on `socket`, whose folder is made if it is missing. The
    /// scenario is read again whenever the file changes.
    ///
    /// # Errors
    /// An unreadable scenario, or a socket that cannot be made.
    pub async fn start(
        socket: PathBuf,
        scenario: PathBuf,
        options: KubeletOptions,
    ) -> Result<KubeletHandle, KubeletError> {
        let handle = KubeletHandle {
            socket,
            scenario: crate::scenario_file::follow(&scenario)?,
            limit: Arc::new(RateLimit::new(options.calls_per_second, options.burst)),
            switches: Arc::new(Switches::new(&options)),
            counters: Arc::default(),
            serving: Mutex::new(None),
        };
        if !options.absent {
            handle.restart().await?;
        }
        Ok(handle)
    }
}

// === impl KubeletHandle ===

impl KubeletHandle {
    /// Where it serves.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What was asked so far.
    pub fn calls(&self) -> Calls {
        self.counters.read()
    }

    /// From now on every call waits so long before it is answered; zero ends it.
    pub fn set_hang(&self, hang: Duration) {
        self.switches.hang.send_replace(hang);
    }

    /// From now on List answers are filled up to at least so many bytes; zero ends it.
    pub fn set_padding(&self, bytes: usize) {
        self.switches.set_padding(bytes);
    }

    /// For so long after each later restart List is empty.
    pub fn set_empty_for(&self, empty_for: Duration) {
        self.switches.set_empty_for(empty_for);
    }

    /// Ends the service and starts it anew, as a kubelet's restart does: the socket is another
    /// file, old connections die, List is empty for a while. Also starts a stopped one.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub async fn restart(&self) -> Result<(), KubeletError> {
        self.stop().await;
        let refused = |source| KubeletError::Listen { path: self.socket.clone(), source };
        if let Some(folder) = self.socket.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(refused)?;
        }
        let listener = UnixListener::bind(&self.socket).map_err(refused)?;
        let lister = Lister::new(
            self.scenario.clone(),
            Arc::clone(&self.limit),
            Arc::clone(&self.switches),
            Arc::clone(&self.counters),
            tokio::time::Instant::now(),
        );
        *self.serving.lock() = Some(Serving::spawn(|stopped| serve(listener, lister, stopped)));
        Ok(())
    }

    /// Ends the service: every connection dies and the socket file is gone.
    pub async fn stop(&self) {
        let serving = self.serving.lock().take();
        if let Some(serving) = serving {
            serving.stop().await;
        }
        // A file that is already gone is as wanted; any other trouble shows when it is bound again.
        drop(tokio::fs::remove_file(&self.socket).await);
    }
}

impl Drop for KubeletHandle {
    fn drop(&mut self) {
        // The service stops with its handle.
        drop(std::fs::remove_file(&self.socket));
    }
}

/// Accepts until told to stop; then every connection dies.
async fn serve(listener: UnixListener, lister: Lister, mut stopped: Stopped) {
    let service =
        TowerToHyperService::new(v1::pod_resources_lister_server::PodResourcesListerServer::new(lister));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let service = service.clone();
                    connections.spawn(async move {
                        let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                        if let Err(error) = served {
                            tracing::debug!(%error, "a pod-resources connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the pod-resources socket");
                    break;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = &mut stopped => break,
        }
    }
    drop(listener);
    connections.shutdown().await;
}

#[cfg(test)]
mod tests;
