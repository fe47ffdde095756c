//! Owns the aggregation layer: how a kube-apiserver reaches an aggregated API server.
//!
//! Every request is what kube-apiserver 1.36 was seen to send: which headers, whose name, with
//! and without groups. Used by the stand-in API server, and alone by tests that need only the
//! adapter.

mod availability;
mod client;
mod escape;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, ACCEPT_ENCODING, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub use self::availability::{Availability, AvailabilityStatus};
pub use self::client::{AdapterClient, AdapterError, Answer, Protocol};
pub use self::escape::{path_escape, query_escape};
use crate::apiserver::{ServiceName, User};
use crate::certs::{CertificateError, Certificates, Leaf};

/// The API server's time limit for a proxied request.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for discovery's requests.
pub const DISCOVERY_LIMIT: Duration = Duration::from_secs(5);
/// How discovery asks for the aggregated document.
pub const AGGREGATED_DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
/// What the HPA controller calls itself.
pub const HPA_USER_AGENT: &str = "kube-controller-manager/v0.0.0 (linux/amd64) kubernetes/$Format/\
system:serviceaccount:kube-system:horizontal-pod-autoscaler";
/// The HPA controller asks for protobuf first and takes anything.
pub const HPA_ACCEPT: &str = "application/vnd.kubernetes.protobuf, */*";

/// An APIService: a group and version that an aggregated server serves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiService {
    pub group: String,
    pub version: String,
    /// The highest is the group's preferred version.
    pub version_priority: i32,
}

/// Where an aggregated API server is, and how to know it.
#[derive(Debug, Clone)]
pub struct Aggregation {
    /// What is dialled, as an EndpointSlice would say.
    pub address: SocketAddr,
    /// The Service: its `<name>.<namespace>.svc` is what the serving certificate must be for.
    pub service: ServiceName,
    /// PEM, the only authorities trusted: at first. The stand-in API server follows its
    /// APIServices from then on.
    pub ca_bundle: String,
    pub protocol: Protocol,
    pub api_services: Vec<ApiService>,
    /// Instead of the cluster's front-proxy certificate.
    pub client_certificate: Option<Leaf>,
}

/// A request of a client, on its way to the aggregated server.
#[derive(Debug, Clone)]
pub struct ProxiedRequest {
    pub method: Method,
    /// Decoded.
    pub path: String,
    /// Decoded pairs.
    pub query: Vec<(String, String)>,
    /// The client's own; credentials and `X-Remote-*` are taken out.
    pub headers: HeaderMap,
    pub user: User,
    /// The client's address, for X-Forwarded-For.
    pub from: std::net::IpAddr,
}

/// The aggregation layer for one aggregated API server.
#[derive(Debug)]
pub struct Aggregator {
    settings: Aggregation,
    server_name: String,
    certificate: Leaf,
    routes: Mutex<Routes>,
    /// Told of every change of the routes.
    changed: Notify,
    availability: Mutex<Vec<Availability>>,
}

/// Where the aggregated server is reached, and how it is known.
#[derive(Debug)]
struct Routes {
    address: SocketAddr,
    /// One per APIService, in their order, with the CA bundle it verifies against.
    clients: Vec<(String, Arc<AdapterClient>)>,
}

// === impl ApiService ===

impl ApiService {
    /// custom.metrics.k8s.io, v1beta2 preferred.
    pub fn custom_metrics() -> Vec<Self> {
        [("v1beta1", 100), ("v1beta2", 200)]
            .into_iter()
            .map(|(version, version_priority)| Self {
                group: "custom.metrics.k8s.io".into(),
                version: version.into(),
                version_priority,
            })
            .collect()
    }

    /// external.metrics.k8s.io.
    pub fn external_metrics() -> Self {
        Self { group: "external.metrics.k8s.io".into(), version: "v1beta1".into(), version_priority: 100 }
    }

    /// `<version>.<group>`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.version, self.group)
    }

    /// `/apis/<group>/<version>`.
    pub fn path(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }
}

// === impl Aggregation ===

impl Aggregation {
    /// The adapter of podgauge's manifests: both versions of custom metrics, protocol as
    /// negotiated.
    pub fn of_adapter(address: SocketAddr, ca_bundle: String) -> Self {
        Self {
            address,
            service: ServiceName { namespace: "podgauge".into(), name: "podgauge-adapter".into() },
            ca_bundle,
            protocol: Protocol::Negotiated,
            api_services: ApiService::custom_metrics(),
            client_certificate: None,
        }
    }
}

// === impl Aggregator ===

