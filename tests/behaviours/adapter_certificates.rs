//! Certificates that look after themselves: nobody gives the adapter one, nobody renews it, and
//! the aggregation layer verifies it all the while.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use http::Method;
use podgauge_sim::aggregator::{AdapterClient, Aggregation, Protocol};
use podgauge_sim::apiserver::{ADAPTER, ADMIN_TOKEN, Access, Asked, Credentials, ServiceName};
use podgauge_sim::certs::Authority;
use podgauge_tests::checkout;
use podgauge_tests::cluster::{SERVICE, headers};
use podgauge_tests::managed::{API_SERVICES, Managed, SECRET, Site, available, unavailable};
use podgauge_tests::program::run;
use podgauge_tests::wait::{LIMIT, until, until_within};
use serde_json::json;

/// Lifetimes short enough to see rotations, long enough for a busy machine to renew in time.
const SHORT: [&str; 2] = ["--certificate-lifetime=15s", "--ca-lifetime=30s"];

/// The certificates of a PEM text.
fn certificates(pem: &str) -> BTreeSet<&str> {
    pem.split_inclusive("-----END CERTIFICATE-----\n").filter(|part| !part.trim().is_empty()).collect()
}

/// No key and no token is in a log, and nothing panicked.
#[track_caller]
fn discreet(adapter: &Managed) {
    let log = adapter.program.log();
    for word in ["PRIVATE KEY", "panicked", "Bearer", "sim-podgauge"] {
        assert!(!log.contains(word), "{word}: {log}");
    }
}

