//! Another counters file while serving: by SIGHUP, by change, through the symlinks of a projected
//! volume, and from a ConfigMap. A bad one leaves the last good in force, and no page is empty.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use podgauge_sim::apiserver::{Access, ApiServer, ApiServerOptions, Credentials, EXPORTER_TOKEN, Rule, User};
use podgauge_tests::built;
use podgauge_tests::node::Node;
use podgauge_tests::page::Page;
use podgauge_tests::program::{Exporter, run};
use podgauge_tests::wait::until;

const NODE: &str = "gpus: [{load: {constant: 40}}]";
const TEMPERATURE: &str = "DCGM_FI_DEV_GPU_TEMP, gauge, Temperature\n";
const POWER: &str = "DCGM_FI_DEV_POWER_USAGE, gauge, Power\nDCGM_FI_DEV_GPU_TEMP, gauge, Temperature\n";
const BAD: &str = "DCGM_FI_DEV_GPU_TEMP, gauge, Temperature\nDCGM_FI_DEV_GPU_UTIL, gage, wrong\n";

/// Every page until the one wanted holds the temperature: none is empty.
async fn without_a_gap(exporter: &Exporter, what: &str, wanted: impl Fn(&Page) -> bool) {
    until(what, || async {
        let page = exporter.page().await;
        page.want("DCGM_FI_DEV_GPU_TEMP", &[]).unwrap();
        if wanted(&page) { Ok(()) } else { Err(page.text) }
    })
    .await;
}

fn has_power(page: &Page) -> bool {
    page.value("DCGM_FI_DEV_POWER_USAGE", &[]).is_some()
}

#[tokio::test]
async fn b4_a_changed_file_is_served_without_an_empty_page_and_a_bad_one_is_not() {
    let node = Node::new(NODE);
    let file = node.path().join("counters.csv");
    std::fs::write(&file, TEMPERATURE).unwrap();
    let mut exporter = node
        .exporter_with(|command| {
            command.arg("-f").arg(&file);
        })
        .await;
    exporter.until("values", |page| page.want("DCGM_FI_DEV_GPU_TEMP", &[])).await;
    assert!(!has_power(&exporter.page().await));

    // By change alone.
    std::fs::write(&file, POWER).unwrap();
    without_a_gap(&exporter, "power after a change", has_power).await;

    std::fs::write(&file, BAD).unwrap();
    let line = exporter.program.logged("keeping the last good counters").await;
    assert!(line.contains("counters.csv:2: ") && line.contains("gage"), "{line}");
    assert!(has_power(&exporter.page().await));
    // Told again: said again, and still served.
    exporter.program.signal(libc::SIGHUP);
    until("a second line", || async {
        match exporter.program.count_logged("keeping the last good counters") {
            2 => Ok(()),
            count => Err(count),
        }
    })
    .await;
    assert!(has_power(&exporter.page().await));

    // Emptied, as by an editor that is about to write it.
    std::fs::write(&file, "").unwrap();
    exporter.program.logged("asks for no field any more").await;
    assert!(has_power(&exporter.page().await));

    // By signal.
    std::fs::write(&file, TEMPERATURE).unwrap();
    exporter.program.signal(libc::SIGHUP);
    without_a_gap(&exporter, "no power after a signal", |page| !has_power(page)).await;
    assert_eq!(exporter.program.count_logged("ERROR"), 3, "{}", exporter.program.log());
}

/// A ConfigMap volume: the file is a link to a link to a folder, and the folder's link is exchanged.
#[tokio::test]
async fn b4_a_projected_volume_is_followed() {
    let node = Node::new(NODE);
    let volume = node.path().join("volume");
    let version = |name: &str, text: &str| {
        std::fs::create_dir_all(volume.join(name)).unwrap();
        std::fs::write(volume.join(name).join("counters.csv"), text).unwrap();
        std::os::unix::fs::symlink(name, volume.join("..data_tmp")).unwrap();
        std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    };
    version("..1", TEMPERATURE);
    let file = volume.join("counters.csv");
    std::os::unix::fs::symlink(Path::new("..data/counters.csv"), &file).unwrap();
    let exporter = node
        .exporter_with(|command| {
            command.arg("-f").arg(&file);
        })
        .await;
    exporter.until("values", |page| page.want("DCGM_FI_DEV_GPU_TEMP", &[])).await;
    version("..2", POWER);
    std::fs::remove_dir_all(volume.join("..1")).unwrap();
    without_a_gap(&exporter, "power", has_power).await;
    assert_eq!(exporter.program.count_logged("ERROR"), 0, "{}", exporter.program.log());
}

