//! Which exporter counts for a pod, and that no exporter can do more than be silent: not change what
//! others report, not delay them, not take memory, not learn a secret over a wire that anybody can read.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use parking_lot::Mutex;
use podgauge_sim::aggregator::Aggregation;
use podgauge_sim::apiserver::{ApiServer, ApiServerOptions};
use podgauge_sim::certs::Authority;
use podgauge_tests::cluster::Adapter;
use podgauge_tests::fake_exporter::{FakeExporter, FakeTls, Manner, Told};
use podgauge_tests::fleet::{Fleet, near, scenario, told};
use podgauge_tests::node::Node;
use podgauge_tests::wait::{until, until_within};

#[tokio::test]
async fn an_exporter_that_claims_another_nodes_pods_is_not_believed() {
    let honest = FakeExporter::start(vec![told("a", 30.0)]).await;
    let liar = FakeExporter::start(vec![told("b", 50.0), told("a", 99.0), told("c", 99.0)]).await;
    let exporters = [(0, "http", honest.address), (1, "http", liar.address)];
    let fleet = Fleet::start(&[&["a", "c"], &["b"]], &exporters).await;
    near(fleet.value("b").await, 50.0);
    near(fleet.value("a").await, 30.0);
    // The honest one goes silent: the liar is not asked in its place.
    honest.behave(Manner::Silent);
    until("the value to go, and its exporter to be named", || async {
        match fleet.ask("a").await {
            Ok(value) => {
                near(value, 30.0);
                Err(value.to_string())
            }
            // Its reading is too old a moment before its exporter is.
            Err(text) if text.contains("exporter on node gpu-node-0 last answered") => Ok(()),
            Err(text) => Err(text),
        }
    })
    .await;
    fleet.refused("c", "exporter on node gpu-node-0").await;
    near(fleet.value("b").await, 50.0);
    assert!(liar.requests() > 5);
}

