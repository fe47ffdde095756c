//! Bad input ends the adapter at start with one clear line and the right exit code.

use std::process::Command;

use podgauge_tests::built;
use podgauge_tests::program::run;

#[track_caller]
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let output = run(Command::new(built("podgauge-adapter"))
        .args(args)
        .env_remove("RUST_LOG")
        .env_remove("KUBECONFIG"));
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {log}");
    let errors: Vec<&str> =
        log.lines().filter(|line| line.contains("ERROR") || line.starts_with("error:")).collect();
    let [line] = errors.as_slice() else { panic!("{args:?}: not one error line: {log}") };
    for word in words {
        assert!(line.contains(word), "{args:?}: no {word:?} in {line:?}");
    }
}

const SOURCE: &str = "--exporter-url=gpu-0=http://127.0.0.1:9/metrics";

/// A kubeconfig that can be read; nobody listens where it points.
const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:9'}}]\n\
contexts: [{name: x, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {token: t}}]\ncurrent-context: x\n";

#[test]
fn a_wrong_kubeconfig_is_named() {
    refused(&[SOURCE, "--kubeconfig=/nonexistent/config"], 1, &["/nonexistent/config", "No such file"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    std::fs::write(&file, "apiVersion: v1\nkind: Config\nclusters: {broken\n").unwrap();
    let path = file.to_str().unwrap();
    refused(&[SOURCE, "--kubeconfig", path], 1, &[path, "line"]);
}

#[test]
fn a_port_in_use_and_a_missing_certificate_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("config");
    std::fs::write(&kubeconfig, KUBECONFIG).unwrap();
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let address = ["--bind-address=127.0.0.1", "--secure-port", port.as_str()];
    refused(&[&[SOURCE, &kubeconfig], address.as_slice()].concat(), 1, &[&port, "in use"]);
    let certificate = ["--tls-cert-file=/nonexistent/tls.crt", "--tls-private-key-file=/nonexistent/tls.key"];
    refused(&[&[SOURCE, &kubeconfig], certificate.as_slice()].concat(), 1, &["/nonexistent/tls.crt"]);
    let exporters = ["--exporter-url=https://127.0.0.1:9", "--exporter-ca-file=/nonexistent/ca.crt"];
    refused(
        &[&[kubeconfig.as_str()], exporters.as_slice()].concat(),
        1,
        &["/nonexistent/ca.crt", "No such file"],
    );
}

#[test]
fn wrong_usage_exits_with_2() {
    refused(&[], 2, &["required"]);
    refused(&[SOURCE, "--window=soon"], 2, &["soon", "--window"]);
    refused(&[SOURCE, "--tls-cert-file=/x"], 2, &["required"]);
    refused(&[SOURCE, "--metric=9lives"], 2, &["9lives"]);
    refused(&[SOURCE, "--metric=gpu_utilization,aggregation=median"], 2, &["median", "mean or max"]);
    refused(&[SOURCE, "--metric=gpu_utilization,window=3s"], 2, &["gpu_utilization", "two scrapes"]);
    refused(&[SOURCE, "--max-series=10"], 2, &["--max-series", "from 1000 to"]);
    refused(&["--exporter-url=https://127.0.0.1:9"], 2, &["--exporter-ca-file"]);
    refused(&[SOURCE, "--exporter-ca-file=/x"], 2, &["--exporter-ca-file", "no effect"]);
    refused(&[SOURCE, "--exporter-token-file=/x"], 2, &["--exporter-credentials-without-tls"]);
    refused(&[SOURCE, "--exporter-scheme=https"], 2, &["--exporter-service"]);
}