fn data(key: &str, text: &str) -> Option<BTreeMap<String, String>> {
    Some(BTreeMap::from([(key.to_owned(), text.to_owned())]))
}

#[tokio::test]
async fn b6_a_config_map_is_read_and_followed_and_a_missing_one_ends_the_start() {
    let server = ApiServer::start(ApiServerOptions::default()).await.unwrap();
    // The right that upstream's chart gives: to get this one ConfigMap.
    server.extend_access(Access {
        tokens: BTreeMap::from([("reader".to_owned(), User::of_groups("reader", &[]))]),
        rules: vec![Rule {
            users: vec!["reader".to_owned()],
            verbs: vec!["get".to_owned()],
            groups: vec![String::new()],
            resources: vec!["configmaps".to_owned()],
            names: vec!["metrics-map".to_owned()],
            namespaces: vec!["gpu".to_owned()],
            ..Rule::default()
        }],
    });
    let node = Node::new(NODE);
    let kubeconfig = node.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, &Credentials::Token("reader".to_owned())).unwrap();
    let refused = async |name: &str, kubeconfig: &Path| {
        let mut command = Command::new(built("podgauge-exporter"));
        command
            .args(["-a", "127.0.0.1:0", "-m", name, "--kubeconfig"])
            .arg(kubeconfig)
            .env_remove("RUST_LOG");
        let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {log}");
        assert_eq!(log.matches("ERROR").count(), 1, "{name}: {log}");
        log
    };
    assert!(refused("metrics-map", &kubeconfig).await.contains("NAMESPACE:NAME"));
    let log = refused("gpu:metrics-map", &kubeconfig).await;
    assert!(log.contains("gpu/metrics-map") && log.contains("none of this name"), "{log}");
    let log = refused("gpu:other", &kubeconfig).await;
    assert!(log.contains("gpu/other") && log.contains("refuses"), "{log}");
    server.set_config_map("gpu", "metrics-map", data("other-key", TEMPERATURE));
    let log = refused("gpu:metrics-map", &kubeconfig).await;
    assert!(log.contains("no key \"metrics\"") && log.contains("other-key"), "{log}");
    server.set_config_map("gpu", "metrics-map", data("metrics", BAD));
    let log = refused("gpu:metrics-map", &kubeconfig).await;
    assert!(log.contains("ConfigMap gpu/metrics-map, key metrics:2: DCGM_FI_DEV_GPU_UTIL, gage"), "{log}");
    let log = refused("gpu:metrics-map", Path::new("/nonexistent/kubeconfig")).await;
    assert!(log.contains("/nonexistent/kubeconfig"), "{log}");
    let token = node.path().join("no-rights");
    server.write_kubeconfig(&token, &Credentials::Token(EXPORTER_TOKEN.to_owned())).unwrap();
    assert!(refused("gpu:metrics-map", &token).await.contains("refuses"));

    server.set_config_map("gpu", "metrics-map", data("metrics", TEMPERATURE));
    let mut exporter = node
        .exporter_with(|command| {
            command.args(["-m", "gpu:metrics-map", "--kubeconfig"]).arg(&kubeconfig);
        })
        .await;
    exporter.until("values", |page| page.want("DCGM_FI_DEV_GPU_TEMP", &[])).await;
    assert!(!has_power(&exporter.page().await));
    server.set_config_map("gpu", "metrics-map", data("metrics", POWER));
    without_a_gap(&exporter, "power", has_power).await;
    // Gone, it counts on as it was last.
    server.set_config_map("gpu", "metrics-map", None);
    exporter.program.logged("keeping the last good counters").await;
    assert!(has_power(&exporter.page().await));
}
