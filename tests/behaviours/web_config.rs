//! The web configuration file of Prometheus' exporters: TLS, client certificates, passwords, headers.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use http::{HeaderMap, header};
use podgauge_sim::certs::{Authority, Leaf, roots};
use podgauge_tests::node::Node;
use podgauge_tests::program::{Exporter, run};
use podgauge_tests::wait::until;
use podgauge_tests::{built, client};
use rustls::ClientConfig;

const NODE: &str = "gpus: [{load: {constant: 40}}]";
/// bcrypt of "open:sesame".
const HASH: &str = "$2b$05$K7ggiuHLPPloFN.VMda9peFTa6PxH3LNPKAmdlX02tBA6Yi/vCR3i";

fn headers(user: &str, password: &str) -> HeaderMap {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    HeaderMap::from_iter([(header::AUTHORIZATION, format!("Basic {encoded}").parse().unwrap())])
}

fn trusting(authority: &Authority, certificate: Option<&Leaf>) -> ClientConfig {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(authority.pem()).unwrap());
    match certificate {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let (chain, key) = leaf.for_rustls().unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    }
}

fn serve_with(authority: &Authority, folder: &Path) {
    let leaf = authority.server("exporter", &["localhost"]).unwrap();
    leaf.write(&folder.join("tls.crt"), &folder.join("tls.key")).unwrap();
}

async fn exporter_with(node: &Node, config: &str) -> Exporter {
    let file = node.path().join("web.yml");
    std::fs::write(&file, config).unwrap();
    node.exporter_with(|command| {
        command.arg("--web-config-file").arg(&file);
    })
    .await
}

