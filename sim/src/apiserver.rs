//! Owns the stand-in API server: what podgauge needs of a kube-apiserver, over TLS on loopback.
//!
//! Pods, nodes and namespaces come from scenario files and change with them; EndpointSlices,
//! reviews and the aggregation layer's proxy behave as Kubernetes 1.36 was seen to. Requests are
//! authenticated (bearer token or client certificate) and authorized as a cluster's built-in
//! RBAC would.

mod access;
mod discovery;
mod fields;
mod kinds;
mod kubeconfig;
mod objects;
mod pods;
mod record;
mod request_info;
mod reviews;
mod routes;
mod selector;
mod server;
mod slices;
mod status;
mod store;
mod watches;
mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use podgauge_sim_nvml::scenario::{Scenario, ScenarioError};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

pub use self::access::{
    ADAPTER, ADAPTER_TOKEN, ADMIN_TOKEN, ANONYMOUS, Access, EXPORTER_TOKEN, HPA_CONTROLLER, HPA_TOKEN,
    NOBODY_TOKEN, ResourceAttributes, Rule, User, Wanted,
};
use self::kinds::Kind;
pub use self::kubeconfig::Credentials;
pub use self::objects::{Exporter, NotAServiceName, NotAnExporter, ServiceName};
use self::pods::{Lifetime, PodHistory};
pub use self::record::Asked;
use self::record::Record;
pub use self::request_info::RequestInfo;
use self::reviews::Reviews;
pub use self::reviews::{Failing, Review};
pub use self::selector::Selector;
use self::store::{Refused, Store};
use crate::aggregator::{Aggregation, Aggregator, Availability};
use crate::certs::{CertificateError, Certificates};
use crate::serving::{Port, Serving};

/// Namespaces that are always there.
const NAMESPACES: [&str; 3] = ["default", "kube-system", "podgauge"];

/// How a stand-in API server starts.
#[derive(Debug, Clone)]
pub struct ApiServerOptions {
    /// Port 0: a free one.
    pub listen: SocketAddr,
    /// One file per simulated node.
    pub scenarios: Vec<PathBuf>,
    /// The exporters' Service, and the label of their EndpointSlices.
    pub exporter_service: ServiceName,
    pub exporters: Vec<Exporter>,
    /// On top of [`Access::built_in`].
    pub access: Access,
    /// `None`: made anew.
    pub certificates: Option<Certificates>,
}

impl Default for ApiServerOptions {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            scenarios: Vec::new(),
            exporter_service: ServiceName { namespace: "podgauge".into(), name: "podgauge-exporter".into() },
            exporters: Vec::new(),
            access: Access::default(),
            certificates: None,
        }
    }
}

/// Why a stand-in API server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ApiServerError {
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
}

/// The stand-in API server; see [`ApiServer::start`].
#[derive(Debug)]
pub struct ApiServer;

/// A running stand-in API server. It stops when this is dropped.
#[derive(Debug)]
pub struct ApiServerHandle {
    state: Arc<State>,
    tls: TlsAcceptorOf,
    port: Port,
    serving: Mutex<Option<Serving>>,
    checking: Mutex<Option<AbortHandle>>,
    following: Vec<AbortHandle>,
}

/// What requests are answered from.
struct State {
    address: SocketAddr,
    certificates: Certificates,
    access: RwLock<Access>,
    reviews: Reviews,
    store: Arc<Store>,
    aggregator: RwLock<Option<Arc<Aggregator>>>,
    /// A watch, so that ending a delay also ends it for the requests that wait.
    delay: watch::Sender<Duration>,
    /// A change of it ends every watch.
    generation: watch::Sender<u64>,
    exporter_service: ServiceName,
    namespaces: Mutex<BTreeMap<String, Lifetime>>,
    /// Groups that this server knows and does not serve.
    unserved: RwLock<BTreeSet<String>>,
    record: Record,
    started: Timestamp,
}

struct TlsAcceptorOf(TlsAcceptor);

// === impl ApiServer ===

