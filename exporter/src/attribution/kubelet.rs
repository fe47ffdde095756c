//! Polls the kubelet's pod-resources socket and publishes [`Knowledge`]. Nothing waits for it: who
//! asks gets what is known.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podgauge_common::cluster::one_line;
use podgauge_common::readiness::Condition;
use tokio::sync::{Notify, watch};
use tonic::transport::{Channel, Endpoint};

use super::Knowledge;
use super::allocations::{Allocations, ReplicaCounts, Watchers};
use super::claims::Claims;
use super::own_pod;
use super::pod_uid::PodUids;
use super::slices::DRIVER;
use super::socket::{SocketFault, examine};
use crate::self_metrics::SelfMetrics;

/// The kubelet's own messages and client.
pub(crate) mod api {
    #![allow(missing_debug_implementations, unreachable_pub)]
    tonic::include_proto!("v1");
}

use api::pod_resources_lister_client::PodResourcesListerClient;

/// How often pods are listed.
const LIST_EVERY: Duration = Duration::from_secs(2);
/// A new process on a GPU has the pods listed at once, but not more often than this.
const LIST_AT_MOST_EVERY: Duration = Duration::from_millis(250);
/// How soon it is asked again after a failure: right after a restart it is back within seconds.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How often the replicas of devices are counted, unless an uncounted one is seen.
const COUNT_EVERY: Duration = Duration::from_secs(30);
/// Time for one call. The kubelet limits all clients together to 100 calls a second.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// A node's list can be large: upstream met the 4 MiB that gRPC sets.
const ANSWER_LIMIT: usize = 64 * 1024 * 1024;
/// How long the last list counts while the kubelet fails.
const HELD: Duration = Duration::from_secs(60);
/// How long the first list is waited for.
const FIRST: Duration = Duration::from_secs(3);

/// Why a list was not an answer.
#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error(transparent)]
    Socket(#[from] SocketFault),
    #[error("cannot connect: {}{}", one_line(.0), if is_broken(.0) { CUT } else { "" })]
    Connect(#[from] tonic::transport::Error),
    #[error("{call}: {}{}", said(.status), if is_cut(.status) { CUT } else { "" })]
    Call { call: &'static str, status: Box<tonic::Status> },
    #[error("List has no pod at all, not even this one; the kubelet answers so for a moment after its start")]
    Empty,
}

/// The settings of a [`Poller`].
#[derive(Debug)]
pub(crate) struct PollerOptions {
    pub(crate) socket: PathBuf,
    /// `--nvidia-resource-names`.
    pub(crate) resources: Vec<String>,
    pub(crate) reservation_namespaces: Vec<String>,
    /// `None`: devices that are held by claims are not asked for.
    pub(crate) claims: Option<Claims>,
    pub(crate) procfs: PathBuf,
    pub(crate) pod_logs: PathBuf,
    /// A process showed up that was not there: its pod may be new.
    pub(crate) unknown_pid: Arc<Notify>,
}
/// The advice if the other end of the socket does not speak the kubelet's protocol.
const CUT: &str = "; the other end closed the connection: is this the socket of the kubelet's pod-resources API \
    (--pod-resources-kubelet-socket), and is the kubelet healthy?";

/// Polls the kubelet until nobody listens any more.
#[derive(Debug)]
pub(crate) struct Poller {
    socket: PathBuf,
    /// `--nvidia-resource-names`.
    resources: Vec<String>,
    watchers: Watchers,
    procfs: PathBuf,
    /// `None`: devices that are held by claims are not asked for.
    claims: Option<Claims>,
    /// Claims were seen that are not asked for, which was logged.
    reported_claims: bool,
    reported_beyond: bool,
    client: Option<PodResourcesListerClient<Channel>>,
    counts: ReplicaCounts,
    counted_at: Option<Instant>,
    uids: PodUids,
    /// When the kubelet last answered, or when polling began.
    answered_at: Instant,
    answered: bool,
    failing: bool,
    /// A process showed up that was not there: its pod may be new.
    unknown_pid: Arc<Notify>,
    count_failing: bool,
    /// Names that match no device are reported once.
    reported_unmatched: bool,
    metrics: SelfMetrics,
}

// === impl PollError ===

impl PollError {
    /// One word, for a metric.
    fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) | Self::Socket(_) => "connect",
            Self::Empty => "empty",
            Self::Call { status, .. } => match status.code() {
                tonic::Code::Cancelled | tonic::Code::DeadlineExceeded => "timeout",
                tonic::Code::ResourceExhausted => "resource_exhausted",
                tonic::Code::Unavailable => "unavailable",
                tonic::Code::PermissionDenied => "permission_denied",
                _ => "other",
            },
        }
    }
}

// === impl Poller ===