impl Aggregator {
    /// # Errors
    /// If a certificate cannot be used.
    pub fn new(settings: Aggregation, certificates: &Certificates) -> Result<Arc<Self>, CertificateError> {
        let certificate = settings.client_certificate.clone();
        let certificate = certificate.unwrap_or_else(|| certificates.front_proxy_client.clone());
        let server_name = format!("{}.{}.svc", settings.service.name, settings.service.namespace);
        let now = jiff::Timestamp::now();
        let availability =
            settings.api_services.iter().map(|api| Availability::unknown(api.clone(), now)).collect();
        let made = Self {
            routes: Mutex::new(Routes { address: settings.address, clients: Vec::new() }),
            settings,
            server_name,
            certificate,
            changed: Notify::new(),
            availability: Mutex::new(availability),
        };
        let client = Arc::new(made.client(made.settings.address, &made.settings.ca_bundle)?);
        made.routes.lock().clients = made
            .settings
            .api_services
            .iter()
            .map(|_| (made.settings.ca_bundle.clone(), Arc::clone(&client)))
            .collect();
        Ok(Arc::new(made))
    }

    /// Verifies the aggregated server's certificate for this APIService against another bundle
    /// (PEM). What cannot be used verifies nothing. Connections of before are not used any more.
    pub fn trust(&self, api: &ApiService, ca_bundle: &str) {
        let Some(at) = self.settings.api_services.iter().position(|known| known == api) else { return };
        let mut routes = self.routes.lock();
        if routes.clients[at].0 == ca_bundle {
            return;
        }
        let client = self.client(routes.address, ca_bundle).or_else(|_| self.client(routes.address, ""));
        if let Ok(client) = client {
            routes.clients[at] = (ca_bundle.to_owned(), Arc::new(client));
        }
        drop(routes);
        self.changed.notify_waiters();
    }

    /// Dials another address from now on, as after a change of the EndpointSlice; the same one is
    /// dialled anew. Connections of before are not used any more.
    pub fn dial(&self, address: SocketAddr) {
        let mut routes = self.routes.lock();
        routes.address = address;
        for (ca_bundle, client) in &mut routes.clients {
            if let Ok(made) = self.client(address, ca_bundle).or_else(|_| self.client(address, "")) {
                *client = Arc::new(made);
            }
        }
        drop(routes);
        self.changed.notify_waiters();
    }

    /// What is dialled.
    pub fn address(&self) -> SocketAddr {
        self.routes.lock().address
    }

    fn client(&self, address: SocketAddr, ca_bundle: &str) -> Result<AdapterClient, CertificateError> {
        AdapterClient::new(
            address,
            &self.server_name,
            ca_bundle,
            Some(&self.certificate),
            self.settings.protocol,
        )
    }

    /// The connection for a path: that of its APIService, else the first's.
    fn client_for(&self, path: &str) -> Arc<AdapterClient> {
        let services = &self.settings.api_services;
        let at = services.iter().position(|api| {
            path.strip_prefix(&api.path()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        Arc::clone(&self.routes.lock().clients[at.unwrap_or(0)].1)
    }

    /// What it was made with.
    pub fn settings(&self) -> &Aggregation {
        &self.settings
    }

    /// Whether a group and version is one of its APIServices.
    pub fn serves(&self, group: &str, version: &str) -> bool {
        self.settings.api_services.iter().any(|api| api.group == group && api.version == version)
    }

    /// Sends a client's request on: under the front proxy's certificate, with the user's name,
    /// groups and extras in headers. Authorizing it is the caller's part.
    ///
    /// # Errors
    /// No connection, no verified certificate, or no answer in time.
    pub async fn proxy(&self, request: ProxiedRequest) -> Result<Answer, AdapterError> {
        let path = path_escape(&request.path);
        let mut headers = request.headers;
        for name in CREDENTIALS_AND_HOPS {
            headers.remove(*name);
        }
        let remote: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with("x-remote-")).cloned().collect();
        for name in remote {
            headers.remove(name);
        }
        set_user(&mut headers, &request.user)?;
        set_forwarded(&mut headers, self.address(), &path)?;
        headers.insert("x-forwarded-for", value(&request.from.to_string())?);
        headers.insert("audit-id", value(&audit_id())?);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        let mut query = request.query;
        // Go's url.Values.Encode sorts by key and keeps the order of equal ones.
        query.sort_by(|a, b| a.0.cmp(&b.0));
        let query: Vec<String> = query
            .iter()
            .map(|(key, value)| format!("{}={}", query_escape(key), query_escape(value)))
            .collect();
        let target = if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) };
        self.client_for(&request.path).send(request.method, &target, headers, REQUEST_LIMIT).await
    }

    /// The HPA controller's request for a Pods metric, of the preferred version of
    /// custom.metrics.k8s.io. `selector` is the scale target's, as text.
    ///
    /// # Errors
    /// As [`Self::proxy`]'s.
    pub async fn hpa_request(
        &self,
        namespace: &str,
        selector: &str,
        metric: &str,
    ) -> Result<Answer, AdapterError> {
        let query = vec![("labelSelector".to_owned(), selector.to_owned())];
        self.metric_request(&format!("namespaces/{namespace}/pods/*/{metric}"), query).await
    }