/// A pod of a StatefulSet is made again on another node, under its name. The exporter that had it
/// before is accepted for every node, and says nothing of it any more.
#[tokio::test]
async fn a_pod_that_moved_is_measured_by_the_exporter_that_has_it_now() {
    let before = FakeExporter::start(vec![told("a", 30.0), told("stays", 10.0)]).await;
    let after = FakeExporter::start(vec![told("other", 20.0)]).await;
    let urls = [&before, &after].map(|fake| format!("--exporter-url=http://{}", fake.address));
    let fleet = Fleet::of(&[scenario(0, &["a", "stays"]), scenario(1, &["other"])], &urls).await;
    near(fleet.value("a").await, 30.0);
    let again = Told { uid: "uid-a-again".to_owned(), ..told("a", 70.0) };
    before.tell(vec![told("stays", 10.0)]);
    after.tell(vec![told("other", 20.0), again]);
    let moved = scenario(1, &["other", "a"]).replace("uid: uid-a,", "uid: uid-a-again,");
    std::fs::write(fleet.node.path().join("node-1.yaml"), moved).unwrap();
    fleet.node.play(&scenario(0, &["stays"]));
    until("the value of the new pod", || async {
        match fleet.ask("a").await {
            Ok(value) if (value - 70.0).abs() < 0.05 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    // Whichever of the two answered last.
    for fake in [&before, &after, &before, &after, &before, &after] {
        let asked = fake.requests();
        until("a scrape", || async {
            match fleet.ask("a").await {
                Ok(value) => near(value, 70.0),
                Err(text) => assert!(!text.contains("another pod"), "{text}"),
            }
            if fake.requests() > asked { Ok(()) } else { Err(asked) }
        })
        .await;
    }
}

/// An HPA writes a new status, and a new event, for each text that differs from the one before.
#[tokio::test]
async fn the_text_of_a_404_stays_the_same_while_its_numbers_move() {
    let silent = FakeExporter::start(vec![told("a", 30.0)]).await;
    let stuck = FakeExporter::start(vec![told("b", 50.0)]).await;
    let exporters = [(0, "http", silent.address), (1, "http", stuck.address)];
    let fleet = Fleet::start(&[&["a"], &["b"]], &exporters).await;
    near(fleet.value("a").await, 30.0);
    near(fleet.value("b").await, 50.0);
    silent.behave(Manner::Raw(Vec::new()));
    let page = "podgauge_gpu_owners{gpu=\"0\",UUID=\"GPU-b\"} 1\n";
    stuck.behave(Manner::Raw(format!("HTTP/1.1 200 OK\r\n\r\n{page}").into_bytes()));
    let began = Instant::now();
    for (pod, exact) in [("a", "last answered "), ("b", "the newest reading of its device is ")] {
        fleet.refused(pod, exact).await;
        let (texts, numbers) = (Mutex::new(BTreeSet::new()), Mutex::new(BTreeSet::new()));
        until("three different numbers", || async {
            let text = fleet.ask(pod).await.unwrap_err();
            texts.lock().insert(text);
            let explained = fleet.explained(pod, "gpu_utilization").await?;
            let message = explained["omitted"]["message"].as_str().unwrap();
            let number = message.split_once(exact).unwrap().1.split('s').next().unwrap();
            numbers.lock().insert(number.parse::<u64>().unwrap());
            let seen = numbers.lock().len();
            if seen >= 3 { Ok(()) } else { Err(seen.to_string()) }
        })
        .await;
        // The text moves once an age is 30 s, which a slow machine may reach.
        let steps = 1 + usize::from(began.elapsed().as_secs() > 25);
        assert!(texts.lock().len() <= steps, "{texts:#?}");
    }
}

#[tokio::test]
async fn endless_pages_take_no_memory_and_change_nobodys_value() {
    let texts = [
        "# nothing to be read here, but it goes on and on and on and on and on and on\n",
        "x",
        "DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",namespace=\"demo\",pod=\"p#\"} 1\n",
    ];
    let honest = FakeExporter::start(vec![told("a", 30.0)]).await;
    let mut fakes = Vec::new();
    for pod in ["b", "c", "d", "e"] {
        fakes.push(FakeExporter::start(vec![told(pod, 50.0)]).await);
    }
    let mut exporters = vec![(0, "http", honest.address)];
    exporters.extend(fakes.iter().enumerate().map(|(at, fake)| (at + 1, "http", fake.address)));
    let fleet = Fleet::start(&[&["a"], &["b"], &["c"], &["d"], &["e"]], &exporters).await;
    for pod in ["a", "b", "c", "d", "e"] {
        fleet.value(pod).await;
    }
    let before = fleet.memory();
    for (fake, text) in fakes.iter().zip(texts) {
        fake.behave(Manner::Endless(text.to_owned()));
    }
    // The last one's pages end, but tell of other pods each time.
    let (mut most, mut round) = (0, 0);
    until_within(std::time::Duration::from_secs(120), "100 MB", || {
        round += 1;
        fakes[3].tell(
            (0..1500)
                .map(|i| Told { uuid: "GPU-e".to_owned(), ..told(&format!("{round}-{i}"), 1.0) })
                .collect(),
        );
        most = most.max(fleet.memory());
        let fleet = &fleet;
        let sent: u64 = fakes.iter().map(FakeExporter::sent).sum();
        let scraped = fakes.iter().map(FakeExporter::requests).min().unwrap();
        async move {
            near(fleet.value("a").await, 30.0);
            if sent > 100_000_000 && scraped > 15 { Ok(()) } else { Err((sent, scraped)) }
        }
    })
    .await;
    let grown = most.saturating_sub(before) >> 20;
    assert!(grown < 64, "{grown} MiB more, {before} bytes before");
    fleet.refused("b", "last answered").await;
}

#[tokio::test]
async fn what_an_exporter_does_wrong_is_told_and_costs_its_own_pods_alone() {
    let honest = FakeExporter::start(vec![told("a", 30.0)]).await;
    let elsewhere = FakeExporter::start(vec![told("redirected", 99.0)]).await;
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let comment = format!("# {}\n", "a comment ".repeat(400));
    for _ in 0..64 {
        bomb.write_all(comment.repeat(400).as_bytes()).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    let raw = |head: &str, body: &[u8]| Manner::Raw([head.as_bytes(), b"\r\n\r\n", body].concat());
    const OK: &str = "HTTP/1.1 200 OK";
    let cases = [
        ("silent", Manner::Silent, "no answer within 1s"),
        ("trickling", Manner::Trickle, "no answer within 1s"),
        ("closing", Manner::Raw(Vec::new()), "connection closed before message completed"),
        ("half", Manner::Half, "end of file before message length reached"),
        ("cut", Manner::Cut, "the page ends in the middle of line"),
        ("binary", raw(OK, b"\x00\xff\xfe\n"), "not UTF-8"),
        ("html", raw(OK, b"<html>\n"), "line 1: \\\"<html>\\\" does not begin with a metric name"),
        (
            "bomb",
            raw(&format!("{OK}\r\nContent-Encoding: gzip"), &bomb),
            "expands to more than 16777216 bytes",
        ),
        (
            "torn",
            raw(&format!("{OK}\r\nContent-Encoding: gzip"), &bomb[..1000]),
            "the compressed page cannot be read",
        ),
        (
            "foreign",
            raw(&format!("{OK}\r\nContent-Encoding: br"), b"x"),
            "though gzip or plain text was asked for",
        ),
        (
            "redirected",
            raw(&format!("HTTP/1.1 302 Found\r\nLocation: http://{}/metrics", elsewhere.address), b""),
            "answered 302 Found",
        ),
        ("broken", raw("HTTP/1.1 500 Internal Server Error", b""), "answered 500"),
        ("locked", raw("HTTP/1.1 401 Unauthorized", b""), "answered 401"),
        ("headed", raw(&format!("{OK}\r\nX: {}", "x".repeat(100_000)), b""), "too large"),
        (
            "labelled",
            raw(OK, format!("DCGM_FI_DEV_GPU_UTIL{{{}}} 1\n", "l=\"v\",".repeat(100)).as_bytes()),
            "more than 64 labels",
        ),
    ];
    let mut fakes = Vec::new();
    let mut exporters = vec![(0, "http", honest.address)];
    for (at, (pod, manner, _)) in cases.iter().enumerate() {
        let fake = FakeExporter::start(vec![told(pod, 50.0)]).await;
        fake.behave(manner.clone());
        exporters.push((at + 1, "http", fake.address));
        fakes.push(fake);
    }
    let names: Vec<[&str; 1]> =
        std::iter::once("a").chain(cases.iter().map(|(pod, ..)| *pod)).map(|pod| [pod]).collect();
    let pods: Vec<&[&str]> = names.iter().map(<[&str; 1]>::as_slice).collect();
    let fleet = Fleet::start(&pods, &exporters).await;
    near(fleet.value("a").await, 30.0);
    for (pod, _, words) in &cases {
        fleet.refused(pod, words).await;
    }
    near(fleet.value("a").await, 30.0);
    assert_eq!(elsewhere.requests(), 0, "a redirect is followed");
    assert!(honest.last_head().contains("accept-encoding: gzip"), "{}", honest.last_head());
    for node in 1..=cases.len() {
        fleet.adapter.program.logs(&format!("exporter on node gpu-node-{node} at"), 1).await;
    }
    // Each is back as soon as it answers.
    for (fake, (pod, ..)) in fakes.iter().zip(&cases) {
        fake.behave(Manner::Page);
        near(fleet.value(pod).await, 50.0);
    }
}

#[tokio::test]
async fn series_twice_and_huge_labels_cost_themselves_alone() {
    let twice = FakeExporter::start(vec![told("a", 30.0), told("twice", 40.0), told("twice", 60.0)]).await;
    let huge = FakeExporter::start(vec![told(&"x".repeat(600), 99.0), told("b", 50.0)]).await;
    let exporters = [(0, "http", twice.address), (1, "http", huge.address)];
    let fleet = Fleet::start(&[&["a", "twice"], &["b"]], &exporters).await;
    near(fleet.value("a").await, 30.0);
    near(fleet.value("b").await, 50.0);
    fleet.refused("twice", "its exporter gives no series").await;
}

#[tokio::test]
async fn a_page_cut_in_a_number_is_no_news() {
    let fake = FakeExporter::start(vec![told("a", 30.0)]).await;
    let fleet = Fleet::start(&[&["a"]], &[(0, "http", fake.address)]).await;
    near(fleet.value("a").await, 30.0);
    for manner in [Manner::Cut, Manner::Half] {
        fake.behave(manner);
        until("the value to go", || async {
            match fleet.ask("a").await {
                Ok(value) => {
                    near(value, 30.0);
                    Err(value)
                }
                Err(_) => Ok(()),
            }
        })
        .await;
        let asked = fake.requests();
        fake.behave(Manner::Page);
        near(fleet.value("a").await, 30.0);
        // Two; what else came while this test was not running. Its counter would need fifteen.
        let asked = fake.requests() - asked;
        assert!(asked <= 10, "back after {asked} scrapes");
    }
}

#[tokio::test]
async fn a_crowd_of_slow_exporters_delays_nobody() {
    let honest = FakeExporter::start(vec![told("a", 30.0)]).await;
    let mut exporters = vec![(0, "http", honest.address)];
    let mut crowd = Vec::new();
    for _ in 0..400 {
        let fake = FakeExporter::start(Vec::new()).await;
        fake.behave(Manner::Trickle);
        exporters.push((1, "http", fake.address));
        crowd.push(fake);
    }
    // Longer than a busy machine keeps the adapter from scraping.
    let fleet = Fleet::start_with(&[&["a"], &["b"]], &exporters, &["--staleness=15s".to_owned()]).await;
    fleet.value("a").await;
    let asked = honest.requests();
    // Past the staleness, were it not asked in between.
    until("twenty more scrapes", || async {
        near(fleet.ask("a").await.unwrap(), 30.0);
        match honest.requests() {
            now if now >= asked + 20 => Ok(()),
            now => Err(now),
        }
    })
    .await;
    assert!(crowd.iter().all(|fake| fake.requests() > 0), "nobody is forgotten");
}

fn write(node: &Node, name: &str, text: &str) -> PathBuf {
    let path = node.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A file with the CA, and the arguments with which an adapter believes its certificates for
/// podgauge-exporter.
fn trusting(authority: &Authority) -> (tempfile::TempDir, PathBuf, [String; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.crt");
    std::fs::write(&ca, authority.pem()).unwrap();
    let file = format!("--exporter-ca-file={}", ca.display());
    (folder, ca, [file, "--exporter-server-name=podgauge-exporter".to_owned()])
}

#[tokio::test]
async fn tls_to_an_exporter_must_be_right() {
    let (ours, other) = (Authority::new("exporters").unwrap(), Authority::new("other").unwrap());
    let names = ["podgauge-exporter"];
    let right = ours.server("exporter", &names).unwrap();
    let leaves = [
        ("right", right.clone(), None, ""),
        ("stranger", other.server("exporter", &names).unwrap(), None, "its certificate is of no CA in"),
        (
            "renamed",
            ours.server("exporter", &["127.0.0.1"]).unwrap(),
            None,
            "its certificate is not for podgauge-exporter",
        ),
        (
            "expired",
            ours.expired_server("exporter", &names, 2020).unwrap(),
            None,
            "its certificate has expired",
        ),
        ("asking", right, Some(other.pem()), "it wants a client certificate"),
    ];
    let mut fakes = Vec::new();
    for (pod, leaf, client_authority, _) in &leaves {
        let tls = FakeTls { leaf, client_authority: *client_authority };
        fakes.push(FakeExporter::start_tls(vec![told(pod, 40.0)], tls).await);
    }
    // One that does not speak TLS where it should.
    fakes.push(FakeExporter::start(vec![told("plain", 40.0)]).await);
    let exporters: Vec<_> = fakes.iter().enumerate().map(|(at, fake)| (at, "https", fake.address)).collect();
    let (_folder, ca, arguments) = trusting(&ours);
    let pods: Vec<[&str; 1]> = leaves.iter().map(|(pod, ..)| [*pod]).chain([["plain"]]).collect();
    let pods: Vec<&[&str]> = pods.iter().map(<[&str; 1]>::as_slice).collect();
    let fleet = Fleet::start_with(&pods, &exporters, &arguments).await;
    near(fleet.value("right").await, 40.0);
    for (pod, _, _, words) in leaves.iter().skip(1) {
        fleet.refused(pod, words).await;
    }
    fleet.refused("plain", "it does not speak TLS").await;
    assert!(fakes[1..].iter().all(|fake| fake.requests() == 0), "nothing is asked before TLS is right");
    // The CA is replaced: now the stranger is right, and the others are not.
    std::fs::write(&ca, other.pem()).unwrap();
    near(fleet.value("stranger").await, 40.0);
    // What cannot be used changes nothing, and is said once.
    std::fs::write(&ca, "no certificate").unwrap();
    let said = "exporters are scraped with what was good before";
    until("the complaint", || async {
        let log = fleet.adapter.program.log();
        if log.contains(said) { Ok(()) } else { Err(log) }
    })
    .await;
    near(fleet.value("stranger").await, 40.0);
    assert_eq!(fleet.adapter.program.count_logged(said), 1);
    assert!(fleet.adapter.program.log().contains("ca.crt: "));
}

/// Waits for so many more scrapes, and gives the connections that they took.
async fn connections_of(fake: &FakeExporter, scrapes: usize) -> usize {
    let (asked, before) = (fake.requests(), fake.connections());
    until("more scrapes", || async {
        match fake.requests() {
            now if now >= asked + scrapes => Ok(()),
            now => Err(now),
        }
    })
    .await;
    fake.connections() - before
}

#[tokio::test]
async fn a_connection_to_an_exporter_is_kept_and_one_that_ended_costs_no_scrape() {
    let authority = Authority::new("exporters").unwrap();
    let leaf = authority.server("exporter", &["podgauge-exporter"]).unwrap();
    let tls = FakeTls { leaf: &leaf, client_authority: None };
    let fakes = [
        FakeExporter::start(vec![told("a", 30.0)]).await,
        FakeExporter::start_tls(vec![told("b", 40.0)], tls).await,
    ];
    fakes.iter().for_each(|fake| fake.behave(Manner::Keep));
    let (_folder, ca, arguments) = trusting(&authority);
    let exporters = [(0, "http", fakes[0].address), (1, "https", fakes[1].address)];
    let fleet = Fleet::start_with(&[&["a"], &["b"]], &exporters, &arguments).await;
    near(fleet.value("a").await, 30.0);
    near(fleet.value("b").await, 40.0);
    for fake in &fakes {
        // On a busy machine a scrape that takes too long ends its connection.
        let connections = connections_of(fake, 10).await;
        assert!(connections <= 5, "{connections} connections for ten scrapes");
    }
    // Each connection ends unannounced after its answer: the next scrape needs another one.
    fakes.iter().for_each(|fake| fake.behave(Manner::Page));
    for fake in &fakes {
        assert!(connections_of(fake, 10).await >= 9);
    }
    near(fleet.value("a").await, 30.0);
    near(fleet.value("b").await, 40.0);
    // What TLS is made with changes: the connection is made with it.
    fakes.iter().for_each(|fake| fake.behave(Manner::Keep));
    for fake in &fakes {
        connections_of(fake, 2).await;
    }
    std::fs::write(&ca, Authority::new("other").unwrap().pem()).unwrap();
    until("the refusal of its certificate", || async {
        let log = fleet.adapter.program.log();
        if log.contains("its certificate is of no CA in") { Ok(()) } else { Err(log) }
    })
    .await;
    let of =
        |result| format!("podgauge_adapter_scrapes_total{{exporter=\"gpu-node-0\",result=\"{result}\"}}");
    let answered = fleet.own_metric(&of("success")).await.unwrap();
    let failed = fleet.own_metric(&of("failure")).await.unwrap_or_default();
    assert!(failed < answered / 4.0, "{failed} failed and {answered} were answered");
}

#[tokio::test]
async fn a_token_goes_over_tls_alone_and_follows_its_file() {
    let authority = Authority::new("exporters").unwrap();
    let leaf = authority.server("exporter", &["127.0.0.1"]).unwrap();
    let secure =
        FakeExporter::start_tls(vec![told("a", 30.0)], FakeTls { leaf: &leaf, client_authority: None }).await;
    let plain = FakeExporter::start(vec![told("b", 50.0)]).await;
    secure.behave(Manner::Wants("Bearer s3cret-one".to_owned()));
    let folder = Node::new(&scenario(9, &["none"]));
    let ca = write(&folder, "ca.crt", authority.pem());
    let token = write(&folder, "token", "s3cret-one\n");
    let arguments = [
        format!("--exporter-ca-file={}", ca.display()),
        format!("--exporter-token-file={}", token.display()),
    ];
    let exporters = [(0, "https", secure.address), (1, "http", plain.address)];
    let fleet = Fleet::start_with(&[&["a"], &["b"]], &exporters, &arguments).await;
    near(fleet.value("a").await, 30.0);
    near(fleet.value("b").await, 50.0);
    assert!(!plain.last_head().contains("authorization"), "{}", plain.last_head());
    // Rotated: first there, then here.
    secure.behave(Manner::Wants("Bearer s3cret-two".to_owned()));
    fleet.refused("a", "last answered").await;
    std::fs::write(&token, "s3cret-two").unwrap();
    near(fleet.value("a").await, 30.0);
    // A file that is gone for a moment takes nothing away.
    std::fs::remove_file(&token).unwrap();
    until("the complaint", || async {
        let log = fleet.adapter.program.log();
        if log.contains("token: No such file") { Ok(()) } else { Err(log) }
    })
    .await;
    near(fleet.value("a").await, 30.0);
    let log = fleet.adapter.program.log();
    assert!(!log.contains("s3cret"), "{log}");
    assert!(log.contains("answered 401 Unauthorized"), "{log}");
}

/// bcrypt of "open:sesame".
const HASH: &str = "$2b$05$K7ggiuHLPPloFN.VMda9peFTa6PxH3LNPKAmdlX02tBA6Yi/vCR3i";

#[tokio::test]
async fn the_real_exporter_behind_its_web_config_is_scraped() {
    let node =
        Node::new("gpus: [{load: {constant: 64}}]\npods: [{name: a, containers: [{devices: [\"0\"]}]}]");
    let (authority, clients) = (Authority::new("exporters").unwrap(), Authority::new("scrapers").unwrap());
    let serve = |authority: &Authority| {
        let leaf = authority.server("exporter", &["podgauge-exporter"]).unwrap();
        leaf.write(&node.path().join("tls.crt"), &node.path().join("tls.key")).unwrap();
    };
    serve(&authority);
    write(&node, "clients.crt", clients.pem());
    let config = format!(
        "tls_server_config: {{cert_file: tls.crt, key_file: tls.key, client_auth_type: RequireAndVerifyClientCert, client_ca_file: clients.crt}}\n\
         basic_auth_users: {{ann: {HASH}}}\n"
    );
    let config = write(&node, "web.yml", &config);
    let _kubelet = node.kubelet().await;
    let exporter = node
        .exporter_with(|command| {
            node.in_kubernetes(command);
            command.arg("--web-config-file").arg(&config);
        })
        .await;
    let server = ApiServer::start(ApiServerOptions {
        scenarios: vec![node.scenario()],
        ..ApiServerOptions::default()
    })
    .await
    .unwrap();
    let ca = write(&node, "ca.crt", authority.pem());
    // Not the right one yet.
    let password = write(&node, "password", "open:s3cret\n");
    let (certificate, key) = (node.path().join("client.crt"), node.path().join("client.key"));
    clients.client("podgauge-adapter", None).unwrap().write(&certificate, &key).unwrap();
    let adapter = Adapter::start(&node, &server, |command| {
        command.args(["--scrape-interval", "1s", "--window", "10s", "--staleness", "5s"]);
        command.arg(format!("--exporter-url=gpu-node-0=https://{}", exporter.address));
        command.arg("--exporter-ca-file").arg(&ca);
        command.args(["--exporter-server-name", "podgauge-exporter", "--exporter-username", "ann"]);
        command.arg("--exporter-password-file").arg(&password);
        command.arg("--exporter-client-tls-cert-file").arg(&certificate);
        command.arg("--exporter-client-tls-key-file").arg(&key);
    })
    .await;
    let settings = Aggregation::of_adapter(adapter.address, adapter.authority.pem().to_owned());
    let aggregator = server.aggregate(settings).unwrap();
    let fleet = Fleet { node, adapter, aggregator, server };
    fleet.refused("a", "has never answered: answered 401 Unauthorized").await;
    write(&fleet.node, "password", "open:sesame\n");
    assert!((fleet.value("a").await - 64.0).abs() <= 0.5);
    // A certificate that the exporter does not know is refused, and said so; the right one is taken up.
    Authority::new("nobody")
        .unwrap()
        .client("podgauge-adapter", None)
        .unwrap()
        .write(&certificate, &key)
        .unwrap();
    until("the refusal", || async {
        let log = fleet.adapter.program.log();
        if log.contains("it refuses our client certificate") { Ok(()) } else { Err(log) }
    })
    .await;
    clients.client("podgauge-adapter", None).unwrap().write(&certificate, &key).unwrap();
    fleet.refused("a", "last answered").await;
    assert!((fleet.value("a").await - 64.0).abs() <= 0.5);
    let log = fleet.adapter.program.log();
    assert!(!log.contains("sesame") && !log.contains("s3cret"), "{log}");
}
