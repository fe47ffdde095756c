//! The command line: dcgm-exporter's names and variables, and podgauge's additions.

mod go;
mod unused;
mod variables;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use podgauge_common::duration::{parse_go_bool, parse_go_duration};
use podgauge_common::logging;

use crate::counters::MetricNames;
use crate::gpu::{DeviceSelection, EventWindows, ProcessSource};
use crate::source::ConfigMapName;

/// Shortest default of the utilization window.
const SHORTEST_WINDOW: Duration = Duration::from_secs(15);
/// Recent windows that make sense, in seconds: an owner's account is kept for ten minutes.
const RECENT_WINDOWS: std::ops::RangeInclusive<u64> = 10..=600;
/// A day: what is kept of events is bounded by it.
const LONGEST_EVENT_WINDOW_MS: u64 = 86_400_000;

/// GPU utilization per pod as Prometheus metrics, under the names of NVIDIA's dcgm-exporter.
#[derive(Debug, Clone, Parser)]
#[command(name = "podgauge-exporter", version, about, args_override_self = true)]
pub(crate) struct Args {
    /// Counters file (CSV). Default: /etc/dcgm-exporter/default-counters.csv, else the built-in one.
    #[arg(short = 'f', long, env = "DCGM_EXPORTER_COLLECTORS", value_name = "FILE")]
    pub(crate) collectors: Option<PathBuf>,