impl ApiServer {
    /// Serves the scenarios' pods and everything around them. Scenarios are read again whenever
    /// their files change, and what changed is pushed to the watches.
    ///
    /// # Errors
    /// An unreadable scenario, or an address that cannot be listened on.
    pub async fn start(options: ApiServerOptions) -> Result<ApiServerHandle, ApiServerError> {
        let refused = |source| ApiServerError::Listen { address: options.listen, source };
        let port = Port::reserve(options.listen).map_err(refused)?;
        let listener = port.listen().map_err(refused)?;
        let address = port.address();
        let certificates = match options.certificates {
            Some(certificates) => certificates,
            None => Certificates::new()?,
        };
        let tls = TlsAcceptorOf(server::tls(&certificates)?);
        let mut access = Access::built_in();
        access.extend(options.access);
        let state = Arc::new(State {
            address,
            certificates,
            access: RwLock::new(access),
            reviews: Reviews::default(),
            store: Arc::new(Store::new()),
            aggregator: RwLock::new(None),
            delay: watch::Sender::new(Duration::ZERO),
            generation: watch::Sender::new(0),
            exporter_service: options.exporter_service,
            namespaces: Mutex::default(),
            unserved: RwLock::default(),
            record: Record::default(),
            started: Timestamp::now(),
        });
        state.store.replace(
            Kind::ConfigMap,
            "authentication",
            vec![objects::authentication_config_map(&state.certificates, state.started)],
        );
        state.store.replace(
            Kind::Service,
            "exporter",
            vec![objects::service(&state.exporter_service, state.started)],
        );
        state.set_exporters(&options.exporters);
        state.add_namespaces(NAMESPACES.into_iter().map(String::from));
        let mut following = Vec::new();
        for path in &options.scenarios {
            following.push(state.follow(path)?);
        }
        let handle = ApiServerHandle {
            state,
            tls,
            port,
            serving: Mutex::new(None),
            checking: Mutex::new(None),
            following,
        };
        handle.serve(listener);
        Ok(handle)
    }
}

// === impl ApiServerHandle ===

