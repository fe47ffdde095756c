//! The command line: whatever is written for dcgm-exporter starts this program too, and means the same.

use std::process::Command;

use podgauge_tests::built;
use podgauge_tests::node::Node;
use podgauge_tests::page::Page;
use podgauge_tests::program::run;

const START_TIME: &str = "podgauge_start_time_seconds";
const TWO: &str = "gpus: [{load: {constant: 10}}, {load: {constant: 20}}]";

/// Flags and variables that have no effect here, and the flag that the warning names.
const WITHOUT_EFFECT: [(&str, &str, &str); 17] = [
    ("--cpu-devices", "DCGM_EXPORTER_CPU_DEVICES_STR", "f"),
    ("--switch-devices", "DCGM_EXPORTER_OTHER_DEVICES_STR", "f"),
    ("--remote-hostengine-info", "DCGM_REMOTE_HOSTENGINE_INFO", "nvidia-dcgm:5555"),
    ("--fake-gpus", "DCGM_EXPORTER_USE_FAKE_GPUS", "true"),
    ("--enable-dcgm-log", "DCGM_EXPORTER_ENABLE_DCGM_LOG", "1"),
    ("--dcgm-log-level", "DCGM_EXPORTER_DCGM_LOG_LEVEL", "DEBUG"),
    ("--hpc-job-mapping-dir", "DCGM_HPC_JOB_MAPPING_DIR", "/var/lib/dcgm-exporter/job-mapping"),
    ("--dump-enabled", "DCGM_EXPORTER_DUMP_ENABLED", "true"),
    ("--dump-directory", "DCGM_EXPORTER_DUMP_DIRECTORY", "/tmp/dcgm-exporter-debug"),
    ("--dump-retention", "DCGM_EXPORTER_DUMP_RETENTION", "24"),
    ("--dump-compression", "DCGM_EXPORTER_DUMP_COMPRESSION", "true"),
    ("--disable-startup-validate", "DISABLE_STARTUP_VALIDATE", "t"),
    ("--enable-gpu-bind-unbind-watch", "DCGM_EXPORTER_ENABLE_GPU_BIND_UNBIND_WATCH", "true"),
    ("--gpu-bind-unbind-poll-interval", "DCGM_EXPORTER_GPU_BIND_UNBIND_POLL_INTERVAL", "1s"),
    ("--enable-pprof", "DCGM_EXPORTER_ENABLE_PPROF", "true"),
    ("--web-systemd-socket", "DCGM_EXPORTER_SYSTEMD_SOCKET", "true"),
    ("--config-file", "DCGM_EXPORTER_CONFIG_FILE", "/etc/dcgm-exporter/config.yaml"),
];

/// Flags and variables that mean something, in a value that changes little.
const SERVED: [(&str, &str, &str); 14] = [
    ("--collect-interval", "DCGM_EXPORTER_INTERVAL", "30000"),
    ("--kubernetes", "DCGM_EXPORTER_KUBERNETES", "false"),
    ("--configmap-data", "DCGM_EXPORTER_CONFIGMAP_DATA", "none"),
    ("--devices", "DCGM_EXPORTER_DEVICES_STR", "f"),
    ("--kubernetes-enable-dra", "KUBERNETES_ENABLE_DRA", "true"),
    ("--no-hostname", "DCGM_EXPORTER_NO_HOSTNAME", "0"),
    ("--replace-blanks-in-model-name", "DCGM_EXPORTER_REPLACE_BLANKS_IN_MODEL_NAME", "f"),
    ("--debug", "DCGM_EXPORTER_DEBUG", "False"),
    ("--log-format", "DCGM_EXPORTER_LOG_FORMAT", "text"),
    ("--pod-resources-kubelet-socket", "DCGM_POD_RESOURCES_KUBELET_SOCKET", "/run/kubelet.sock"),
    ("--nvidia-resource-names", "NVIDIA_RESOURCE_NAMES", "nvidia.com/gpu.shared,example.com/gpu"),
    ("--web-read-timeout", "DCGM_EXPORTER_WEB_READ_TIMEOUT", "10s"),
    ("--web-write-timeout", "DCGM_EXPORTER_WEB_WRITE_TIMEOUT", "30s"),
    ("--enable-exporter-metrics", "DCGM_EXPORTER_ENABLE_EXPORTER_METRICS", "T"),
];

/// The warning about `--kubernetes-enable-dra` beside `--kubernetes=false`.
const DRA_ALONE: &str = "--kubernetes-enable-dra has no effect without -k";

/// A counters file that gives no warning of its own.
fn quiet_counters(node: &Node) -> std::path::PathBuf {
    let file = node.path().join("counters.csv");
    std::fs::write(&file, "DCGM_FI_DEV_GPU_TEMP, gauge, Temperature\n").unwrap();
    file
}