    /// ConfigMap whose key `metrics` is the counters file, in place of -f.
    #[arg(
        short = 'm',
        long,
        env = "DCGM_EXPORTER_CONFIGMAP_DATA",
        value_name = "NAMESPACE:NAME",
        default_value = "none"
    )]
    pub(crate) configmap_data: String,

    /// Names and units of DCGM's families: classic, as the counters file writes them; or 4.9, all of
    /// them as dcgm-exporter 4.9 has them.
    #[arg(long, env = "DCGM_EXPORTER_METRIC_NAMES", value_name = "PROFILE", default_value = "classic")]
    pub(crate) metric_names: MetricNames,

    /// How the API server is reached, for -m, pod labels and claims. Default: the pod's service account.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Which GPUs to serve: f all, g[:IDS] GPUs, i[:IDS] MIG instances; IDS like 0,2-4. Join two with +.
    #[arg(short = 'd', long, env = "DCGM_EXPORTER_DEVICES_STR", default_value = "f", value_name = "DEVICES")]
    pub(crate) devices: DeviceSelection,

    /// Address to serve on: a port like :9400 on every address of IPv4 and IPv6, or 127.0.0.1:9400,
    /// localhost:9400, [::1]:9400.
    #[arg(
        short = 'a',
        long,
        env = "DCGM_EXPORTER_LISTEN",
        default_value = ":9400",
        value_name = "[HOST]:PORT"
    )]
    pub(crate) address: String,

    /// How often fields other than utilization are read, in milliseconds.
    #[arg(
        short = 'c', long, env = "DCGM_EXPORTER_INTERVAL", default_value = "1000", value_name = "MS",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub(crate) collect_interval: u64,

    /// Label samples with the pods that use the GPUs.
    #[arg(
        short = 'k', long, env = "DCGM_EXPORTER_KUBERNETES", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true"
    )]
    pub(crate) kubernetes: bool,

    /// Socket of the kubelet's pod-resources API; unix:// before the path is allowed.
    #[arg(
        long,
        env = "DCGM_POD_RESOURCES_KUBELET_SOCKET",
        value_parser = parse_socket,
        value_name = "PATH",
        default_value = "/var/lib/kubelet/pod-resources/kubelet.sock"
    )]
    pub(crate) pod_resources_kubelet_socket: PathBuf,

    /// Resource names that mean GPUs, besides nvidia.com/…. An id that names a GPU of this node counts under any name.
    #[arg(
        long, env = "NVIDIA_RESOURCE_NAMES", value_delimiter = ',', value_parser = parse_trimmed, value_name = "NAMES"
    )]
    pub(crate) nvidia_resource_names: Vec<String>,

    /// Namespaces whose pods reserve GPUs for other pods and use none, as fractional schedulers have them.
    #[arg(
        long, value_delimiter = ',', default_value = "kai-resource-reservation", value_name = "NAMES",
        value_parser = parse_trimmed
    )]
    pub(crate) reservation_namespaces: Vec<String>,

    /// How the device plugin names devices: uid or device-name. Both are understood whatever this says.
    #[arg(
        long, env = "DCGM_EXPORTER_KUBERNETES_GPU_ID_TYPE", value_name = "TYPE", default_value = "uid",
        value_parser = ["uid", "device-name"]
    )]
    pub(crate) kubernetes_gpu_id_type: String,

    /// One copy of each sample for every container and replica, with the label vgpu.
    #[arg(
        long, env = "KUBERNETES_VIRTUAL_GPUS", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true"
    )]
    pub(crate) kubernetes_virtual_gpus: bool,

    /// Put pods' labels on samples. Watches the pods of this node.
    #[arg(
        long, env = "DCGM_EXPORTER_KUBERNETES_ENABLE_POD_LABELS", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true"
    )]
    pub(crate) kubernetes_enable_pod_labels: bool,

    /// Put pods' UIDs on samples.
    #[arg(
        long, env = "DCGM_EXPORTER_KUBERNETES_ENABLE_POD_UID", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true"
    )]
    pub(crate) kubernetes_enable_pod_uid: bool,

    /// Pod labels whose keys match one of these are put on samples. Default: all.
    #[arg(
        long,
        env = "DCGM_EXPORTER_KUBERNETES_POD_LABEL_ALLOWLIST_REGEX",
        value_delimiter = ',',
        value_parser = parse_trimmed,
        value_name = "PATTERNS"
    )]
    pub(crate) kubernetes_pod_label_allowlist_regex: Vec<String>,

    /// Label samples of devices that pods hold by claims of dynamic resource allocation. Watches the
    /// ResourceSlices of this node and reads its pods' ResourceClaims; needs Kubernetes 1.34.
    #[arg(
        long, env = "KUBERNETES_ENABLE_DRA", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true"
    )]
    pub(crate) kubernetes_enable_dra: bool,

    /// Leave the hostname label out.
    #[arg(
        short = 'n', long, env = "DCGM_EXPORTER_NO_HOSTNAME", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true"
    )]
    pub(crate) no_hostname: bool,

    /// Name labels as dcgm-exporter 1.x did: uuid, pod_name, pod_namespace, container_name.
    #[arg(
        short = 'o', long, env = "DCGM_EXPORTER_USE_OLD_NAMESPACE", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true"
    )]
    pub(crate) use_old_namespace: bool,

    /// How long an XID counts for DCGM_EXP_XID_ERRORS_COUNT, in milliseconds.
    #[arg(
        short = 'x', long, env = "DCGM_EXPORTER_XID_COUNT_WINDOW_SIZE", default_value = "300000", value_name = "MS",
        value_parser = clap::value_parser!(u64).range(1..=LONGEST_EVENT_WINDOW_MS)
    )]
    pub(crate) xid_count_window_size: u64,

    /// How long a reading counts for DCGM_EXP_CLOCK_EVENTS_COUNT, in milliseconds.
    #[arg(
        long, env = "DCGM_EXPORTER_CLOCK_EVENTS_COUNT_WINDOW_SIZE", default_value = "300000", value_name = "MS",
        value_parser = clap::value_parser!(u64).range(1..=LONGEST_EVENT_WINDOW_MS)
    )]
    pub(crate) clock_events_count_window_size: u64,

    /// Spelling of the hostname label: hostname, Hostname or both.
    #[arg(long, default_value = "hostname", value_name = "SPELLING", value_parser = ["hostname", "Hostname", "both"])]
    pub(crate) hostname_label: String,

    /// The node's name: value of the hostname label. Default: the host's name.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub(crate) node_name: Option<String>,

    /// NVML library to load in place of the driver's libnvidia-ml.so.1.
    #[arg(long, value_name = "PATH")]
    pub(crate) nvml_library: Option<PathBuf>,

    /// Time over which utilization gauges are the mean. Default: 15s, or -c if that is longer.
    #[arg(long, value_name = "DURATION", value_parser = parse_go_duration)]
    pub(crate) utilization_window: Option<Duration>,

    /// Window of podgauge_gpu_recent_…: the counters' growth that an adapter reads right after its start.
    /// Whole seconds, 10s to 10m; an adapter uses it for metrics with the same window.
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = parse_recent_window)]
    pub(crate) recent_window: Duration,

    /// Where the host's pod logs are: their folder names tell a pod's UID.
    #[arg(long = "path.pod-logs", default_value = "/var/log/pods", value_name = "PATH")]
    pub(crate) path_pod_logs: PathBuf,

    /// Where the host's container logs are: their file names tell which container a process is in.
    #[arg(long = "path.container-logs", default_value = "/var/log/containers", value_name = "PATH")]
    pub(crate) path_container_logs: PathBuf,

    /// Where the host's procfs is: cgroups tell which pod a process is in.
    #[arg(long = "path.procfs", default_value = "/proc", value_name = "PATH")]
    pub(crate) path_procfs: PathBuf,

    /// Which source divides the use of a shared GPU: nvml, the driver's samples, an estimate;
    /// context-switches, the driver's trace of them, which takes CAP_SYS_ADMIN or the user of the processes;
    /// auto, the trace where it can be had, else nvml.
    #[arg(long, value_name = "SOURCE", default_value = "auto")]
    pub(crate) process_source: ProcessSource,

    /// Where the driver's device files are: context switches are traced through them.
    #[arg(long = "path.device-files", default_value = "/dev", value_name = "PATH")]
    pub(crate) path_devices: PathBuf,

    /// Serve the exporter's own metrics (podgauge_exporter_…) too.
    #[arg(
        long, env = "DCGM_EXPORTER_ENABLE_EXPORTER_METRICS", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true"
    )]
    pub(crate) enable_exporter_metrics: bool,

    /// Write the model's name with - in place of blanks.
    #[arg(
        long, alias = "rbmn", env = "DCGM_EXPORTER_REPLACE_BLANKS_IN_MODEL_NAME", value_name = "BOOL",
        value_parser = parse_go_bool, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true"
    )]
    pub(crate) replace_blanks_in_model_name: bool,

    /// TLS, client certificates, passwords and a rate limit: a web configuration file as Prometheus' exporters have.
    #[arg(long, env = "DCGM_EXPORTER_WEB_CONFIG_FILE", value_name = "FILE")]
    pub(crate) web_config_file: Option<PathBuf>,

    /// Time for a request's head. Clients that were not served before have 5s at most.
    #[arg(
        long, env = "DCGM_EXPORTER_WEB_READ_TIMEOUT", default_value = "10s", value_name = "DURATION",
        value_parser = parse_some_time
    )]
    pub(crate) web_read_timeout: Duration,

    /// Time that an answer may stand still because the client does not read.
    #[arg(
        long, env = "DCGM_EXPORTER_WEB_WRITE_TIMEOUT", default_value = "30s", value_name = "DURATION",
        value_parser = parse_some_time
    )]
    pub(crate) web_write_timeout: Duration,

    /// /health turns red after NVML has not returned for so long.
    #[arg(long, default_value = "120s", value_name = "DURATION", value_parser = parse_some_time)]
    pub(crate) stuck_limit: Duration,

    /// /health is red while no GPU answers.
    #[arg(
        long, env = "DCGM_EXPORTER_HEALTH_REQUIRE_GPUS", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true"
    )]
    pub(crate) health_require_gpus: bool,

    /// How log lines are written: text or json.
    #[arg(long, env = "DCGM_EXPORTER_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub(crate) log_format: logging::Format,

    /// Log more.
    #[arg(
        long, env = "DCGM_EXPORTER_DEBUG", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true"
    )]
    pub(crate) debug: bool,

    #[command(flatten)]
    pub(crate) unused: unused::Unused,
}

