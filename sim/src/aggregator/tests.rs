//! What an aggregated server receives, seen from a server that stands in for the adapter.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::apiserver::{ADMIN_TOKEN, ApiServer, ApiServerOptions, NOBODY_TOKEN};
use crate::certs::{Authority, roots};

/// A request as it arrived: names as written are not kept by hyper, so all is in lower case.
#[derive(Debug, Clone)]
struct Arrived {
    target: String,
    version: http::Version,
    headers: HeaderMap,
    certified: bool,
}

impl Arrived {
    fn all(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }
}

/// Stands where the adapter would, and keeps what arrives.
struct Adapter {
    address: SocketAddr,
    ca_bundle: String,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    status: Arc<Mutex<StatusCode>>,
}

async fn adapter(certificates: &Certificates, name: &str) -> Adapter {
    let authority = Authority::new("adapter").unwrap();
    let (chain, key) = authority.server("adapter", &[name]).unwrap().for_rustls().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(
        roots(certificates.front_proxy.pem()).unwrap().into(),
        Arc::clone(&provider),
    )
    .allow_unauthenticated()
    .build()
    .unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let arrived: Arc<Mutex<Vec<Arrived>>> = Arc::default();
    let status = Arc::new(Mutex::new(StatusCode::OK));
    let (log, answer) = (Arc::clone(&arrived), Arc::clone(&status));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, log, answer) = (tls.clone(), Arc::clone(&log), Arc::clone(&answer));
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                let certified = stream.get_ref().1.peer_certificates().is_some();
                let service = service_fn(move |request: Request<Incoming>| {
                    log.lock().push(Arrived {
                        target: request.uri().path_and_query().unwrap().to_string(),
                        version: request.version(),
                        headers: request.headers().clone(),
                        certified,
                    });
                    let mut response = Response::new(Full::new(Bytes::from_static(b"{\"items\":[]}")));
                    *response.status_mut() = *answer.lock();
                    async move { Ok::<_, Infallible>(response) }
                });
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Adapter { address, ca_bundle: authority.pem().to_owned(), arrived, status }
}

const SERVICE: &str = "podgauge-adapter.podgauge.svc";

async fn both(protocol: Protocol) -> (Adapter, Arc<Aggregator>) {
    let certificates = Certificates::new().unwrap();
    let adapter = adapter(&certificates, SERVICE).await;
    let settings =
        Aggregation { protocol, ..Aggregation::of_adapter(adapter.address, adapter.ca_bundle.clone()) };
    let aggregator = Aggregator::new(settings, &certificates).unwrap();
    (adapter, aggregator)
}

#[tokio::test]
async fn the_hpa_request_is_the_recorded_one() {
    for (protocol, version) in
        [(Protocol::Http1, http::Version::HTTP_11), (Protocol::Negotiated, http::Version::HTTP_2)]
    {
        let (adapter, aggregator) = both(protocol).await;
        let answer = aggregator.hpa_request("demo", "app=worker", "gpu_utilization").await.unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        let arrived = adapter.arrived.lock()[0].clone();
        assert_eq!(arrived.version, version);
        assert!(arrived.certified);
        let path = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/%2A/gpu_utilization";
        assert_eq!(arrived.target, format!("{path}?labelSelector=app%3Dworker"));
        assert_eq!(
            arrived.all("x-remote-group"),
            ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"]
        );
        for (name, value) in [
            ("accept", "application/vnd.kubernetes.protobuf, */*"),
            ("accept-encoding", "gzip"),
            ("user-agent", HPA_USER_AGENT),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-host", &adapter.address.to_string()),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-uri", path),
            ("x-remote-user", "system:serviceaccount:kube-system:horizontal-pod-autoscaler"),
            ("x-remote-uid", "2722cff5-6590-4db0-a19d-8bdd42ce2233"),
            (
                "x-remote-extra-authentication.kubernetes.io%2fcredential-id",
                "JTI=2722cff5-6590-4db0-a19d-8bdd42ce2233",
            ),
        ] {
            assert_eq!(arrived.all(name), [value], "{name}");
        }
        assert_eq!(arrived.all("audit-id").len(), 1);
        if version == http::Version::HTTP_11 {
            assert_eq!(arrived.all("host"), [adapter.address.to_string()]);
        }
    }
}

#[tokio::test]
async fn five_checks_at_once_and_the_status_decides() {
    let (adapter, aggregator) = both(Protocol::Http1).await;
    let statuses =
        |all: Vec<Availability>| all.into_iter().map(|a| (a.status, a.message)).collect::<Vec<_>>();
    assert!(!aggregator.is_available("custom.metrics.k8s.io", "v1beta2"));
    aggregator.check_availability().await;
    assert!(aggregator.is_available("custom.metrics.k8s.io", "v1beta2"));
    let check = adapter.arrived.lock()[0].clone();
    assert_eq!(check.all("x-remote-user"), ["system:kube-aggregator"]);
    assert_eq!(check.all("x-remote-group"), ["system:masters"]);
    assert_eq!(check.all("user-agent"), ["Go-http-client/1.1"]);
    assert!(check.all("accept").is_empty() && check.all("x-forwarded-host").is_empty());

    for refused in [StatusCode::FORBIDDEN, StatusCode::FOUND, StatusCode::SERVICE_UNAVAILABLE] {
        let (adapter, aggregator) = both(Protocol::Http1).await;
        *adapter.status.lock() = refused;
        let all = statuses(aggregator.check_availability().await);
        assert_eq!(all[0].0, AvailabilityStatus::False);
        assert!(
            all[0].1.ends_with(&format!("/apis/custom.metrics.k8s.io/v1beta1: {}", refused.as_u16())),
            "{}",
            all[0].1
        );
        assert_eq!(adapter.arrived.lock().len(), 10, "five requests for each of two APIServices");
    }
}