#[tokio::test]
async fn b1_every_flag_is_accepted_and_one_without_effect_is_one_warning() {
    let node = Node::new(TWO);
    let counters = quiet_counters(&node);
    let exporter = node
        .exporter_with(|command| {
            command.arg("-f").arg(&counters);
            for (flag, _, value) in WITHOUT_EFFECT.iter().chain(&SERVED) {
                command.arg(format!("{flag}={value}"));
            }
            command.args(["--container-labels", "--container-runtime-socket=/run/containerd.sock"]);
        })
        .await;
    exporter.until("values", |page| page.want("DCGM_FI_DEV_GPU_TEMP", &[("gpu", "1")])).await;
    for (flag, ..) in WITHOUT_EFFECT {
        exporter.program.logs(&format!("{flag} has no effect here"), 1).await;
    }
    exporter.program.logs(DRA_ALONE, 1).await;
    exporter.program.logs("WARN", WITHOUT_EFFECT.len() + 3).await;
}

#[tokio::test]
async fn b1_every_variable_is_accepted_and_one_without_effect_is_one_warning() {
    let node = Node::new(TWO);
    let counters = quiet_counters(&node);
    let exporter = node
        .exporter_with(|command| {
            command.env("DCGM_EXPORTER_COLLECTORS", &counters);
            for (_, variable, value) in WITHOUT_EFFECT.iter().chain(&SERVED) {
                command.env(variable, value);
            }
        })
        .await;
    exporter.until("values", |page| page.want("DCGM_FI_DEV_GPU_TEMP", &[("gpu", "1")])).await;
    for (flag, ..) in WITHOUT_EFFECT {
        exporter.program.logs(&format!("{flag} has no effect here"), 1).await;
    }
    exporter.program.logs(DRA_ALONE, 1).await;
    exporter.program.logs("WARN", WITHOUT_EFFECT.len() + 1).await;
}

/// What Go's flag package takes: one dash before long names, switches with and without a value, a
/// variable set to nothing.
#[tokio::test]
async fn b1_flags_as_go_reads_them() {
    let node = Node::new(TWO);
    let counters = quiet_counters(&node);
    let exporter = node
        .exporter_with(|command| {
            command.arg("-collectors").arg(&counters);
            command.args([
                "-rbmn",
                "-collect-interval=500",
                "--kubernetes=false",
                "-debug=f",
                "-log-format",
                "json",
            ]);
            for (_, variable, _) in WITHOUT_EFFECT.iter().chain(&SERVED) {
                command.env(variable, "");
            }
        })
        .await;
    let page = exporter
        .until("values", |page| page.want("DCGM_FI_DEV_GPU_TEMP", &[("gpu", "1")]).map(|_| page.clone()))
        .await;
    let sample = page.all("DCGM_FI_DEV_GPU_TEMP", &[("gpu", "0")])[0];
    assert_eq!(sample.labels["modelName"], "NVIDIA-H100-80GB-HBM3");
    assert_eq!(exporter.program.count_logged("WARN"), 0, "{}", exporter.program.log());
    assert!(exporter.program.log().starts_with('{'), "{}", exporter.program.log());
}

#[test]
fn b1_a_log_level_that_dcgm_does_not_have_is_refused() {
    let refused = |args: &[&str]| {
        let output = run(Command::new(built("podgauge-exporter")).args(args).env_remove("RUST_LOG"));
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, log) = refused(&["--dcgm-log-level", "LOUD"]);
    assert!(code == Some(2) && log.contains("LOUD") && log.contains("VERB"), "{log}");
    let (code, log) = refused(&["-d", "x:1"]);
    assert!(code == Some(2) && log.contains("x:1") && log.contains("g:0,2-4"), "{log}");
}

async fn first_page(node: &Node, args: &[&str], environment: Option<&str>) -> Page {
    let exporter = node
        .exporter_with(|command| {
            command.args(args).env_remove("NODE_NAME");
            if let Some(name) = environment {
                command.env("NODE_NAME", name);
            }
        })
        .await;
    exporter.until("values", |page| page.want("podgauge_gpu_up", &[("gpu", "0")]).map(|_| page.clone())).await
}

#[tokio::test]
async fn a10_n_removes_the_hostname_label_and_node_name_wins_over_the_hosts() {
    let node = Node::new(TWO);
    let label = |page: &Page| page.samples[0].labels.get("hostname").cloned();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    assert_eq!(label(&first_page(&node, &[], None).await), Some(host));
    assert_eq!(label(&first_page(&node, &[], Some("node-7")).await), Some("node-7".to_owned()));
    let without = first_page(&node, &["-n"], Some("node-7")).await;
    assert!(!without.text.contains("hostname") && !without.text.contains("Hostname"), "{}", without.text);
}

