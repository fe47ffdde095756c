//! What hostile or broken clients get: the right status or a closed connection, while others are
//! answered. Forged headers, wrong authorities and wrong names are in `adapter_access`.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Method;
use podgauge_sim::aggregator::{AdapterClient, Answer, Protocol};
use podgauge_sim::apiserver::{Access, Failing, HPA_TOKEN, Review, Rule, User};
use podgauge_sim::certs::{Authority, FRONT_PROXY_CLIENT, Leaf};
use podgauge_tests::cluster::{Cluster, SERVICE, headers};
use podgauge_tests::raw;
use podgauge_tests::wait::{LIMIT, until, until_within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

const NODE: &str =
    "gpus: [{load: {constant: 64}}]\npods: [{name: a, labels: {app: a}, containers: [{devices: [\"0\"]}]}]";
const METRIC: &str = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/a/gpu_utilization";
/// How much more memory an attack may cost at its end, KiB: what an allocator keeps, no more.
const SLACK: u64 = 24 * 1024;

/// Anonymous resident memory of the adapter, KiB.
fn memory(cluster: &Cluster) -> u64 {
    cluster.adapter.program.memory_kib("RssAnon:")
}

/// The HPA is answered, nothing panicked, nothing secret is in the log, memory is as before.
async fn unharmed(cluster: &Cluster, before: u64) {
    let value = cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    assert!((63.0..=65.0).contains(&value), "{value}");
    let now = memory(cluster);
    assert!(now <= before + SLACK, "{before} KiB before, {now} KiB now");
    let log = cluster.adapter.program.log();
    for word in ["panicked", "PRIVATE KEY", HPA_TOKEN, "sim-podgauge", "secret-"] {
        assert!(!log.contains(word), "{word}: {log}");
    }
}

async fn start() -> (Cluster, u64) {
    start_with(&[]).await
}

async fn start_with(arguments: &[&str]) -> (Cluster, u64) {
    // Debug: what the log would say of a secret, it says now.
    let cluster = Cluster::start_with(NODE, |command| {
        command.arg("--debug").args(arguments);
    })
    .await;
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    let before = memory(&cluster);
    (cluster, before)
}

/// One connection that is kept, under the front proxy's certificate.
fn kept(cluster: &Cluster, certificate: &Leaf) -> AdapterClient {
    let ca = cluster.adapter.authority.pem();
    AdapterClient::new(cluster.adapter.address, SERVICE, ca, Some(certificate), Protocol::Http2).unwrap()
}

async fn as_user(client: &AdapterClient, user: &str, path: &str) -> Answer {
    client
        .send(Method::GET, path, headers(&[("x-remote-user", user), ("x-remote-group", "guests")]), LIMIT)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_token_that_expired_is_401_once_its_answer_is_forgotten() {
    let (cluster, before) = start_with(&["--authentication-token-webhook-cache-ttl=1s"]).await;
    let mut access = Access::built_in();
    access.tokens.insert("secret-token".to_owned(), User::hpa_controller());
    cluster.server.set_access(access);
    let ask = async || {
        let bearer = headers(&[("authorization", "Bearer secret-token")]);
        cluster.adapter.get(None, METRIC, bearer).await.unwrap()
    };
    assert_eq!(ask().await.status, 200);
    cluster.server.set_access(Access::built_in());
    let refused = until("the expired token to be refused", || async {
        let answer = ask().await;
        if answer.status == 401 { Ok(answer) } else { Err(answer.status) }
    })
    .await;
    assert_eq!(refused.json().unwrap()["message"], "Unauthorized");
    unharmed(&cluster, before).await;
}

#[tokio::test]
async fn an_api_server_that_fails_or_is_gone_is_a_500_that_says_so() {
    let (cluster, before) = start().await;
    let client = kept(&cluster, &cluster.server.certificates().front_proxy_client);
    cluster.server.set_failing(Failing { token_reviews: true, access_reviews: true });
    let failed = as_user(&client, "alice", METRIC).await;
    assert_eq!(failed.status, 500);
    let status = failed.json().unwrap();
    assert_eq!((status["kind"].as_str(), status["reason"].as_str()), (Some("Status"), Some("InternalError")));
    assert!(status["message"].as_str().unwrap().contains("\"alice\""), "{status}");
    let bearer = headers(&[("authorization", "Bearer secret-token")]);
    assert_eq!(cluster.adapter.get(None, METRIC, bearer.clone()).await.unwrap().status, 500);
    cluster.server.stop().await;
    assert_eq!(as_user(&client, "bob", METRIC).await.status, 500);
    assert_eq!(cluster.adapter.get(None, METRIC, bearer).await.unwrap().status, 500);
    // What is known goes on: the mighty need no question.
    let masters = headers(&[("x-remote-user", "m"), ("x-remote-group", "system:masters")]);
    assert_eq!(client.send(Method::GET, METRIC, masters, LIMIT).await.unwrap().status, 200);
    cluster.server.restart().await.unwrap();
    cluster.server.set_failing(Failing::default());
    assert_eq!(as_user(&client, "alice", METRIC).await.status, 403);
    cluster.adapter.program.logs("SubjectAccessReview fails", 1).await;
    unharmed(&cluster, before).await;
}

#[tokio::test]
async fn a_front_proxy_ca_rotated_on_the_way_counts_at_once_on_open_connections() {
    let (cluster, before) = start().await;
    let certificates = cluster.server.certificates().clone();
    let next = Authority::new("front-proxy-next").unwrap();
    let (old_leaf, new_leaf) =
        (certificates.front_proxy_client.clone(), next.client(FRONT_PROXY_CLIENT, None).unwrap());
    let (old, new) = (kept(&cluster, &old_leaf), kept(&cluster, &new_leaf));
    assert_eq!(as_user(&old, "u", METRIC).await.status, 403);
    assert_eq!(as_user(&new, "u", METRIC).await.status, 401);
    let trusted = |pem: String| {
        let list = |text: &str| serde_json::json!([text]).to_string();
        [
            ("client-ca-file", certificates.client.pem().to_owned()),
            ("requestheader-client-ca-file", pem),
            ("requestheader-allowed-names", list(FRONT_PROXY_CLIENT)),
            ("requestheader-username-headers", list("X-Remote-User")),
            ("requestheader-group-headers", list("X-Remote-Group")),
            ("requestheader-extra-headers-prefix", list("X-Remote-Extra-")),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    };
    let becomes = async |client: &AdapterClient, code: u16| {
        until("the change of CA", || async {
            let found = as_user(client, "u", METRIC).await.status;
            if found == code { Ok(()) } else { Err(found) }
        })
        .await;
    };
    // Both for a while, as a cluster rotates; then the new one alone.
    cluster.server.set_authentication_config(Some(trusted(format!(
        "{}{}",
        certificates.front_proxy.pem(),
        next.pem()
    ))));
    becomes(&new, 403).await;
    assert_eq!(as_user(&old, "u", METRIC).await.status, 403);
    cluster.server.set_authentication_config(Some(trusted(next.pem().to_owned())));
    becomes(&old, 401).await;
    assert_eq!(as_user(&new, "u", METRIC).await.status, 403);
    cluster.server.set_authentication_config(None);
    becomes(&new, 401).await;
    cluster.server.set_authentication_config(Some(trusted(certificates.front_proxy.pem().to_owned())));
    becomes(&old, 403).await;
    unharmed(&cluster, before).await;
}

#[tokio::test]
async fn slow_loris_takes_its_own_places_and_is_closed() {
    let (cluster, before) = start().await;
    let connect = async |address: SocketAddr| {
        let socket = TcpSocket::new_v4().unwrap();
        // Another machine, as the adapter sees it.
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        socket.connect(address).await.unwrap()
    };
    let mut config = raw::tls(cluster.adapter.authority.pem(), None);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut lorises = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (stream, connector) = (connect(cluster.adapter.address).await, connector.clone());
        lorises.spawn(async move {
            let name = rustls::pki_types::ServerName::try_from(SERVICE).unwrap();
            // One of too many is closed before its handshake.
            let Ok(mut stream) = connector.connect(name, stream).await else { return };
            let mut byte = [0];
            for letter in b"GET /livez HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'x')) {
                tokio::select! {
                    read = stream.read(&mut byte) => if !matches!(read, Ok(1..)) { return },
                    () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {
                        if stream.write_all(&[*letter]).await.is_err() { return }
                    }
                }
            }
        });
    }
    let mut answered = 0;
    let client = kept(&cluster, &cluster.server.certificates().front_proxy_client);
    until_within(2 * LIMIT, "every slow connection to be closed", || {
        let (client, open) = (&client, lorises.len());
        while lorises.try_join_next().is_some() {}
        answered += 1;
        async move {
            let answer = as_user(client, "u", METRIC).await;
            assert_eq!(answer.status, 403, "others are answered meanwhile");
            if open == 0 { Ok(()) } else { Err(format!("{open} are open")) }
        }
    })
    .await;
    assert!(answered > 1);
    unharmed(&cluster, before).await;
}

#[tokio::test]
async fn a_mebibyte_of_headers_is_431_or_the_end() {
    let (cluster, before) = start().await;
    let config = raw::tls(cluster.adapter.authority.pem(), None);
    let one = format!("GET /livez HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let many: String = (0..22_000).map(|n| format!("X-{n}: {}\r\n", "x".repeat(40))).collect();
    let many = format!("GET /livez HTTP/1.1\r\nHost: x\r\n{many}\r\n");
    for request in [one, many] {
        assert!(request.len() > 1 << 20);
        let mut stream = raw::connect(cluster.adapter.address, config.clone(), &[b"http/1.1"]).await.unwrap();
        let answer = raw::exchange(&mut stream, request.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    // HTTP/2: a block that goes on in CONTINUATION frames, and never ends.
    let mut stream = raw::connect(cluster.adapter.address, config, &[b"h2"]).await.unwrap();
    let mut flood = raw::OPENING.to_vec();
    let literal = |name: &str, value: &str| {
        let mut field = vec![0, u8::try_from(name.len()).unwrap()];
        field.extend(name.as_bytes());
        field.push(u8::try_from(value.len()).unwrap());
        field.extend(value.as_bytes());
        field
    };
    flood.extend(raw::frame(0x01, 0x01, 1, &literal("x", &"x".repeat(100))));
    let block: Vec<u8> = (0..100).flat_map(|_| literal("x", &"x".repeat(100))).collect();
    for _ in 0..110 {
        flood.extend(raw::frame(0x09, 0, 1, &block));
    }
    assert!(flood.len() > 1 << 20);
    // Comes back only when the adapter ends the connection.
    raw::exchange(&mut stream, &flood).await;
    unharmed(&cluster, before).await;
}

#[tokio::test]
async fn a_selector_of_10_000_terms_is_a_400() {
    let (cluster, before) = start().await;
    let client = kept(&cluster, &cluster.server.certificates().front_proxy_client);
    let masters = headers(&[("x-remote-user", "m"), ("x-remote-group", "system:masters")]);
    let short = vec!["a"; 10_000].join(",");
    let different: Vec<String> = (0..10_000).map(|n| format!("k{n}")).collect();
    let set = format!("a in ({})", vec!["b"; 10_000].join(",")).replace(' ', "+");
    let base = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/*/gpu_utilization";
    for parameter in ["labelSelector", "metricLabelSelector"] {
        for selector in [&short, &different.join(","), &set] {
            let target = format!("{base}?{parameter}={selector}");
            let answer = client.send(Method::GET, &target, masters.clone(), LIMIT).await.unwrap();
            assert_eq!(answer.status, 400, "{}", answer.text());
            assert!(answer.body.len() < 1024, "the answer does not repeat it: {}", answer.text());
        }
    }
    unharmed(&cluster, before).await;
}

#[tokio::test]
async fn paths_that_mean_something_else_when_decoded_are_400_and_open_nothing() {
    let (cluster, before) = start().await;
    let base = "/apis/custom.metrics.k8s.io/v1beta2/namespaces";
    let masters = [("x-remote-user", "m"), ("x-remote-group", "system:masters")];
    let proxy = kept(&cluster, &cluster.server.certificates().front_proxy_client);
    for path in [
        format!("{base}/demo/pods/..%2f..%2fkube-system/gpu_utilization"),
        format!("{base}/demo/../kube-system/pods/a/gpu_utilization"),
        format!("{base}/demo/%2e%2e/pods/a/gpu_utilization"),
        format!("{base}/demo/pods/%252a/gpu_utilization"),
        format!("{base}/demo/pods/a%252fb/gpu_utilization"),
        format!("{base}/demo//pods/a/gpu_utilization"),
        format!("{base}/demo/pods/a%00/gpu_utilization"),
        format!("{base}/demo/pods/%ff/gpu_utilization"),
        format!("{base}/demo/pods/%zz/gpu_utilization"),
        "/healthz/../metrics".to_owned(),
        "/healthz%2f..%2fmetrics".to_owned(),
        "/healthz/%2e%2e/metrics".to_owned(),
        "//metrics".to_owned(),
    ] {
        // Nobody gets anywhere, and neither does the mightiest.
        let mut nobody =
            raw::connect(cluster.adapter.address, raw::tls(cluster.adapter.authority.pem(), None), &[])
                .await
                .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = raw::exchange(&mut nobody, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
        assert!(!answer.contains("podgauge_adapter_"), "{path}: {answer}");
        if !path.contains("/../") {
            let answer = proxy.send(Method::GET, &path, headers(&masters), LIMIT).await.unwrap();
            assert_eq!(answer.status, 400, "{path}: {}", answer.text());
        }
    }
    unharmed(&cluster, before).await;
}

#[tokio::test]
async fn http2_rapid_reset_ends_the_connection_and_costs_nothing() {
    let (cluster, before) = start().await;
    let asked = cluster.server.access_reviews();
    let mut floods = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let config = raw::tls(cluster.adapter.authority.pem(), None);
        let mut stream = raw::connect(cluster.adapter.address, config, &[b"h2"]).await.unwrap();
        floods.spawn(async move {
            let mut flood = raw::OPENING.to_vec();
            for n in 0..20_000u32 {
                flood.extend(raw::get_frame(2 * n + 1, "/apis"));
                flood.extend(raw::reset_frame(2 * n + 1));
            }
            // Ends when the adapter ends it.
            raw::exchange(&mut stream, &flood).await
        });
    }
    let client = kept(&cluster, &cluster.server.certificates().front_proxy_client);
    until("the floods to be ended", || {
        while floods.try_join_next().is_some() {}
        let (client, open) = (&client, floods.len());
        async move {
            assert_eq!(as_user(client, "u", METRIC).await.status, 403, "others are answered meanwhile");
            if open == 0 { Ok(()) } else { Err(format!("{open} are open")) }
        }
    })
    .await;
    let asked = cluster.server.access_reviews() - asked;
    assert!(asked < 1000, "160,000 requests that were taken back caused {asked} questions");
    unharmed(&cluster, before).await;
}

#[tokio::test]
async fn the_request_beyond_512_at_once_is_a_429() {
    let (cluster, before) = start().await;
    let certificate = cluster.server.certificates().front_proxy_client.clone();
    let mut clients = Vec::new();
    for _ in 0..8 {
        let client = Arc::new(kept(&cluster, &certificate));
        // With its one connection open, it opens no others.
        assert_eq!(as_user(&client, "first", METRIC).await.status, 403);
        clients.push(client);
    }
    // Each waits for the API server's word on another user, which the adapter does for some seconds: a
    // machine that is busy may need longer for 512 of them.
    cluster.server.set_delay(LIMIT);
    let (clients, round) = (&clients, &std::cell::Cell::new(0));
    let codes = until("more than 512 at once", || async move {
        round.set(round.get() + 1);
        let mut asked = tokio::task::JoinSet::new();
        for (connection, client) in clients.iter().enumerate() {
            for request in 0..90 {
                let (client, user) = (Arc::clone(client), format!("{}-{connection}-{request}", round.get()));
                asked.spawn(async move { as_user(&client, &user, METRIC).await });
            }
        }
        let mut codes = std::collections::BTreeMap::<u16, usize>::new();
        while let Some(answer) = asked.join_next().await {
            let answer = answer.unwrap();
            *codes.entry(answer.status.as_u16()).or_default() += 1;
            if answer.status == 429 {
                assert_eq!(answer.headers["retry-after"], "1");
                assert_eq!(answer.json().unwrap()["reason"], "TooManyRequests");
            }
        }
        if codes.contains_key(&429) { Ok(codes) } else { Err(codes) }
    })
    .await;
    assert_eq!(codes.keys().copied().collect::<Vec<_>>(), [429, 500], "{codes:?}");
    assert!(codes[&500] >= 512, "{codes:?}");
    cluster.server.set_delay(std::time::Duration::ZERO);
    unharmed(&cluster, before).await;
}

#[tokio::test]
async fn a_flood_of_unknown_tokens_neither_forgets_nor_delays_a_good_one() {
    let (cluster, before) = start_with(&["--authentication-token-webhook-cache-ttl=1s"]).await;
    let good = headers(&[("authorization", &format!("Bearer {HPA_TOKEN}"))]);
    let client = {
        let ca = cluster.adapter.authority.pem();
        Arc::new(AdapterClient::new(cluster.adapter.address, SERVICE, ca, None, Protocol::Http2).unwrap())
    };
    let ask = async |headers| client.send(Method::GET, METRIC, headers, LIMIT).await.unwrap().status.as_u16();
    assert_eq!(ask(good.clone()).await, 200);
    let reviewed = || {
        let of_good = |review: &&Review| matches!(review, Review::Token { token, .. } if token == HPA_TOKEN);
        cluster.server.reviews().iter().filter(of_good).count()
    };
    let first = reviewed();
    let mut codes = std::collections::BTreeSet::new();
    let mut count = 0;
    // Until its answer has expired and was asked for again, more than once.
    while reviewed() < first + 3 {
        let flood = (0..50).map(|_| {
            count += 1;
            ask(headers(&[("authorization", &format!("Bearer secret-{count}"))]))
        });
        codes.extend(futures::future::join_all(flood.collect::<Vec<_>>()).await);
        assert_eq!(ask(good.clone()).await, 200, "after {count} unknown tokens");
    }
    assert_eq!(codes.into_iter().collect::<Vec<_>>(), [401, 429]);
    unharmed(&cluster, before).await;
}

#[tokio::test]
async fn a_user_with_many_groups_is_remembered_and_his_extras_are_asked_about() {
    let (cluster, before) = start().await;
    let rule = Rule {
        role: "reader".into(),
        to_groups: vec!["team-7".into()],
        verbs: vec!["get".into()],
        groups: vec!["custom.metrics.k8s.io".into()],
        resources: vec!["pods/gpu_utilization".into()],
        ..Rule::default()
    };
    cluster.server.extend_access(Access { rules: vec![rule], ..Access::default() });
    let mut user =
        headers(&[("x-remote-user", "u"), ("X-Remote-Extra-Acme.com%2fTeam", "Blue"), ("x-remote-uid", "7")]);
    for group in 0..300 {
        // Together longer than what limits remembering, which counts the question, not the asker.
        user.append(
            "x-remote-group",
            format!("team-{group}{}", "x".repeat(if group == 7 { 0 } else { 50 })).parse().unwrap(),
        );
    }
    let client = kept(&cluster, &cluster.server.certificates().front_proxy_client);
    let before_asked = cluster.server.access_reviews();
    for _ in 0..3 {
        let answer = client.send(Method::GET, METRIC, user.clone(), LIMIT).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(cluster.server.access_reviews() - before_asked, 1);
    let asked = cluster.server.reviews().into_iter().rev().find_map(|review| match review {
        Review::Access { user, .. } if user.username == "u" => Some(user),
        _ => None,
    });
    let asked = asked.unwrap();
    assert_eq!(asked.extra["acme.com/team"], ["Blue"]);
    assert_eq!((asked.groups.len(), asked.groups.last().unwrap().as_str()), (301, "system:authenticated"));
    assert_eq!(asked.uid, "", "no header for it is configured");
    unharmed(&cluster, before).await;
}