#[tokio::test]
async fn discovery_and_openapi_come_without_groups() {
    let (adapter, aggregator) = both(Protocol::Http1).await;
    *adapter.status.lock() = StatusCode::NOT_FOUND;
    aggregator.discovery_requests().await.unwrap();
    aggregator.openapi_v2().await.unwrap();
    aggregator.openapi_v3().await.unwrap();
    let arrived = adapter.arrived.lock().clone();
    let lines: Vec<_> = arrived
        .iter()
        .map(|a| (a.target.as_str(), a.all("x-remote-user")[0], a.all("x-remote-group"), a.all("accept")))
        .collect();
    let json = || vec!["application/json"];
    assert_eq!(
        lines,
        [
            ("/apis", "system:kube-aggregator", vec!["system:masters"], vec![AGGREGATED_DISCOVERY]),
            ("/apis/custom.metrics.k8s.io/v1beta1", "system:kube-aggregator", vec![], json()),
            ("/apis/custom.metrics.k8s.io/v1beta2", "system:kube-aggregator", vec![], json()),
            ("/openapi/v2", "system:aggregator", vec![], json()),
            ("/openapi/v3", "system:aggregator", vec![], vec![]),
        ]
    );
    assert!(
        arrived.iter().all(|a| a.all("user-agent").is_empty() && a.all("x-forwarded-proto") == ["https"])
    );
}

#[tokio::test]
async fn a_certificate_for_another_name_or_of_another_authority_is_refused() {
    let certificates = Certificates::new().unwrap();
    let misnamed = adapter(&certificates, "adapter.podgauge.svc.cluster.local").await;
    let settings = Aggregation::of_adapter(misnamed.address, misnamed.ca_bundle.clone());
    let error = Aggregator::new(settings, &certificates).unwrap().openapi_v3().await.unwrap_err();
    assert!(error.to_string().contains(SERVICE), "{error}");

    let named = adapter(&certificates, SERVICE).await;
    let settings = Aggregation::of_adapter(named.address, certificates.cluster.pem().to_owned());
    let checked = Aggregator::new(settings, &certificates).unwrap().check_availability().await;
    assert_eq!(checked[0].status, AvailabilityStatus::False);
    assert!(
        checked[0].message.starts_with("failing or missing response from https://"),
        "{}",
        checked[0].message
    );
    assert!(named.arrived.lock().is_empty());
}

#[tokio::test]
async fn the_stand_in_api_server_authorizes_strips_and_passes_on() {
    let server = ApiServer::start(ApiServerOptions::default()).await.unwrap();
    let adapter = adapter(server.certificates(), SERVICE).await;
    let aggregator =
        server.aggregate(Aggregation::of_adapter(adapter.address, adapter.ca_bundle.clone())).unwrap();
    aggregator.check_availability().await;
    let cluster = server.certificates().cluster.pem();
    let client =
        AdapterClient::new(server.address(), "localhost", cluster, None, Protocol::Negotiated).unwrap();
    let ask = async |token: &str, target: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        headers.insert("x-remote-user", "system:admin".parse().unwrap());
        headers.insert("x-remote-extra-scopes", "all".parse().unwrap());
        client.send(Method::GET, target, headers, REQUEST_LIMIT).await.unwrap()
    };
    let metric = "/apis/custom.metrics.k8s.io/v1beta1/namespaces/demo/pods/*/gpu_utilization?labelSelector=b%20in%20(x)&a=1";
    let denied = ask(NOBODY_TOKEN, metric).await;
    assert_eq!(denied.status, StatusCode::FORBIDDEN);
    assert_eq!(
        denied.json().unwrap()["message"],
        "pods.custom.metrics.k8s.io \"*\" is forbidden: User \"nobody\" cannot get resource \"pods/gpu_utilization\" in API group \"custom.metrics.k8s.io\" in the namespace \"demo\""
    );
    assert_eq!(ask(ADMIN_TOKEN, metric).await.text(), "{\"items\":[]}");
    let metrics: Vec<_> =
        adapter.arrived.lock().iter().filter(|a| a.target.contains("/pods/")).cloned().collect();
    assert_eq!(metrics.len(), 1, "what was denied did not arrive");
    let arrived = &metrics[0];
    assert_eq!(
        arrived.target,
        "/apis/custom.metrics.k8s.io/v1beta1/namespaces/demo/pods/%2A/gpu_utilization?a=1&labelSelector=b+in+%28x%29"
    );
    assert_eq!(arrived.all("x-remote-user"), ["kubernetes-admin"]);
    assert!(arrived.all("x-remote-extra-scopes").is_empty() && arrived.all("authorization").is_empty());

    *adapter.status.lock() = StatusCode::INTERNAL_SERVER_ERROR;
    aggregator.check_availability().await;
    let refused = ask(ADMIN_TOKEN, metric).await;
    assert_eq!(
        (refused.status, refused.text().trim()),
        (StatusCode::SERVICE_UNAVAILABLE, "service unavailable")
    );
}