impl Args {
    /// Reads the command line as Go would, and the variables.
    pub(crate) fn from_go(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut args: Self = go::parse(args)?;
        // A list that ends in a comma has no empty name at its end.
        for list in [&mut args.nvidia_resource_names, &mut args.kubernetes_pod_label_allowlist_regex] {
            list.retain(|name| !name.is_empty());
        }
        Ok(args)
    }

    /// Warnings about the environment, logged before anything else.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let unknown = variables::unknown(&<Self as clap::CommandFactory>::command(), std::env::vars_os());
        self.unused.warnings().into_iter().chain(self.without_kubernetes()).chain(unknown).collect()
    }

    /// Flags that have no effect because `-k` is not given.
    fn without_kubernetes(&self) -> impl Iterator<Item = String> {
        let given = [
            (self.kubernetes_enable_pod_labels, "--kubernetes-enable-pod-labels"),
            (self.kubernetes_enable_pod_uid, "--kubernetes-enable-pod-uid"),
            (self.kubernetes_enable_dra, "--kubernetes-enable-dra"),
            (self.kubernetes_virtual_gpus, "--kubernetes-virtual-gpus"),
        ];
        let kubernetes = self.kubernetes;
        given
            .into_iter()
            .filter(move |(on, _)| *on && !kubernetes)
            .map(|(_, flag)| format!("{flag} has no effect without -k (--kubernetes)"))
    }

    /// `-m`; the error names what is wrong with it.
    pub(crate) fn config_map(&self) -> Result<Option<ConfigMapName>, String> {
        match self.configmap_data.trim() {
            "" | "none" => Ok(None),
            text => text.parse().map(Some),
        }
    }

    /// `-c`.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_millis(self.collect_interval)
    }

    /// `--utilization-window`, or its default.
    pub(crate) fn window(&self) -> Duration {
        self.utilization_window.unwrap_or_else(|| SHORTEST_WINDOW.max(self.interval()))
    }

    /// `-x` and `--clock-events-count-window-size`.
    pub(crate) fn event_windows(&self) -> EventWindows {
        EventWindows {
            xids: Duration::from_millis(self.xid_count_window_size),
            clock_events: Duration::from_millis(self.clock_events_count_window_size),
        }
    }

    /// The name of this node in the cluster, if it is known for certain.
    pub(crate) fn node(&self) -> Option<&str> {
        self.node_name.as_deref().map(str::trim).filter(|name| !name.is_empty())
    }

    /// Names and value of the hostname labels.
    pub(crate) fn hostname_labels(&self) -> Vec<(&'static str, String)> {
        if self.no_hostname {
            return Vec::new();
        }
        let value = self.node().map_or_else(host_name, str::to_owned);
        match self.hostname_label.as_str() {
            "Hostname" => vec![("Hostname", value)],
            "both" => vec![("Hostname", value.clone()), ("hostname", value)],
            _ => vec![("hostname", value)],
        }
    }
}