impl ApiServerHandle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.state.address
    }

    /// `https://<address>`.
    pub fn url(&self) -> String {
        format!("https://{}", self.state.address)
    }

    /// The cluster's authorities.
    pub fn certificates(&self) -> &Certificates {
        &self.state.certificates
    }

    /// Writes a kubeconfig for this server.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_kubeconfig(&self, path: &Path, credentials: &Credentials) -> io::Result<()> {
        kubeconfig::write(path, self.address(), self.certificates().cluster.pem(), credentials)
    }

    /// The exporters behind the service, from now on.
    pub fn set_exporters(&self, exporters: &[Exporter]) {
        self.state.set_exporters(exporters);
    }

    /// The data of kube-system/extension-apiserver-authentication, from now on; `None` deletes it.
    pub fn set_authentication_config(&self, data: Option<BTreeMap<String, String>>) {
        let object = data.map(|data| {
            let mut object = objects::authentication_config_map(&self.state.certificates, self.state.started);
            object["data"] = json!(data);
            object
        });
        self.state.store.replace(Kind::ConfigMap, "authentication", object.into_iter().collect());
    }

    /// Begins the deletion of a namespace, which does not end here: its objects stay.
    pub fn terminate_namespace(&self, name: &str) {
        let mut namespaces = self.state.namespaces.lock();
        namespaces.insert(name.to_owned(), Lifetime::Terminating(Timestamp::now()));
        self.state.show_namespaces(&namespaces);
    }

    /// A ConfigMap, from now on; without data it is deleted.
    pub fn set_config_map(&self, namespace: &str, name: &str, data: Option<BTreeMap<String, String>>) {
        let object = data.map(|data| objects::config_map(namespace, name, &data, self.state.started));
        self.state.add_namespaces([namespace.to_owned()].into_iter());
        let source = format!("{namespace}/{name}");
        self.state.store.replace(Kind::ConfigMap, &source, object.into_iter().collect());
    }

    /// An object as it is stored, such as `("", "secrets", "podgauge", "name")`.
    pub fn object(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<serde_json::Value>> {
        let kind = kinds::find(group, "v1", resource)?.stored?;
        self.state.store.get(kind, namespace, name)
    }

    /// Sends requests for an aggregated server's groups to it, and checks its availability now
    /// and every 30 s. Replaces an earlier one. The APIServices are made as `settings` say; an
    /// empty CA bundle leaves that of APIServices that are there. From then on the bundle that
    /// counts is the stored object's.
    ///
    /// # Errors
    /// If a certificate cannot be used.
    pub fn aggregate(&self, settings: Aggregation) -> Result<Arc<Aggregator>, CertificateError> {
        let aggregator = Aggregator::new(settings, &self.state.certificates)?;
        self.state.register_api_services(&aggregator);
        *self.state.aggregator.write() = Some(Arc::clone(&aggregator));
        let state = Arc::clone(&self.state);
        let checked = Arc::clone(&aggregator);
        let checking = tokio::spawn(async move {
            let checks = checked.keep_checking(|| state.publish_api_services(&checked));
            tokio::join!(checks, state.follow_ca_bundles(&checked));
        });
        if let Some(earlier) = self.checking.lock().replace(checking.abort_handle()) {
            earlier.abort();
        }
        Ok(aggregator)
    }

    /// The aggregated server's side, if there is one.
    pub fn aggregator(&self) -> Option<Arc<Aggregator>> {
        self.state.aggregator.read().clone()
    }

    /// Whether the aggregated APIs are available, as of the last check; empty without any.
    pub fn availability(&self) -> Vec<Availability> {
        self.aggregator().map(|aggregator| aggregator.availability()).unwrap_or_default()
    }

    /// Tokens and rules on top of what is there.
    pub fn extend_access(&self, access: Access) {
        self.state.access.write().extend(access);
    }

    /// Replaces all tokens and rules, the built-in ones too.
    pub fn set_access(&self, access: Access) {
        *self.state.access.write() = access;
    }

    /// Which reviews are answered 500, from now on.
    pub fn set_failing(&self, failing: Failing) {
        *self.state.reviews.failing.lock() = failing;
    }

    /// Every request waits so long before it is looked at; zero ends it.
    pub fn set_delay(&self, delay: Duration) {
        self.state.delay.send_replace(delay);
    }

    /// The reviews asked for so far, oldest first, at most the last 10,000.
    pub fn reviews(&self) -> Vec<Review> {
        self.state.reviews.recorded()
    }

    /// How many TokenReviews were asked for, failed ones included.
    pub fn token_reviews(&self) -> u64 {
        self.state.reviews.token_reviews.load(Ordering::Relaxed)
    }

    /// How many SubjectAccessReviews were asked for, failed ones included.
    pub fn access_reviews(&self) -> u64 {
        self.state.reviews.access_reviews.load(Ordering::Relaxed)
    }

    /// Ends every watch quietly; clients watch on from where they were.
    pub fn end_watches(&self) {
        self.state.generation.send_modify(|generation| *generation += 1);
    }

    /// Forgets what changed so far: every watch ends with 410 and its client must list again.
    pub fn expire_watches(&self) {
        self.state.store.forget();
    }

    /// Ends every connection and listens no more, as an API server that is down: connections are
    /// refused.
    pub async fn stop(&self) {
        let serving = self.serving.lock().take();
        if let Some(serving) = serving {
            serving.stop().await;
        }
    }

    /// Listens again on the same address after [`Self::stop`].
    ///
    /// # Errors
    /// The operating system's.
    pub async fn restart(&self) -> Result<(), ApiServerError> {
        self.stop().await;
        let refused = |source| ApiServerError::Listen { address: self.address(), source };
        self.serve(self.port.listen().map_err(refused)?);
        Ok(())
    }

    fn serve(&self, listener: TcpListener) {
        let (tls, state) = (self.tls.0.clone(), Arc::clone(&self.state));
        *self.serving.lock() = Some(Serving::spawn(|stopped| server::serve(listener, tls, state, stopped)));
    }
}

impl Drop for ApiServerHandle {
    fn drop(&mut self) {
        // The server stops with its handle; the other tasks must be ended.
        if let Some(checking) = self.checking.lock().take() {
            checking.abort();
        }
        for task in &self.following {
            task.abort();
        }
    }
}