impl Poller {
    pub(crate) fn new(options: PollerOptions, metrics: SelfMetrics) -> Self {
        let PollerOptions {
            socket,
            resources,
            reservation_namespaces,
            claims,
            procfs,
            pod_logs,
            unknown_pid,
        } = options;
        Self {
            socket,
            resources,
            watchers: Watchers { own: None, reservation_namespaces },
            procfs,
            claims,
            reported_claims: false,
            reported_beyond: false,
            client: None,
            counts: ReplicaCounts::default(),
            counted_at: None,
            uids: PodUids::new(pod_logs),
            answered_at: Instant::now(),
            answered: false,
            failing: false,
            unknown_pid,
            count_failing: false,
            reported_unmatched: false,
            metrics,
        }
    }

    pub(crate) async fn run(mut self, knowledge: watch::Sender<Knowledge>, ready: Condition) {
        if let Some(claims) = &mut self.claims {
            claims.first_slices(FIRST).await;
        }
        loop {
            let asked = Instant::now();
            let polled = self.poll().await;
            self.metrics.kubelet_polled(asked.elapsed(), polled.as_ref().err().map(PollError::kind));
            match polled {
                Ok(allocations) => {
                    if std::mem::replace(&mut self.failing, false) {
                        tracing::info!("kubelet {}: answers again", self.socket.display());
                    }
                    self.answered = true;
                    self.answered_at = Instant::now();
                    ready.met();
                    // A list that says what the last one said is no reason for a new page.
                    knowledge.send_if_modified(|known| {
                        let is_news = !matches!(known, Knowledge::Known(before) if **before == allocations);
                        if is_news {
                            *known = Knowledge::Known(Arc::new(allocations));
                        }
                        is_news
                    });
                }
                Err(error) => self.failed(&error, &knowledge, &ready),
            }
            if knowledge.is_closed() {
                return;
            }
            if self.failing {
                tokio::time::sleep(RETRY_AFTER).await;
                continue;
            }
            tokio::time::sleep(LIST_AT_MOST_EVERY).await;
            tokio::select! {
                () = tokio::time::sleep(LIST_EVERY - LIST_AT_MOST_EVERY) => {}
                () = self.unknown_pid.notified() => {}
                () = slices_changed(self.claims.as_mut()) => {}
            }
        }
    }

    fn failed(&mut self, error: &PollError, knowledge: &watch::Sender<Knowledge>, ready: &Condition) {
        self.client = None;
        let socket = self.socket.display();
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                "kubelet {socket}: {error}; trying every {RETRY_AFTER:?}, {}",
                if self.answered {
                    "its last list counts for 60 s"
                } else {
                    "samples have no pod labels until it answers"
                }
            );
        }
        let limit = if self.answered { HELD } else { FIRST };
        if self.answered_at.elapsed() >= limit && !matches!(*knowledge.borrow(), Knowledge::Lost) {
            tracing::error!(
                "kubelet {socket}: no list for {limit:?}: {error}; samples have no pod labels until it answers"
            );
            knowledge.send_replace(Knowledge::Lost);
        }
        ready.unmet(format!("{socket}: {error}"));
    }

    async fn poll(&mut self) -> Result<Allocations, PollError> {
        let list = match self.list().await {
            Ok(list) => list,
            // After a restart of the kubelet the socket is another one: the old connection fails once.
            Err(PollError::Call { .. }) if self.answered && !self.failing => {
                self.client = None;
                self.list().await?
            }
            Err(error) => return Err(error),
        };
        if list.pod_resources.is_empty() {
            return Err(PollError::Empty);
        }
        match &mut self.claims {
            Some(claims) => {
                claims.read(&list.pod_resources).await;
                claims.learn(&list.pod_resources);
                self.metrics.claims_learned(claims.untold());
            }
            None => self.report_claims(&list.pod_resources),
        }
        self.uids.refresh();
        if self.watchers.own.is_none() {
            self.watchers.own = own_pod::find(&self.procfs, &self.uids);
        }
        let allocations = Allocations::from_list(&list.pod_resources, &self.watchers, self.claims.as_ref());
        if allocations.beyond > 0 && !std::mem::replace(&mut self.reported_beyond, true) {
            tracing::warn!(
                "kubelet {}: {} devices are more than are kept of one node; they are left out",
                self.socket.display(),
                allocations.beyond
            );
        }
        let count_due = self.counted_at.is_none_or(|at| at.elapsed() >= COUNT_EVERY);
        if count_due || allocations.has_uncounted(&self.counts) {
            // The list is worth having without: only parts of shared devices stay unknown.
            match self.count().await {
                Ok(()) => self.count_failing = false,
                Err(error) if !std::mem::replace(&mut self.count_failing, true) => {
                    tracing::warn!(
                        "kubelet {}: {error}; parts of shared devices are left out until it answers",
                        self.socket.display()
                    );
                }
                Err(_) => {}
            }
        }
        Ok(allocations.completed(&self.counts, |namespace, pod| self.uids.get(namespace, pod)))
    }

    /// Says once that pods hold GPUs by claims, which are not looked up without the flag. Where an
    /// extended resource is served by claims, nobody has asked for one.
    fn report_claims(&mut self, pods: &[api::PodResources]) {
        let holder = pods.iter().find(|pod| {
            let claims = pod.containers.iter().flat_map(|container| &container.dynamic_resources);
            claims.flat_map(|claim| &claim.claim_resources).any(|device| device.driver_name == DRIVER)
        });
        let Some(holder) = holder.filter(|_| !self.reported_claims) else { return };
        self.reported_claims = true;
        tracing::warn!(
            "pods hold devices of {DRIVER} by claims (such as {}/{}), and samples of these devices have no pod labels: set --kubernetes-enable-dra, and let this service account get, list and watch resourceslices and get resourceclaims of resource.k8s.io in a ClusterRole",
            holder.namespace,
            holder.name
        );
    }

    async fn list(&mut self) -> Result<api::ListPodResourcesResponse, PollError> {
        let client = self.connected().await?;
        client
            .list(api::ListPodResourcesRequest {})
            .await
            .map(tonic::Response::into_inner)
            .map_err(|status| PollError::Call { call: "List", status: Box::new(status) })
    }

    async fn count(&mut self) -> Result<(), PollError> {
        let client = self.connected().await?;
        let devices = client
            .get_allocatable_resources(api::AllocatableResourcesRequest {})
            .await
            .map_err(|status| PollError::Call { call: "GetAllocatableResources", status: Box::new(status) })?
            .into_inner()
            .devices;
        self.counts.learn(&devices);
        self.report_unmatched(&devices);
        self.counted_at = Some(Instant::now());
        Ok(())
    }

    /// Says once which of the resources that were named no device of the node is of.
    fn report_unmatched(&mut self, devices: &[api::ContainerDevices]) {
        if devices.is_empty() || std::mem::replace(&mut self.reported_unmatched, true) {
            return;
        }
        let is_of_none = |name: &&String| !devices.iter().any(|device| device.resource_name == **name);
        let unmatched: Vec<&str> = self.resources.iter().filter(is_of_none).map(String::as_str).collect();
        if !unmatched.is_empty() {
            tracing::warn!("--nvidia-resource-names: no device of this node is of {}", unmatched.join(", "));
        }
    }

    async fn connected(&mut self) -> Result<&mut PodResourcesListerClient<Channel>, PollError> {
        if self.client.is_none() {
            self.client = Some(connect(&self.socket).await?);
        }
        Ok(self.client.as_mut().expect("because it was just set"))
    }
}

