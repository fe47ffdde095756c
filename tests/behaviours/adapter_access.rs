//! Who is believed, and who may read: closed unless proven otherwise.

use podgauge_sim::apiserver::{ADMIN_TOKEN, Failing, HPA_TOKEN, NOBODY_TOKEN, User};
use podgauge_sim::certs::Authority;
use podgauge_tests::cluster::{Cluster, headers};

const NODE: &str =
    "gpus: [{load: {constant: 64}}]\npods: [{name: a, labels: {app: a}, containers: [{devices: [\"0\"]}]}]";
const METRIC: &str = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/a/gpu_utilization";

/// Headers by which a client calls itself the mightiest user there is.
fn forged() -> http::HeaderMap {
    headers(&[("x-remote-user", "system:admin"), ("x-remote-group", "system:masters")])
}

#[tokio::test]
async fn forged_headers_are_believed_of_nobody_but_the_front_proxy() {
    let cluster = Cluster::start(NODE).await;
    let certificates = cluster.server.certificates();
    let proxy = &certificates.front_proxy_client;
    // The real front proxy is believed, so that the refusals below mean something.
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    assert_eq!(cluster.adapter.get(Some(proxy), METRIC, forged()).await.unwrap().status, 200);

    let plain = cluster.adapter.get(None, METRIC, forged()).await.unwrap();
    assert_eq!(plain.status, 403, "{}", plain.text());
    assert!(plain.text().contains("system:anonymous"), "{}", plain.text());
    let strangers = [
        ("another CA", Authority::new("front-proxy-ca").unwrap().client("front-proxy-client", None).unwrap()),
        ("another name", certificates.front_proxy.client("somebody", None).unwrap()),
        ("the clients' CA", certificates.client.client("front-proxy-client", None).unwrap()),
        (
            "a server's certificate",
            certificates.front_proxy.server("front-proxy-client", &["localhost"]).unwrap(),
        ),
    ];
    for (whose, certificate) in strangers {
        match cluster.adapter.get(Some(&certificate), METRIC, forged()).await {
            Ok(answer) => assert!([401, 403].contains(&answer.status.as_u16()), "{whose}: {}", answer.text()),
            // Refused in the handshake: as good.
            Err(error) => assert!(error.to_string().contains("no answer"), "{whose}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_user_whom_the_api_server_denies_gets_its_403() {
    let cluster = Cluster::start(NODE).await;
    let proxy = cluster.server.certificates().front_proxy_client.clone();
    let as_user = headers(&[("x-remote-user", "mallory"), ("x-remote-group", "guests")]);
    let answer = cluster.adapter.get(Some(&proxy), METRIC, as_user).await.unwrap();
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.json().unwrap()["message"],
        "pods.custom.metrics.k8s.io \"a\" is forbidden: User \"mallory\" cannot get resource \"pods/gpu_utilization\" \
         in API group \"custom.metrics.k8s.io\" in the namespace \"demo\""
    );
    let reviewed = format!("{:?}", cluster.server.reviews());
    assert!(reviewed.contains("mallory") && reviewed.contains("system:authenticated"), "{reviewed}");
    assert!(User::of("mallory").groups.is_empty());
}

#[tokio::test]
async fn tokens_are_reviewed() {
    let cluster = Cluster::start(NODE).await;
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    let with = async |token: &str| {
        let bearer = headers(&[("authorization", &format!("Bearer {token}"))]);
        cluster.adapter.get(None, METRIC, bearer).await.unwrap().status.as_u16()
    };
    assert_eq!(with(HPA_TOKEN).await, 200);
    assert_eq!(with(ADMIN_TOKEN).await, 200);
    assert_eq!(with(NOBODY_TOKEN).await, 403);
    assert_eq!(with("never-issued").await, 401);
    let before = cluster.server.token_reviews();
    assert_eq!(with(HPA_TOKEN).await, 200);
    assert_eq!(cluster.server.token_reviews(), before, "an answer is kept for 10 s");
    assert!(!cluster.adapter.program.log().contains("sim-"), "no token in the log");
}

#[tokio::test]
async fn an_api_server_that_cannot_be_asked_closes_the_door() {
    let cluster = Cluster::start(NODE).await;
    cluster.server.set_failing(Failing { token_reviews: true, access_reviews: true });
    let proxy = cluster.server.certificates().front_proxy_client.clone();
    let as_user = headers(&[("x-remote-user", "alice"), ("x-remote-group", "guests")]);
    let answer = cluster.adapter.get(Some(&proxy), METRIC, as_user.clone()).await.unwrap();
    assert_eq!(answer.status.as_u16() / 100, 5, "{}", answer.text());
    let bearer = headers(&[("authorization", "Bearer whoever")]);
    let answer = cluster.adapter.get(None, METRIC, bearer).await.unwrap();
    assert!(answer.status == 401 || answer.status.is_server_error(), "{}", answer.text());
    cluster.server.set_failing(Failing::default());
    assert_eq!(cluster.adapter.get(Some(&proxy), METRIC, as_user).await.unwrap().status, 403);
    // Probes are open: the kubelet has no credentials.
    for probe in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(cluster.adapter.get(None, probe, http::HeaderMap::new()).await.unwrap().status, 200);
    }
    let metrics = cluster.adapter.get(None, "/metrics", http::HeaderMap::new()).await.unwrap();
    assert_eq!(metrics.status, 403, "{}", metrics.text());
}

#[tokio::test]
async fn a_flood_of_nobodies_is_slowed_and_the_hpa_is_not() {
    let cluster = Cluster::start(NODE).await;
    cluster.value(&cluster.aggregator(), "a", "gpu_utilization").await;
    let mut codes = std::collections::BTreeSet::new();
    // Each asks for something else, so that no answer is remembered; more than come back in the time.
    for round in 0..100 {
        let paths: Vec<String> = (0..20).map(|nobody| format!("/nothing/{round}-{nobody}")).collect();
        let asked = paths.iter().map(|path| cluster.adapter.get(None, path, http::HeaderMap::new()));
        for answer in futures::future::join_all(asked).await {
            let answer = answer.unwrap();
            codes.insert(answer.status.as_u16());
            if answer.status == 429 {
                assert_eq!(answer.json().unwrap()["reason"], "TooManyRequests");
            }
        }
        if codes.contains(&429) {
            break;
        }
    }
    assert!(codes.contains(&403) && codes.contains(&429), "{codes:?}");
    let proxy = cluster.server.certificates().front_proxy_client.clone();
    let mut user = headers(&[("x-remote-group", "guests")]);
    user.insert("x-remote-user", http::HeaderValue::from_bytes("Jürgen".as_bytes()).unwrap());
    let answer = cluster.adapter.get(Some(&proxy), METRIC, user).await.unwrap();
    assert_eq!(answer.status, 403, "asked about, in spite of the flood: {}", answer.text());
    assert!(answer.text().contains("Jürgen"), "{}", answer.text());
}

#[tokio::test]
async fn what_is_no_metric_is_authorized_as_a_path() {
    let cluster = Cluster::start(NODE).await;
    let proxy = cluster.server.certificates().front_proxy_client.clone();
    let as_user = headers(&[("x-remote-user", "mallory"), ("x-remote-group", "guests")]);
    let path = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/x";
    let answer = cluster.adapter.get(Some(&proxy), &format!("{path}?pretty=true"), as_user).await.unwrap();
    assert_eq!(answer.status, 404, "{}", answer.text());
    let reviewed = format!("{:?}", cluster.server.reviews());
    assert!(reviewed.contains(path), "{reviewed}");
    assert!(answer.text().contains("\n  \"kind\": \"Status\""), "{}", answer.text());
    let admin = headers(&[("x-remote-user", "system:admin"), ("x-remote-group", "system:masters")]);
    assert_eq!(cluster.adapter.get(Some(&proxy), path, admin).await.unwrap().status, 404);
}
