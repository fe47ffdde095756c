//! Flags of Kubernetes' API server library, as an operator passes them.

use http::{HeaderMap, Method};
use podgauge_sim::aggregator::{AdapterClient, Protocol};
use podgauge_sim::apiserver::{ADAPTER_TOKEN, HPA_TOKEN, NOBODY_TOKEN};
use podgauge_sim::certs::{Authority, Leaf};
use podgauge_tests::cluster::{Cluster, SERVICE, headers};
use podgauge_tests::raw;
use podgauge_tests::wait::LIMIT;

const NODE: &str =
    "gpus: [{load: {constant: 64}}]\npods: [{name: a, labels: {app: a}, containers: [{devices: [\"0\"]}]}]";
const METRIC: &str = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/a/gpu_utilization";

async fn status(cluster: &Cluster, certificate: Option<&Leaf>, path: &str, pairs: &[(&str, &str)]) -> u16 {
    cluster.adapter.get(certificate, path, headers(pairs)).await.unwrap().status.as_u16()
}

#[tokio::test]
async fn cas_and_headers_of_flags_replace_those_of_the_config_map() {
    let proxy = Authority::new("my-proxy").unwrap();
    let clients = Authority::new("my-clients").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("proxy.pem"), proxy.pem()).unwrap();
    std::fs::write(path("clients.pem"), clients.pem()).unwrap();
    let cluster = Cluster::start_with(NODE, |command| {
        command.arg("--client-ca-file").arg(path("clients.pem"));
        command.arg("--requestheader-client-ca-file").arg(path("proxy.pem"));
        command.args(["--requestheader-allowed-names=a,proxy", "--requestheader-username-headers=X-Who"]);
        command
            .args(["--requestheader-group-headers=X-Groups", "--requestheader-extra-headers-prefix=X-More-"]);
        command.args(["--requestheader-uid-headers=X-Uid", "--authentication-skip-lookup"]);
    })
    .await;
    let masters = [("x-who", "me"), ("x-groups", "system:masters")];
    let of_flags = proxy.client("proxy", None).unwrap();
    assert_eq!(status(&cluster, Some(&of_flags), "/metrics", &masters).await, 200);
    assert_eq!(status(&cluster, Some(&proxy.client("b", None).unwrap()), "/metrics", &masters).await, 401);
    let usual = [("x-remote-user", "me"), ("x-remote-group", "system:masters")];
    assert_eq!(
        status(&cluster, Some(&of_flags), "/metrics", &usual).await,
        401,
        "no user in the header that counts"
    );
    let of_config_map = cluster.server.certificates().front_proxy_client.clone();
    assert_eq!(status(&cluster, Some(&of_config_map), "/metrics", &usual).await, 401);
    let admin = clients.client("admin", Some("system:masters")).unwrap();
    assert_eq!(status(&cluster, Some(&admin), "/metrics", &[]).await, 200);
    let stranger = cluster.server.certificates().client.client("admin", Some("system:masters")).unwrap();
    assert_eq!(status(&cluster, Some(&stranger), "/metrics", &[]).await, 401);
    // UID and extras reach authorization.
    let user = [("x-who", "u"), ("x-uid", "7"), ("x-more-acme.com%2fteam", "blue")];
    assert_eq!(status(&cluster, Some(&of_flags), "/metrics", &user).await, 403);
    let reviewed = format!("{:?}", cluster.server.reviews());
    assert!(
        reviewed.contains("uid: \"7\"") && reviewed.contains("\"acme.com/team\": [\"blue\"]"),
        "{reviewed}"
    );
    // A CA that is exchanged in its file is believed without a restart.
    let next = Authority::new("my-next-proxy").unwrap();
    std::fs::write(path("proxy.pem"), next.pem()).unwrap();
    let of_next = next.client("proxy", None).unwrap();
    podgauge_tests::wait::until("the next CA to be believed", || async {
        let code = status(&cluster, Some(&of_next), "/metrics", &masters).await;
        if code == 200 { Ok(()) } else { Err(code) }
    })
    .await;
    assert_eq!(status(&cluster, Some(&of_flags), "/metrics", &masters).await, 401);
}

#[tokio::test]
async fn paths_are_opened_and_closed_by_flag() {
    let cluster = Cluster::start_with(NODE, |command| {
        command.arg("--authorization-always-allow-paths=/healthz,/readyz,/metrics");
    })
    .await;
    for (path, code) in
        [("/healthz", 200), ("/metrics", 200), ("/livez", 200), ("/apis", 403), ("/metrics/x", 403)]
    {
        // What anybody may see of a cluster includes /livez: asked, the API server allows it.
        assert_eq!(status(&cluster, None, path, &[]).await, code, "{path}");
    }
    let asked = format!("{:?}", cluster.server.reviews());
    assert!(
        asked.contains("\"/livez\"") && !asked.contains("\"/healthz\"") && !asked.contains("\"/metrics\""),
        "{asked}"
    );
    assert_eq!(status(&cluster, None, "/metrics", &[("authorization", "Bearer wrong")]).await, 401);
}

