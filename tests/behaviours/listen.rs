//! Listen addresses: names, both families, and what is said of those that cannot be used.

use std::process::Command;

use http::HeaderMap;
use podgauge_tests::built;
use podgauge_tests::client;
use podgauge_tests::lacking::{WITHOUT_NAMESPACES, leave_out};
use podgauge_tests::program::{Program, run};

/// Asks the host that is given for /health.
const GET: &str = "exec 3<>/dev/tcp/\"$0\"/9400 && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";

/// An exporter on an address, and where it serves.
async fn serving(mut command: Command) -> (Program, String) {
    command.env_remove("RUST_LOG").env_remove("NODE_NAME");
    let mut program = Program::start("podgauge-exporter", command);
    let line = program.logged("serving on ").await;
    let address = line["serving on ".len()..].split(',').next().unwrap().to_owned();
    (program, address)
}

#[tokio::test]
async fn a_name_is_resolved_and_every_address_is_both_families() {
    let exporter = |address: &str| {
        let mut command = Command::new(built("podgauge-exporter"));
        command.args(["-a", address]);
        command
    };
    let (_program, address) = serving(exporter("localhost:0")).await;
    assert!(address.starts_with("127.0.0.1:") || address.starts_with("[::1]:"), "{address}");
    assert_eq!(client::get(&address, "/health", &HeaderMap::new()).await.unwrap().status(), 200);
    for every in [":0", "[::]:0", "0.0.0.0:0"] {
        let (_program, address) = serving(exporter(every)).await;
        let port = address.rsplit_once(':').unwrap().1;
        let answer = client::get(&format!("127.0.0.1:{port}"), "/health", &HeaderMap::new()).await;
        assert_eq!(answer.unwrap().status(), 200, "{every}");
    }
}

#[test]
fn an_address_that_cannot_be_used_is_named_with_what_to_write() {
    for (address, words) in [
        ("::1:9400", ["an IPv6 address is written in brackets", "[::1]:9400"]),
        ("9400", ["it has no port", ":9400"]),
        ("no-such-host.invalid:9400", ["no-such-host.invalid", "cannot be resolved"]),
    ] {
        let output =
            run(Command::new(built("podgauge-exporter")).args(["-a", address]).env_remove("RUST_LOG"));
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{address}: {log}");
        words.iter().for_each(|word| assert!(log.contains(word), "{address}: no {word:?} in {log}"));
    }
}

/// A host with net.ipv6.bindv6only=1, as some are set up: a network namespace of its own.
#[tokio::test]
async fn ipv4_is_served_also_where_ipv6_sockets_are_ipv6_alone() {
    const SETUP: &str = "ip link set lo up && echo 1 > /proc/sys/net/ipv6/bindv6only && exec \"$0\" \"$@\"";
    let namespace = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "sh", "-c", SETUP]);
        command
    };
    let tried = run(namespace().arg("true"));
    if !tried.status.success() {
        let cause = String::from_utf8_lossy(&tried.stderr);
        return leave_out(WITHOUT_NAMESPACES, &format!("no network namespace can be made: {cause}"));
    }
    for address in [":9400", "[::]:9400"] {
        let mut command = namespace();
        command.arg(built("podgauge-exporter")).args(["-a", address]);
        let (program, _) = serving(command).await;
        for host in ["127.0.0.1", "::1"] {
            let output = run(Command::new("nsenter")
                .args(["--user", "--net", "--preserve-credentials", "--target", &program.pid().to_string()])
                .args(["timeout", "20", "bash", "-c", GET, host]));
            let answer = String::from_utf8_lossy(&output.stdout);
            let is_ok = answer.starts_with("HTTP/1.0 200") && answer.ends_with("OK\n");
            assert!(is_ok, "{address} {host}: {answer}{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