    /// The HPA controller's request for anything below the preferred version of
    /// custom.metrics.k8s.io, such as `namespaces/demo/pods/a/gpu_utilization`.
    ///
    /// # Errors
    /// As [`Self::proxy`]'s.
    pub async fn metric_request(
        &self,
        below: &str,
        query: Vec<(String, String)>,
    ) -> Result<Answer, AdapterError> {
        let preferred = self
            .settings
            .api_services
            .iter()
            .filter(|api| api.group == "custom.metrics.k8s.io")
            .max_by_key(|api| api.version_priority)
            .map_or_else(|| "/apis/custom.metrics.k8s.io/v1beta2".to_owned(), ApiService::path);
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(HPA_USER_AGENT));
        headers.insert(ACCEPT, HeaderValue::from_static(HPA_ACCEPT));
        self.proxy(ProxiedRequest {
            method: Method::GET,
            path: format!("{preferred}/{below}"),
            query,
            headers,
            user: User::hpa_controller(),
            from: std::net::Ipv4Addr::LOCALHOST.into(),
        })
        .await
    }

    /// Discovery as the API server does it every minute: the aggregated document, and where that
    /// is not offered each version's list, then without any group.
    ///
    /// # Errors
    /// As [`Self::proxy`]'s; answers of every status are answers.
    pub async fn discovery_requests(&self) -> Result<Vec<Answer>, AdapterError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(AGGREGATED_DISCOVERY));
        let aggregator = User { groups: vec!["system:masters".into()], ..User::of("system:kube-aggregator") };
        let first = self.own_request("/apis", headers, &aggregator, DISCOVERY_LIMIT).await?;
        let is_aggregated = first.status == http::StatusCode::OK
            && first.content_type().is_some_and(|kind| kind.contains("as=APIGroupDiscoveryList"));
        let mut answers = vec![first];
        if !is_aggregated {
            for api in &self.settings.api_services {
                let mut headers = HeaderMap::new();
                headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
                let nobody = User::of("system:kube-aggregator");
                answers.push(self.own_request(&api.path(), headers, &nobody, DISCOVERY_LIMIT).await?);
            }
        }
        Ok(answers)
    }

    /// `GET /openapi/v2` as the API server asks every minute: without any group.
    ///
    /// # Errors
    /// As [`Self::proxy`]'s.
    pub async fn openapi_v2(&self) -> Result<Answer, AdapterError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        self.own_request("/openapi/v2", headers, &User::of("system:aggregator"), REQUEST_LIMIT).await
    }

    /// `GET /openapi/v3` as the API server asks every minute: without any group and any Accept.
    ///
    /// # Errors
    /// As [`Self::proxy`]'s.
    pub async fn openapi_v3(&self) -> Result<Answer, AdapterError> {
        self.own_request("/openapi/v3", HeaderMap::new(), &User::of("system:aggregator"), REQUEST_LIMIT).await
    }

    async fn own_request(
        &self,
        path: &str,
        mut headers: HeaderMap,
        user: &User,
        limit: Duration,
    ) -> Result<Answer, AdapterError> {
        set_user(&mut headers, user)?;
        set_forwarded(&mut headers, self.address(), path)?;
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        self.client_for(path).send(Method::GET, path, headers, limit).await
    }
}

const CREDENTIALS_AND_HOPS: &[&str] = &[
    "authorization",
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-uri",
];

/// The request-header form of a user: groups repeated, extra keys percent-encoded in the name.
fn set_user(headers: &mut HeaderMap, user: &User) -> Result<(), AdapterError> {
    headers.insert("x-remote-user", value(&user.username)?);
    if !user.uid.is_empty() {
        headers.insert("x-remote-uid", value(&user.uid)?);
    }
    for group in &user.groups {
        headers.append("x-remote-group", value(group)?);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escape::header_key_escape(key));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| AdapterError::Header(name))?;
        for text in values {
            headers.append(name.clone(), value(text)?);
        }
    }
    Ok(())
}

fn set_forwarded(headers: &mut HeaderMap, host: SocketAddr, path: &str) -> Result<(), AdapterError> {
    headers.insert("x-forwarded-host", value(&host.to_string())?);
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    headers.insert("x-forwarded-uri", value(path)?);
    Ok(())
}

fn value(text: &str) -> Result<HeaderValue, AdapterError> {
    HeaderValue::from_str(text).map_err(|_| AdapterError::Header(text.to_owned()))
}

/// An id of the shape of a UUID; counted, so that a log shows the order.
fn audit_id() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(1);
    format!("b1afbaff-0000-4000-8000-{:012x}", COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests;