// === impl State ===

impl State {
    fn set_exporters(&self, exporters: &[Exporter]) {
        let slices = objects::endpoint_slices(&self.exporter_service, exporters, self.started);
        self.store.replace(Kind::EndpointSlice, "exporter", slices);
    }

    fn add_namespaces(&self, names: impl Iterator<Item = String>) {
        let mut namespaces = self.namespaces.lock();
        for name in names {
            namespaces.entry(name).or_default();
        }
        self.show_namespaces(&namespaces);
    }

    fn show_namespaces(&self, namespaces: &BTreeMap<String, Lifetime>) {
        let object = |(name, lifetime): (&String, &Lifetime)| pods::namespace(name, self.started, *lifetime);
        self.store.replace(Kind::Namespace, "namespaces", namespaces.iter().map(object).collect());
    }

    /// Shows a scenario's objects, now and after each change of the file.
    fn follow(self: &Arc<Self>, path: &Path) -> Result<AbortHandle, ScenarioError> {
        let mut scenario = crate::scenario_file::follow(path)?;
        let source = path.display().to_string();
        let mut history = PodHistory::default();
        let first = Arc::clone(&scenario.borrow_and_update());
        self.show(&source, &first, &mut history);
        let state = Arc::clone(self);
        let task = tokio::spawn(async move {
            while scenario.changed().await.is_ok() {
                let scenario = Arc::clone(&scenario.borrow_and_update());
                state.show(&source, &scenario, &mut history);
            }
        });
        Ok(task.abort_handle())
    }

    fn show(&self, source: &str, scenario: &Scenario, history: &mut PodHistory) {
        self.add_namespaces(scenario.pods.iter().map(|pod| pod.namespace.clone()));
        self.store.replace(Kind::Node, source, vec![pods::node(scenario, self.started)]);
        self.store.replace(Kind::ResourceSlice, source, slices::resource_slices(scenario, self.started));
        self.store.replace(Kind::ResourceClaim, source, slices::resource_claims(scenario, self.started));
        self.store.replace(Kind::Pod, source, history.pods(scenario, Timestamp::now()));
    }

    /// Makes the APIServices, as whoever installs the adapter does.
    fn register_api_services(&self, aggregator: &Aggregator) {
        let settings = aggregator.settings();
        for availability in aggregator.availability() {
            let name = availability.api_service.name();
            let mut object =
                objects::api_service(&availability, &settings.service, &settings.ca_bundle, self.started);
            // Never refused: the object is there or it is made.
            let _ = self.store.change(Kind::ApiService, "", &name, |before| {
                if let Some(before) = before {
                    object["metadata"] = before["metadata"].clone();
                    if settings.ca_bundle.is_empty() && before["spec"]["caBundle"].is_string() {
                        object["spec"]["caBundle"] = before["spec"]["caBundle"].clone();
                    }
                }
                Ok(Some(object))
            });
        }
    }

    /// Writes the Available conditions into the APIServices that are there.
    fn publish_api_services(&self, aggregator: &Aggregator) {
        for availability in aggregator.availability() {
            let status = objects::api_service_status(&availability);
            let name = availability.api_service.name();
            // One that was deleted meanwhile has no condition.
            let _ = self.store.change(Kind::ApiService, "", &name, |before| {
                let mut object = before.cloned().ok_or(Refused::NotFound)?;
                object["status"] = status;
                Ok(Some(object))
            });
        }
    }

    /// Verifies the aggregated server against what its APIServices say, from each change on.
    async fn follow_ca_bundles(&self, aggregator: &Aggregator) {
        let mut revision = self.store.subscribe();
        loop {
            revision.borrow_and_update();
            for api in &aggregator.settings().api_services {
                let object = self.store.get(Kind::ApiService, "", &api.name());
                let bundle = object.map(|object| objects::ca_bundle(&object)).unwrap_or_default();
                aggregator.trust(api, &bundle);
            }
            if revision.changed().await.is_err() {
                return;
            }
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("address", &self.address).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for TlsAcceptorOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsAcceptor")
    }
}

#[cfg(test)]
mod tests;
