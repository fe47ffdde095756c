//! The web configuration file of Prometheus' exporters: TLS, client certificates, passwords, headers.

use std::path::Path;
use std::process::Command;

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
        ("tls_server_config:\n  cert: a\n".to_owned(), ["web.yml, line 2", "cert"]),
        (
            format!("{TLS}  cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]\n"),
            ["cipher_suites", "TLS_RSA_WITH_AES_128_CBC_SHA"],
        ),
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