#[tokio::test]
async fn each_purpose_can_have_its_own_kubeconfig_and_answers_are_kept_as_long_as_told() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good");
    let cluster = Cluster::start_with(NODE, |command| {
        // Written once the API server's address is known: the harness wrote this one before.
        let own = command.get_args().skip_while(|arg| *arg != "--kubeconfig").nth(1).unwrap().to_owned();
        let text = std::fs::read_to_string(&own).unwrap();
        std::fs::write(&good, &text).unwrap();
        std::fs::write(&own, text.replace(ADAPTER_TOKEN, NOBODY_TOKEN)).unwrap();
        for flag in ["--authentication-kubeconfig", "--authorization-kubeconfig", "--lister-kubeconfig"] {
            command.arg(flag).arg(&good);
        }
        command.args(["--authentication-token-webhook-cache-ttl=0s"]);
        command.args([
            "--authorization-webhook-cache-authorized-ttl=1h",
            "--authorization-webhook-cache-unauthorized-ttl=0",
        ]);
    })
    .await;
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    let bearer = [("authorization", &*format!("Bearer {HPA_TOKEN}"))];
    let nobody = [("authorization", &*format!("Bearer {NOBODY_TOKEN}"))];
    assert_eq!(status(&cluster, None, METRIC, &bearer).await, 200);
    let (tokens, access) = (cluster.server.token_reviews(), cluster.server.access_reviews());
    for _ in 0..3 {
        assert_eq!(status(&cluster, None, METRIC, &bearer).await, 200);
    }
    assert_eq!(cluster.server.token_reviews() - tokens, 3, "tokens are not remembered");
    assert_eq!(cluster.server.access_reviews() - access, 0, "permissions are");
    for _ in 0..3 {
        assert_eq!(status(&cluster, None, METRIC, &nobody).await, 403);
    }
    assert_eq!(cluster.server.access_reviews() - access, 3, "denials are not");
}

#[tokio::test]
async fn protocols_are_chosen_by_flag() {
    let cluster = Cluster::start_with(NODE, |command| {
        command.args(["--tls-min-version=VersionTLS13", "--disable-http2=true"]);
    })
    .await;
    let (address, ca) = (cluster.adapter.address, cluster.adapter.authority.pem());
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let only = |version: &'static rustls::SupportedProtocolVersion| {
        rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(podgauge_sim::certs::roots(ca).unwrap())
            .with_no_client_auth()
    };
    let both: &[&[u8]] = &[b"h2", b"http/1.1"];
    let old = raw::connect(address, only(&rustls::version::TLS12), both).await.unwrap_err();
    assert!(old.to_string().contains("ProtocolVersion"), "{old}");
    let mut new = raw::connect(address, only(&rustls::version::TLS13), both).await.unwrap();
    assert_eq!(new.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    // Not even to a client that does not ask.
    let answer = raw::exchange(&mut new, raw::OPENING).await;
    assert!(!answer.contains('\u{4}') || answer.starts_with("HTTP/1.1 4"), "{answer:?}");
    let client = AdapterClient::new(address, SERVICE, ca, None, Protocol::Negotiated).unwrap();
    let answer = client.send(Method::GET, "/livez", HeaderMap::new(), LIMIT).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.version), (200, http::Version::HTTP_11));
}

#[tokio::test]
async fn suites_are_chosen_by_flag_and_flags_without_effect_are_said_once_each() {
    let cluster = Cluster::start_with(NODE, |command| {
        command
            .arg("--tls-cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,TLS_RSA_WITH_AES_128_CBC_SHA");
        command.args([
            "--audit-log-path=-",
            "--audit-log-maxage",
            "7",
            "--enable-priority-and-fairness=false",
        ]);
        command.args(["--logtostderr=true", "--v=4"]);
    })
    .await;
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.retain(|suite| suite.tls13().is_none());
    let config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(podgauge_sim::certs::roots(cluster.adapter.authority.pem()).unwrap())
        .with_no_client_auth();
    let stream = raw::connect(cluster.adapter.address, config, &[]).await.unwrap();
    let suite = stream.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384);
    for flag in ["--audit-log-path ", "--audit-log-maxage ", "--logtostderr ", "--tls-cipher-suites: "] {
        cluster.adapter.program.logs(flag, 1).await;
    }
    let log = cluster.adapter.program.log();
    assert!(log.contains("TLS_RSA_WITH_AES_128_CBC_SHA") && !log.contains("--enable-priority"), "{log}");
    assert!(log.contains("DEBUG"), "--v=4 logs more");
}