#[tokio::test]
async fn a11_the_hostname_label_is_spelled_as_asked() {
    let node = Node::new(TWO);
    for (spelling, lower, upper) in
        [("hostname", Some("n7"), None), ("Hostname", None, Some("n7")), ("both", Some("n7"), Some("n7"))]
    {
        let page = first_page(&node, &["--hostname-label", spelling], Some("n7")).await;
        // The exporter's own line is of no GPU.
        for sample in page.samples.iter().filter(|sample| sample.name != START_TIME) {
            let label = |name: &str| sample.labels.get(name).map(String::as_str);
            assert_eq!((label("hostname"), label("Hostname")), (lower, upper), "{spelling}: {sample:?}");
        }
    }
}

#[tokio::test]
async fn selected_gpus_alone_are_served_and_an_unknown_one_ends_the_start() {
    let node = Node::new("gpus: [{}, {}, {}, {}]");
    let served = |page: &Page| -> Vec<String> {
        page.all("podgauge_gpu_up", &[]).iter().map(|sample| sample.labels["gpu"].clone()).collect()
    };
    assert_eq!(served(&first_page(&node, &["-d", "f"], None).await), ["0", "1", "2", "3"]);
    assert_eq!(served(&first_page(&node, &["--devices=g:0,2-3"], None).await), ["0", "2", "3"]);

    let mut unknown = node
        .exporter_with(|command| {
            command.args(["-d", "g:1,6"]);
        })
        .await;
    let status = unknown.program.ended().await;
    assert_eq!(status.code(), Some(1));
    unknown.program.logs("there is no GPU 6; this node has 4", 1).await;

    // Where the driver comes later, so does the verdict.
    let late = Node::new("gpus: []\nerrors: {nvmlInit_v2: DRIVER_NOT_LOADED}");
    let mut exporter = late
        .exporter_with(|command| {
            command.args(["-d", "g:3"]);
        })
        .await;
    exporter.ready(503).await;
    late.play(TWO);
    assert_eq!(exporter.program.ended().await.code(), Some(1));
    exporter.program.logs("there is no GPU 3; this node has 2", 1).await;
}

/// People write a blank after a comma, and what comes from files ends in a line end.
#[tokio::test]
async fn lists_with_blanks_and_line_ends_are_read_and_a_name_that_matches_nothing_is_reported_once() {
    let node = Node::new(
        "gpus: [{}, {}]\npods:\n\
         - {name: renamed, labels: {app: x, team: y}, containers: [{devices: ['0'], resource: nvidia.com/gpu.shared}]}\n",
    );
    let _kubelet = node.kubelet().await;
    let mut exporter = node
        .exporter_with(|command| {
            node.in_kubernetes(command);
            command.env("NVIDIA_RESOURCE_NAMES", "example.com/none, nvidia.com/gpu.shared,\n");
            command.env("DCGM_EXPORTER_DEVICES_STR", "g: 0, 1\n");
            command.env("DCGM_EXPORTER_KUBERNETES_ENABLE_POD_UID", "true\n");
        })
        .await;
    let page = exporter
        .until("the pod", |page| {
            page.want("DCGM_FI_DEV_GPU_TEMP", &[("pod", "renamed")]).map(|_| page.clone())
        })
        .await;
    assert!(page.all("DCGM_FI_DEV_GPU_TEMP", &[("pod", "renamed")])[0].labels.contains_key("pod_uid"));
    exporter.program.logged("--nvidia-resource-names: no device of this node is of example.com/none").await;
    assert_eq!(exporter.program.count_logged("example.com/none"), 1, "{}", exporter.program.log());
    // A blank before a name is no part of it.
    let log = exporter.program.log();
    assert!(!log.lines().any(|line| line.contains("no device of") && line.contains("gpu.shared")), "{log}");
}

#[tokio::test]
async fn flags_that_need_another_one_are_reported_without_it() {
    let node = Node::new(TWO);
    let exporter = node
        .exporter_with(|command| {
            command.args(["--kubernetes-enable-pod-labels", "--kubernetes-virtual-gpus"]);
        })
        .await;
    for flag in ["--kubernetes-enable-pod-labels", "--kubernetes-virtual-gpus"] {
        exporter.program.logs(&format!("{flag} has no effect without -k"), 1).await;
    }
}

#[tokio::test]
async fn a_variable_that_no_flag_has_is_reported_once() {
    let node = Node::new(TWO);
    let exporter = node
        .exporter_with(|command| {
            command.env("DCGM_EXPORTER_COLECTORS", "/x.csv");
            // As Kubernetes sets them beside a Service of this name.
            command
                .env("DCGM_EXPORTER_SERVICE_HOST", "10.0.0.1")
                .env("DCGM_EXPORTER_PORT_9400_TCP_PORT", "9400");
        })
        .await;
    exporter.until("values", |page| page.want("DCGM_FI_DEV_GPU_TEMP", &[("gpu", "1")])).await;
    for text in ["are they spelled right? DCGM_EXPORTER_COLECTORS", "WARN"] {
        exporter.program.logs(text, 1).await;
    }
}