async fn slices_changed(claims: Option<&mut Claims>) {
    match claims {
        Some(claims) => claims.changed().await,
        None => std::future::pending().await,
    }
}

async fn connect(socket: &Path) -> Result<PodResourcesListerClient<Channel>, PollError> {
    let endpoint = Endpoint::try_from(format!("unix://{}", socket.display()))?
        .connect_timeout(CALL_LIMIT)
        .timeout(CALL_LIMIT);
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        // gRPC's own error says no more than "transport error".
        Err(error) => return Err(examine(socket).await.map_or(PollError::Connect(error), PollError::Socket)),
    };
    Ok(PodResourcesListerClient::new(channel).max_decoding_message_size(ANSWER_LIMIT))
}

/// The status' code and the text that says most: of what gRPC could not do, that is the cause's.
fn said(status: &tonic::Status) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    match cause {
        Some(cause) if cause.to_string() != status.message() => {
            format!("{:?}: {}: {cause}", status.code(), status.message())
        }
        _ => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// Whether the other end closed the connection while it was being made.
fn is_broken(error: &tonic::transport::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
        }
        cause = error.source();
    }
    false
}

/// Whether the connection broke before there was an answer.
fn is_cut(status: &tonic::Status) -> bool {
    std::error::Error::source(status).is_some() && status.code() == tonic::Code::Unknown
        || status.message().contains("transport error")
        // hyper's words for a connection that ended before the request was on it.
        || status.message().contains("operation was canceled")
        || status.message().contains("h2 protocol error")
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tonic::Status;

    use super::*;

    #[test]
    fn fields_of_a_newer_kubelet_are_skipped() {
        let pod = api::PodResources { name: "a".into(), namespace: "ml".into(), containers: Vec::new() };
        // cpu_ids (4), memory (5), and a field that no kubelet has yet.
        let newer = [0x22, 2, 1, 2, 0x2a, 0, 0xfa, 0x07, 1, 0];
        let bytes = [&pod.encode_to_vec()[..], &newer].concat();
        assert_eq!(api::PodResources::decode(&*bytes).unwrap(), pod);
    }

    #[test]
    fn a_connection_that_ends_before_the_request_is_cut_and_a_late_answer_is_not() {
        assert!(is_cut(&Status::cancelled("operation was canceled")));
        assert!(!is_cut(&Status::cancelled("Timeout expired")));
    }
}