/// The status over TLS, or why there is none.
async fn status(exporter: &Exporter, config: ClientConfig, headers: &HeaderMap) -> Result<u16, String> {
    let answer = client::get_tls(&exporter.address, config, "/metrics", headers).await;
    answer.map(|answer| answer.status().as_u16()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn b7_tls_and_passwords_answer_400_401_and_200() {
    let node = Node::new(NODE);
    let authority = Authority::new("web").unwrap();
    serve_with(&authority, node.path());
    let config = format!(
        "tls_server_config: {{cert_file: tls.crt, key_file: tls.key, min_version: TLS12}}\n\
         http_server_config: {{headers: {{X-Frame-Options: deny}}}}\n\
         basic_auth_users: {{ann: {HASH}}}\n"
    );
    let exporter = exporter_with(&node, &config).await;
    let plain = client::get(&exporter.address, "/metrics", &HeaderMap::new()).await.unwrap();
    assert_eq!(plain.status(), 400);
    assert_eq!(plain.body().as_ref(), b"Client sent an HTTP request to an HTTPS server.\n");

    let tls = || trusting(&authority, None);
    for path in ["/metrics", "/health", "/ready", "/nothing"] {
        let refused = client::get_tls(&exporter.address, tls(), path, &HeaderMap::new()).await.unwrap();
        assert_eq!(refused.status(), 401, "{path}");
        assert_eq!(refused.body().as_ref(), b"Unauthorized\n");
        assert_eq!(refused.headers()[header::WWW_AUTHENTICATE], "Basic");
        assert_eq!(refused.headers()["x-frame-options"], "deny");
    }
    assert_eq!(status(&exporter, tls(), &headers("ann", "wrong")).await, Ok(401));
    assert_eq!(status(&exporter, tls(), &headers("bob", "open:sesame")).await, Ok(401));
    assert_eq!(status(&exporter, tls(), &headers("ann", "open:sesame")).await, Ok(200));
    // A client that does not know the certificate's authority goes away.
    assert!(
        status(&exporter, trusting(&Authority::new("other").unwrap(), None), &HeaderMap::new())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn b7_client_certificates_as_the_type_says() {
    let authority = Authority::new("web").unwrap();
    let other = Authority::new("other").unwrap();
    let mine = authority.client("prometheus", None).unwrap();
    let strange = other.client("prometheus", None).unwrap();
    let named = authority.server("prometheus", &["prometheus.monitoring.svc"]).unwrap();
    // Whether no certificate, a strange one and ours get an answer.
    for (kind, more, expected) in [
        ("NoClientCert", "", [true, true, true]),
        ("RequestClientCert", "", [true, true, true]),
        ("RequireAnyClientCert", "", [false, true, true]),
        ("VerifyClientCertIfGiven", ", client_ca_file: ca.crt", [true, false, true]),
        ("RequireAndVerifyClientCert", ", client_ca_file: ca.crt", [false, false, true]),
        (
            "RequireAndVerifyClientCert",
            ", client_ca_file: ca.crt, client_allowed_sans: [prometheus.monitoring.svc]",
            [false, false, false],
        ),
    ] {
        let node = Node::new(NODE);
        serve_with(&authority, node.path());
        std::fs::write(node.path().join("ca.crt"), authority.pem()).unwrap();
        let config = format!(
            "tls_server_config: {{cert_file: tls.crt, key_file: tls.key, client_auth_type: {kind}{more}}}\n"
        );
        let exporter = exporter_with(&node, &config).await;
        for (certificate, expected) in [None, Some(&strange), Some(&mine)].into_iter().zip(expected) {
            let answer = status(&exporter, trusting(&authority, certificate), &HeaderMap::new()).await;
            assert_eq!(answer.is_ok(), expected, "{kind}{more} {certificate:?}: {answer:?}");
        }
        if more.contains("sans") {
            // A certificate for servers is no client's: only its name is right.
            let answer = status(&exporter, trusting(&authority, Some(&named)), &HeaderMap::new()).await;
            assert!(answer.is_err(), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn b7_changed_files_take_effect_and_bad_ones_leave_the_last_good() {
    let node = Node::new(NODE);
    let (first, second) = (Authority::new("first").unwrap(), Authority::new("second").unwrap());
    serve_with(&first, node.path());
    const TLS: &str = "tls_server_config: {cert_file: tls.crt, key_file: tls.key}\n";
    let mut exporter = exporter_with(&node, TLS).await;
    assert_eq!(status(&exporter, trusting(&first, None), &HeaderMap::new()).await, Ok(200));
    let comes = async |authority: &Authority, wanted: u16| {
        until("the change", || async {
            match status(&exporter, trusting(authority, None), &HeaderMap::new()).await {
                Ok(status) if status == wanted => Ok(()),
                other => Err(other),
            }
        })
        .await;
    };
    serve_with(&second, node.path());
    comes(&second, 200).await;
    std::fs::write(node.path().join("web.yml"), format!("{TLS}basic_auth_users: {{ann: {HASH}}}\n")).unwrap();
    comes(&second, 401).await;
    std::fs::write(node.path().join("web.yml"), format!("{TLS}basic_auth_users: {{ann: {HASH}}}\nmore: 1\n"))
        .unwrap();
    let line = exporter.program.logged("keeping the last good web configuration").await;
    assert!(line.contains("web.yml, line 3") && line.contains("more"), "{line}");
    assert_eq!(status(&exporter, trusting(&second, None), &HeaderMap::new()).await, Ok(401));
}

#[test]
fn b7_what_is_wrong_with_the_file_ends_the_start_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("web.yml");
    let path = file.to_str().unwrap();
    const TLS: &str = "tls_server_config:\n  cert_file: tls.crt\n  key_file: tls.key\n";
    serve_with(&Authority::new("web").unwrap(), folder.path());
    for (text, words) in [
        ("tls_server_config:\n  certs: a\n".to_owned(), ["web.yml, line 2", "certs"]),
        (format!("{TLS}  cipher_suites: [TLS_INVENTED]\n"), ["cipher_suites", "TLS_INVENTED"]),
        (format!("{TLS}  curve_preferences: [CurveP7]\n"), ["curve_preferences", "CurveP7"]),
        (
            "tls_server_config: {cert_file: none.crt, key_file: tls.key}\n".to_owned(),
            ["none.crt", "No such file"],
        ),
        ("basic_auth_users: {ann: open}\n".to_owned(), ["ann", "bcrypt"]),
    ] {
        std::fs::write(&file, &text).unwrap();
        let output = run(Command::new(built("podgauge-exporter"))
            .args(["-a", "127.0.0.1:0", "--web-config-file", path])
            .env_remove("RUST_LOG"));
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}: {log}");
        for word in words {
            assert!(log.contains(word), "{text}: no {word:?} in {log}");
        }
    }
}

#[tokio::test]
async fn everything_that_the_toolkit_documents_is_served_and_what_is_missing_is_said_once() {
    let node = Node::new(NODE);
    let authority = Authority::new("web").unwrap();
    serve_with(&authority, node.path());
    let config = format!(
        "tls_server_config:\n  cert_file: tls.crt\n  key_file: tls.key\n  min_version: TLS12\n  max_version: TLS13\n  \
         prefer_server_cipher_suites: true\n  curve_preferences: [CurveP521, CurveP384, CurveP256, X25519]\n  \
         cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n\
         http_server_config:\n  http2: true\n  headers: {{Strict-Transport-Security: max-age=1}}\n\
         basic_auth_users:\n  ann: {HASH}\n\
         rate_limit:\n  interval: \"1s\"\n  burst: 20\n"
    );
    let exporter = exporter_with(&node, &config).await;
    let tls = || trusting(&authority, None);
    assert_eq!(status(&exporter, tls(), &headers("ann", "open:sesame")).await, Ok(200));
    for (text, times) in [
        ("curve_preferences: CurveP521 is not available here", 1),
        ("cipher_suites: TLS_RSA_WITH_AES_128_CBC_SHA is not available here", 1),
        ("read again", 0),
    ] {
        assert_eq!(exporter.program.count_logged(text), times, "{text}: {}", exporter.program.log());
    }
    // A change elsewhere in the file is no reason to say it again.
    std::fs::write(node.path().join("web.yml"), config.replace("max-age=1", "max-age=2")).unwrap();
    exporter.program.logs("read again, in force from now on", 1).await;
    exporter.program.logs("curve_preferences: CurveP521", 1).await;
}

#[tokio::test]
async fn certificates_and_the_key_may_be_in_the_file_itself() {
    let node = Node::new(NODE);
    let authority = Authority::new("web").unwrap();
    serve_with(&authority, node.path());
    let text = |file: &str| {
        serde_json::to_string(&std::fs::read_to_string(node.path().join(file)).unwrap()).unwrap()
    };
    let (cert, key) = (text("tls.crt"), text("tls.key"));
    let client_ca = serde_json::to_string(authority.pem()).unwrap();
    let config = format!(
        "tls_server_config:\n  cert: {cert}\n  key: {key}\n  client_ca: {client_ca}\n  \
         client_auth_type: RequireAndVerifyClientCert\n"
    );
    std::fs::remove_file(node.path().join("tls.key")).unwrap();
    let exporter = exporter_with(&node, &config).await;
    let mine = authority.client("prometheus", None).unwrap();
    let strange = Authority::new("other").unwrap().client("prometheus", None).unwrap();
    for (certificate, served) in [(Some(&mine), true), (Some(&strange), false), (None, false)] {
        let answer = status(&exporter, trusting(&authority, certificate), &HeaderMap::new()).await;
        assert_eq!(answer.is_ok(), served, "{answer:?}");
    }
    let log = exporter.program.log();
    assert!(!log.contains("PRIVATE KEY"), "{log}");
}

#[tokio::test]
async fn the_rate_limit_holds_for_scrapes_and_lets_probes_through() {
    let node = Node::new(NODE);
    let exporter = exporter_with(&node, "rate_limit: {interval: 1h, burst: 2}\n").await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(exporter.get("/metrics").await.status().as_u16());
    }
    assert_eq!(answers, [200, 200, 429, 429]);
    let refused = exporter.get("/metrics").await;
    assert!(String::from_utf8_lossy(refused.body()).contains("rate_limit"), "{refused:?}");
    assert_eq!(exporter.get("/health").await.status(), 200);
}

/// Go's limiter would answer nothing at all, which nobody can want.
#[tokio::test]
async fn a_rate_limit_without_a_burst_answers_one_request_an_interval() {
    let node = Node::new(NODE);
    let exporter = exporter_with(&node, "rate_limit: {interval: 1h}\n").await;
    assert_eq!(exporter.get("/metrics").await.status(), 200);
    assert_eq!(exporter.get("/metrics").await.status(), 429);
}

#[tokio::test]
async fn a_narrow_page_needs_the_password_too() {
    let node = Node::new(NODE);
    let exporter = exporter_with(&node, &format!("basic_auth_users: {{ann: {HASH}}}\n")).await;
    let path = "/metrics?name[]=podgauge_gpu_up";
    assert_eq!(exporter.get(path).await.status(), 401);
    until("the family", || async {
        let answer = client::get(&exporter.address, path, &headers("ann", "open:sesame")).await.unwrap();
        assert_eq!(answer.status(), 200);
        let text = String::from_utf8(answer.body().to_vec()).unwrap();
        if text.starts_with("# HELP podgauge_gpu_up ") && text.matches("# HELP").count() == 1 {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
}

#[tokio::test]
async fn wrong_passwords_of_one_address_keep_no_right_one_out() {
    const GUESSER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
    const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
    let node = Node::new(NODE);
    let users = format!("basic_auth_users: {{ann: {HASH}, bea: {HASH}}}\n");
    let exporter = exporter_with(&node, &users).await;
    let address = exporter.address.clone();
    let ask = async |from: Ipv4Addr, user: &str, password: &str| {
        let answer = client::get_from(from, &address, "/metrics", &headers(user, password)).await.unwrap();
        answer.status().as_u16()
    };
    assert_eq!(ask(OTHER, "ann", "open:sesame").await, 200);
    // Somebody guesses, and goes on with it.
    let mut guessers = tokio::task::JoinSet::new();
    for n in 0..12 {
        let address = address.clone();
        guessers.spawn(async move {
            for round in 0u64.. {
                let guess = headers("ann", &format!("{n} {round}"));
                let answer = client::get_from(GUESSER, &address, "/metrics", &guess).await.unwrap();
                assert!([401, 429].contains(&answer.status().as_u16()), "{answer:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    until("the guesser to be slowed down", || async {
        match ask(GUESSER, "bea", "wrong").await {
            429 => Ok(()),
            status => Err(status),
        }
    })
    .await;
    // A password that was right before is right without a judgement, one of another address is judged.
    for _ in 0..5 {
        assert_eq!(ask(GUESSER, "ann", "open:sesame").await, 200);
        assert_eq!(ask(OTHER, "bea", "open:sesame").await, 200);
        assert_eq!(ask(OTHER, "bea", "wrong").await, 401);
    }
    // A reload that leaves the users as they are changes nothing for them.
    let change = async |config: String, times: usize| {
        std::fs::write(node.path().join("web.yml"), config).unwrap();
        exporter.program.logs("read again, in force from now on", times).await;
    };
    change(format!("{users}http_server_config: {{headers: {{X-Frame-Options: deny}}}}\n"), 1).await;
    for _ in 0..20 {
        assert_eq!(ask(GUESSER, "ann", "open:sesame").await, 200);
    }
    // One that changes a hash makes the old password wrong.
    let other = HASH.replace("PPloFN", "PPlpFN");
    change(format!("basic_auth_users: {{ann: {other}, bea: {HASH}}}\n"), 2).await;
    assert_eq!(ask(OTHER, "ann", "open:sesame").await, 401);
    assert_eq!(ask(GUESSER, "bea", "open:sesame").await, 200);
    guessers.abort_all();
}