#[tokio::test]
async fn an_adapter_without_certificate_files_makes_itself_verifiable() {
    let site = Site::start().await;
    let adapter = site.adapter(&[]).await;
    let aggregator = site.aggregate(adapter.address);
    available(&aggregator).await;
    adapter.ready().await;
    let secret = site.secret().unwrap();
    assert_eq!(secret.keys().collect::<Vec<_>>(), ["ca.crt", "ca.key", "tls.crt", "tls.key"]);
    for name in API_SERVICES {
        assert_eq!(site.ca_bundle(name), secret["ca.crt"], "{name}");
        let object = site.server.object("apiregistration.k8s.io", "apiservices", "", name).unwrap();
        let managers = &object["metadata"]["managedFields"];
        assert_eq!(
            managers,
            &json!([{
                "manager": "podgauge-adapter", "operation": "Apply", "apiVersion": "apiregistration.k8s.io/v1",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:caBundle": {}}},
            }])
        );
        assert!(!object.to_string().contains("insecureSkipTLSVerify"));
    }
    // Nobody verifies a certificate of somebody else under this bundle, nor this one under another name.
    let under = |name: &str, ca: &str| {
        AdapterClient::new(adapter.address, name, ca, None, Protocol::Negotiated).unwrap()
    };
    let admin = headers(&[("authorization", &format!("Bearer {ADMIN_TOKEN}"))]);
    let ask = async |name: &str, ca: &str, path: &str| {
        under(name, ca).send(Method::GET, path, admin.clone(), LIMIT).await
    };
    assert!(ask("other.podgauge.svc", &secret["ca.crt"], "/livez").await.is_err());
    assert!(ask(SERVICE, Authority::new("x").unwrap().pem(), "/livez").await.is_err());
    assert!(ask(&format!("{SERVICE}.cluster.local"), &secret["ca.crt"], "/livez").await.is_ok());
    let metrics = ask(SERVICE, &secret["ca.crt"], "/metrics").await.unwrap().text();
    for line in [
        "podgauge_adapter_certificate_expiry_timestamp_seconds{certificate=\"serving\"} ",
        "podgauge_adapter_certificate_expiry_timestamp_seconds{certificate=\"ca\"} ",
        "podgauge_adapter_ca_bundle_applies_total{api_service=\"v1beta2.custom.metrics.k8s.io\",result=\"success\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    discreet(&adapter);
}

#[tokio::test]
async fn whoever_empties_or_changes_the_ca_bundle_is_answered() {
    let site = Site::start().await;
    let adapter = site.adapter(&[]).await;
    let aggregator = site.aggregate(adapter.address);
    available(&aggregator).await;
    let ours = site.ca_bundle(API_SERVICES[1]);
    use base64::Engine as _;
    let other = base64::engine::general_purpose::STANDARD.encode(Authority::new("x").unwrap().pem());
    for bundle in [json!(null), json!(""), json!(other)] {
        for name in API_SERVICES {
            site.patch_api_service(name, &json!({"spec": {"caBundle": bundle, "groupPriorityMinimum": 200}}))
                .await;
        }
        until("the bundle to be back", || async {
            let same = API_SERVICES.iter().all(|name| site.ca_bundle(name) == ours);
            if same { Ok(()) } else { Err("not yet") }
        })
        .await;
        available(&aggregator).await;
        // What others own stays theirs.
        let object =
            site.server.object("apiregistration.k8s.io", "apiservices", "", API_SERVICES[0]).unwrap();
        assert_eq!(object["spec"]["groupPriorityMinimum"], 200);
    }
    // Deleted and made anew, as by a tool that replaces objects.
    let target = format!("/apis/apiregistration.k8s.io/v1/apiservices/{}", API_SERVICES[0]);
    assert_eq!(site.administrate(Method::DELETE, &target, "application/json", &json!({})).await.status, 200);
    let aggregator = site.aggregate(adapter.address);
    available(&aggregator).await;
    discreet(&adapter);
}

#[tokio::test]
async fn replicas_that_start_at_once_share_one_authority() {
    let site = Site::start().await;
    let replicas = futures::future::join_all([(); 3].map(|()| site.adapter(&[]))).await;
    let aggregator = site.aggregate(replicas[0].address);
    available(&aggregator).await;
    for replica in &replicas {
        replica.ready().await;
        aggregator.dial(replica.address);
        available(&aggregator).await;
        discreet(replica);
    }
    assert_eq!(certificates(&site.secret().unwrap()["ca.crt"]).len(), 1);
    // One wrote, the others read.
    let rewritten =
        || replicas.iter().map(|replica| replica.program.count_logged("written again")).sum::<usize>();
    until("the one that wrote", || async { if rewritten() > 0 { Ok(()) } else { Err("none") } }).await;
    assert_eq!(rewritten(), 1);
}

#[tokio::test]
async fn the_api_services_stay_available_while_everything_is_rotated() {
    let site = Site::start().await;
    let replicas = [site.adapter(&SHORT).await, site.adapter(&SHORT).await];
    let aggregator = site.aggregate(replicas[0].address);
    available(&aggregator).await;
    for replica in &replicas {
        replica.ready().await;
    }
    let first = site.secret().unwrap();
    let mut leaves = BTreeSet::new();
    let mut together = false;
    until_within(2 * LIMIT, "another authority to sign", || {
        let secret = site.secret().unwrap();
        leaves.insert(secret["tls.crt"].clone());
        together |= certificates(&secret["ca.crt"]).len() == 2;
        let (aggregator, replicas) = (&aggregator, &replicas);
        let taken = secret["ca.key"] != first["ca.key"];
        async move {
            for replica in replicas {
                aggregator.dial(replica.address);
                let failures = unavailable(aggregator).await;
                assert!(failures.is_empty(), "{failures:?}");
            }
            if taken { Ok(()) } else { Err("not yet") }
        }
    })
    .await;
    assert!(leaves.len() >= 3, "renewed under the old authority first: {}", leaves.len());
    assert!(together, "old and new authority stood in the bundle together");
    // The old one's key is gone, its certificate goes when it expires.
    let secret = site.secret().unwrap();
    assert!(!secret.values().any(|text| text.contains(first["ca.key"].trim())));
    until("the expired authority to leave the bundles", || async {
        let failures = unavailable(&aggregator).await;
        assert!(failures.is_empty(), "{failures:?}");
        let old = API_SERVICES.iter().any(|name| site.ca_bundle(name).contains(first["ca.crt"].trim()));
        if old { Err("still there") } else { Ok(()) }
    })
    .await;
    replicas.iter().for_each(discreet);
}

#[tokio::test]
async fn the_api_services_stay_available_through_a_rolling_update() {
    let site = Site::start().await;
    let mut old = site.adapter(&["--shutdown-delay-duration=0s"]).await;
    let aggregator = site.aggregate(old.address);
    available(&aggregator).await;
    let bundle = site.ca_bundle(API_SERVICES[0]);
    for _ in 0..2 {
        let new = site.adapter(&["--shutdown-delay-duration=0s"]).await;
        new.ready().await;
        // Both are endpoints for a while, then the old one ends.
        for address in [new.address, old.address, new.address] {
            aggregator.dial(address);
            assert_eq!(unavailable(&aggregator).await, Vec::<String>::new());
        }
        old.program.signal(15);
        assert!(old.program.ended().await.success());
        assert_eq!(unavailable(&aggregator).await, Vec::<String>::new());
        old = new;
    }
    assert_eq!(site.ca_bundle(API_SERVICES[0]), bundle, "a new process is no new authority");
}

#[tokio::test]
async fn a_secret_that_is_deleted_or_broken_is_written_again_with_what_is_served() {
    let site = Site::start().await;
    let adapter = site.adapter(&[]).await;
    let aggregator = site.aggregate(adapter.address);
    available(&aggregator).await;
    let first = site.secret().unwrap();
    let target = format!("/api/v1/namespaces/podgauge/secrets/{SECRET}");
    let again = async |what: &str| {
        until(what, || async {
            let same = site.secret().is_some_and(|secret| secret == first);
            if same { Ok(()) } else { Err("not yet") }
        })
        .await;
        assert_eq!(unavailable(&aggregator).await, Vec::<String>::new());
    };
    assert_eq!(site.administrate(Method::DELETE, &target, "application/json", &json!({})).await.status, 200);
    again("the deleted Secret").await;
    for data in [json!(null), json!({"ca.key": "eA=="}), json!({"tls.crt": ""})] {
        let patch = json!({"data": data});
        let answer = site.administrate(Method::PATCH, &target, "application/merge-patch+json", &patch).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        again("the broken Secret").await;
    }
    discreet(&adapter);
}

#[tokio::test]
async fn a_secret_of_somebody_else_is_left_alone_and_said_to_be_in_the_way() {
    let site = Site::start().await;
    let theirs = json!({
        "metadata": {"name": SECRET}, "type": "kubernetes.io/tls", "data": {"tls.crt": "eA==", "tls.key": "eQ=="},
    });
    let secrets = "/api/v1/namespaces/podgauge/secrets";
    assert_eq!(site.administrate(Method::POST, secrets, "application/json", &theirs).await.status, 201);
    let mut adapter = site.adapter(&[]).await;
    adapter.program.logged("somebody else's").await;
    let answer = adapter.get_unverified("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("--cert-secret"), "{answer}");
    assert_eq!(site.secret().unwrap()["tls.key"], "y");
    let target = format!("{secrets}/{SECRET}");
    assert_eq!(site.administrate(Method::DELETE, &target, "application/json", &json!({})).await.status, 200);
    adapter.ready().await;
}

#[tokio::test]
async fn adapters_of_two_services_do_not_fight_over_one_secret() {
    let site = Site::start().await;
    let mut first = site.adapter(&[]).await;
    first.ready().await;
    let mut second =
        site.adapter(&["--service-name=other", "--cert-secret=podgauge/podgauge-adapter-certificates"]).await;
    // Whoever wrote last sees that it is not his alone, and leaves it.
    second.ready().await;
    first.program.logged("an adapter for another Service writes it").await;
    let (wrote, other) = (&mut first, &mut second);
    let renewals =
        wrote.program.count_logged("certificate renewed") + other.program.count_logged("certificate renewed");
    assert!(renewals <= 2, "{renewals}");
}

#[tokio::test]
async fn without_an_api_server_it_lives_and_is_not_ready_until_there_is_one() {
    let site = Site::start().await;
    site.server.stop().await;
    let adapter = site.adapter(&[]).await;
    assert!(adapter.get_unverified("/livez").await.starts_with("HTTP/1.1 200"));
    let answer = adapter.get_unverified("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("certificates: "), "{answer}");
    site.server.restart().await.unwrap();
    adapter.ready().await;
    available(&site.aggregate(adapter.address)).await;
}

#[tokio::test]
async fn an_api_service_of_another_service_is_left_alone() {
    let site = Site::start().await;
    let mut adapter = site.adapter(&[]).await;
    let other = ServiceName { namespace: "monitoring".into(), name: "prometheus-adapter".into() };
    let settings = Aggregation { service: other, ..Aggregation::of_adapter(adapter.address, String::new()) };
    let _aggregator = site.server.aggregate(settings).unwrap();
    for name in API_SERVICES {
        adapter.program.logged(&format!("APIService {name}: it points to another Service")).await;
        assert_eq!(site.ca_bundle(name), "");
    }
    // Pointed here, it is ours to keep.
    for name in API_SERVICES {
        let service = json!({"namespace": "podgauge", "name": "podgauge-adapter"});
        site.patch_api_service(name, &json!({"spec": {"service": service}})).await;
    }
    until("the bundles", || async {
        let set = API_SERVICES.iter().all(|name| !site.ca_bundle(name).is_empty());
        if set { Ok(()) } else { Err("not yet") }
    })
    .await;
}

/// Runs a command that the log names, under a kubeconfig. The stand-in API server goes on meanwhile.
async fn shell(kubeconfig: &Path, line: &str) {
    let tools = checkout("target/tools/bin");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", line]).env("KUBECONFIG", kubeconfig).env("PATH", path);
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// As prometheus-adapter's chart leaves it behind.
#[tokio::test]
async fn an_api_service_without_verification_is_left_alone_until_the_named_command_was_run() {
    let site = Site::start().await;
    let aggregator = site.aggregate("127.0.0.1:9".parse().unwrap());
    for name in API_SERVICES {
        site.patch_api_service(name, &json!({"spec": {"insecureSkipTLSVerify": true}})).await;
    }
    let patches = || {
        let of = |asked: &Asked| asked.user == ADAPTER && asked.wanted.verb == "patch";
        site.server.requests().into_iter().filter(of).count()
    };
    let mut adapter = site.adapter(&[]).await;
    adapter.ready().await;
    aggregator.dial(adapter.address);
    let kubeconfig = site.folder.path().join("admin.kubeconfig");
    site.server.write_kubeconfig(&kubeconfig, &Credentials::Token(ADMIN_TOKEN.to_owned())).unwrap();
    for (taken, name) in API_SERVICES.into_iter().enumerate() {
        let line =
            adapter.program.logged(&format!("APIService {name}: it has insecureSkipTLSVerify: true")).await;
        // Any other change of it changes nothing.
        site.patch_api_service(name, &json!({"spec": {"groupPriorityMinimum": 200}})).await;
        assert_eq!(patches(), taken);
        shell(&kubeconfig, line.split_once("run: ").unwrap().1).await;
        until("the bundle", || async { if site.ca_bundle(name).is_empty() { Err("empty") } else { Ok(()) } })
            .await;
    }
    available(&aggregator).await;
    assert_eq!(patches(), 2, "one each");
    adapter.program.logs("insecureSkipTLSVerify: true", 2).await;
    ["caBundle cannot be set", "as often"].iter().for_each(|said| adapter.program.has_not_logged(said));
    discreet(&adapter);
}

#[tokio::test]
async fn ready_is_logged_once_the_certificate_is_there() {
    let site = Site::start().await;
    let mut access = Access::built_in();
    for rule in &mut access.rules {
        if rule.resources.iter().any(|resource| resource == "secrets") {
            rule.verbs.retain(|verb| verb != "create");
        }
    }
    site.server.set_access(access);
    let mut adapter = site.adapter(&[]).await;
    adapter.program.logged("cannot create resource \"secrets\"").await;
    until("the certificate alone to be missing", || async {
        let answer = adapter.get_unverified("/readyz").await;
        let body = answer.split_once("\r\n\r\n").unwrap().1.trim().to_owned();
        if body.starts_with("certificates: ") && body.lines().count() == 1 { Ok(()) } else { Err(answer) }
    })
    .await;
    site.server.set_access(Access::built_in());
    adapter.ready().await;
    let certificate = adapter.program.logged("serving with the certificate in Secret").await;
    let ready = adapter.program.logged("ready: 0 pods, 0 exporters").await;
    let log = adapter.program.log();
    assert!(log.find(&certificate).unwrap() < log.find(&ready).unwrap(), "{log}");
    assert_eq!(adapter.program.count_logged("ready: 0 pods"), 1, "{log}");
}

#[tokio::test]
async fn a_namespace_that_is_deleted_without_its_api_services_is_warned_of() {
    let site = Site::start().await;
    let mut adapter = site.adapter(&[]).await;
    available(&site.aggregate(adapter.address)).await;
    site.server.terminate_namespace("podgauge");
    let line = adapter.program.logged("block the deletion of every namespace").await;
    assert!(line.ends_with(&format!("run: kubectl delete apiservice {}", API_SERVICES.join(" "))), "{line}");
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_once_and_its_return_noticed() {
    let site = Site::start().await;
    let without = |resource: &str| {
        let mut access = Access::built_in();
        access.rules.retain(|rule| !rule.resources.iter().any(|known| known == resource));
        access
    };
    site.server.set_access(without("secrets"));
    let mut adapter = site.adapter(&[]).await;
    adapter.program.logged("cannot list resource \"secrets\"").await;
    until("/readyz to name it", || async {
        let answer = adapter.get_unverified("/readyz").await;
        if answer.contains("cannot list resource \"secrets\"") { Ok(()) } else { Err(answer) }
    })
    .await;
    let mut reading_alone = Access::built_in();
    for rule in &mut reading_alone.rules {
        if rule.resources.iter().any(|known| known == "apiservices") {
            rule.verbs.retain(|verb| verb != "patch");
        }
    }
    site.server.set_access(reading_alone);
    let aggregator = site.aggregate(adapter.address);
    adapter.ready().await;
    adapter.program.logged("cannot patch resource \"apiservices\"").await;
    site.server.set_access(Access::built_in());
    available(&aggregator).await;
    assert_eq!(adapter.program.count_logged("cannot list resource \"secrets\""), 1);
}

#[tokio::test]
async fn certificate_files_touch_neither_secret_nor_api_service_unless_asked() {
    let site = Site::start().await;
    let authority = Authority::new("files").unwrap();
    let path = |name: &str| site.folder.path().join(name);
    authority.server("x", &[SERVICE]).unwrap().write(&path("a.crt"), &path("a.key")).unwrap();
    std::fs::write(path("ca.crt"), authority.pem()).unwrap();
    let arguments = [
        format!("--tls-cert-file={}", path("a.crt").display()),
        format!("--tls-private-key-file={}", path("a.key").display()),
        format!("--ca-bundle-file={}", path("ca.crt").display()),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let silent = site.adapter(&arguments[..2]).await;
    let aggregator = site.aggregate(silent.address);
    silent.ready().await;
    assert!(site.secret().is_none());
    assert!(API_SERVICES.iter().all(|name| site.ca_bundle(name).is_empty()));
    let asked = site.adapter(&arguments).await;
    aggregator.dial(asked.address);
    available(&aggregator).await;
    assert_eq!(site.ca_bundle(API_SERVICES[0]), authority.pem());
    assert!(site.secret().is_none());
}

#[tokio::test]
async fn outside_a_cluster_the_authority_of_this_start_is_written_to_a_file() {
    let site = Site::start().await;
    let path = site.folder.path().join("ca.crt");
    let adapter = site.adapter(&[&format!("--write-ca-file={}", path.display())]).await;
    adapter.ready().await;
    let ca = std::fs::read_to_string(&path).unwrap();
    assert!(!ca.contains("PRIVATE KEY"));
    let client = AdapterClient::new(adapter.address, SERVICE, &ca, None, Protocol::Negotiated).unwrap();
    assert_eq!(client.send(Method::GET, "/livez", http::HeaderMap::new(), LIMIT).await.unwrap().status, 200);
    let _aggregator = site.aggregate(adapter.address);
    assert!(site.secret().is_none() && site.ca_bundle(API_SERVICES[0]).is_empty());
}