/// One of a list: people write a blank after the comma, and files end in a line end.
fn parse_trimmed(text: &str) -> Result<String, std::convert::Infallible> {
    Ok(text.trim().to_owned())
}

/// A path, or the URL that gRPC's clients take for one.
fn parse_socket(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    let text = text.trim();
    let path = ["unix://", "unix:"].iter().find_map(|scheme| text.strip_prefix(scheme));
    Ok(PathBuf::from(path.unwrap_or(text)))
}

fn parse_recent_window(text: &str) -> Result<Duration, String> {
    match parse_go_duration(text)? {
        window if window.subsec_nanos() == 0 && RECENT_WINDOWS.contains(&window.as_secs()) => Ok(window),
        _ => Err("want whole seconds from 10s to 10m, like 60s".to_owned()),
    }
}

fn parse_some_time(text: &str) -> Result<Duration, String> {
    match parse_go_duration(text)? {
        Duration::ZERO => Err("0 leaves no time for it; write it like 10s".to_owned()),
        time => Ok(time),
    }
}

/// The kernel's name of this host; empty if it has none, and then there is no label.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Args {
        Args::from_go(std::iter::once("podgauge-exporter").chain(args.iter().copied()).map(OsString::from))
            .unwrap()
    }

    #[test]
    fn flags_as_dcgm_exporters_users_write_them() {
        let args = parse(&["-k", "-c", "30000", "-f", "/x.csv", "-a", ":9401"]);
        assert!(args.kubernetes);
        assert_eq!((args.interval(), args.window()), (Duration::from_secs(30), Duration::from_secs(30)));
        assert!(!parse(&["--kubernetes=false"]).kubernetes);
        assert!(parse(&["-k=t"]).kubernetes);
        assert!(parse(&["-rbmn"]).replace_blanks_in_model_name);
        assert!(!parse(&["-rbmn=false"]).replace_blanks_in_model_name);
        assert_eq!(parse(&["-collect-interval=5"]).interval(), Duration::from_millis(5));
        assert_eq!(parse(&[]).window(), Duration::from_secs(15));
        // The last counts, as with Go: people add flags to those of a chart.
        let twice = parse(&["-c", "5", "-k", "-a", ":1", "-c=7", "--kubernetes=false", "-a", ":2"]);
        assert_eq!((twice.interval(), twice.kubernetes), (Duration::from_millis(7), false));
        assert_eq!(twice.address, ":2");
        let windows = parse(&["-x", "5000", "-o"]).event_windows();
        assert_eq!((windows.xids, windows.clock_events), (Duration::from_secs(5), Duration::from_secs(300)));
    }

    #[test]
    fn lists_and_names_are_trimmed() {
        let args = parse(&["--nvidia-resource-names", "nvidia.com/a, nvidia.com/b,\n"]);
        assert_eq!(args.nvidia_resource_names, ["nvidia.com/a", "nvidia.com/b"]);
        let args = parse(&["--kubernetes-pod-label-allowlist-regex= ^app$ ,team\n"]);
        assert_eq!(args.kubernetes_pod_label_allowlist_regex, ["^app$", "team"]);
        assert_eq!(parse(&["--node-name", " n\n"]).node(), Some("n"));
        assert!(parse(&["-m", "none\n"]).config_map().unwrap().is_none());
        for socket in ["/run/k.sock", "unix:///run/k.sock", "unix:/run/k.sock\n"] {
            let args = parse(&["--pod-resources-kubelet-socket", socket]);
            assert_eq!(args.pod_resources_kubelet_socket, PathBuf::from("/run/k.sock"), "{socket}");
        }
    }

    #[test]
    fn hostname_label_spellings() {
        let labels = |args: &[&str]| -> Vec<(&'static str, String)> { parse(args).hostname_labels() };
        assert_eq!(labels(&["--node-name", "n", "-n"]), []);
        assert_eq!(labels(&["--node-name", "n"]), [("hostname", "n".to_owned())]);
        assert_eq!(labels(&["--node-name", "n", "--hostname-label", "both"]).len(), 2);
    }
}
