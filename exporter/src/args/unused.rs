//! Owns dcgm-exporter's flags that have no effect here: taken, so that its manifests start this
//! program, and answered with one warning each.

use clap::Parser;
use podgauge_common::duration::{parse_go_bool, parse_go_duration};

/// Levels that DCGM's log has.
const DCGM_LEVELS: [&str; 7] = ["NONE", "FATAL", "ERROR", "WARN", "INFO", "DEBUG", "VERB"];

/// Flags that have no effect here. `None`: neither the flag nor its variable is given.
#[derive(Debug, Clone, Parser)]
#[command(next_help_heading = "Taken from dcgm-exporter without effect")]
pub(crate) struct Unused {
    /// CPUs: not watched.
    #[arg(short = 'p', long, env = "DCGM_EXPORTER_CPU_DEVICES_STR", value_name = "DEVICES")]
    cpu_devices: Option<String>,

    /// NVSwitches: not watched.
    #[arg(short = 's', long, env = "DCGM_EXPORTER_OTHER_DEVICES_STR", value_name = "DEVICES")]
    switch_devices: Option<String>,

    /// DCGM's host engine: not asked.
    #[arg(short = 'r', long, env = "DCGM_REMOTE_HOSTENGINE_INFO", value_name = "HOST:PORT")]
    remote_hostengine_info: Option<String>,

    /// Made-up GPUs: load podgauge-sim's library with --nvml-library for that.
    #[arg(long, env = "DCGM_EXPORTER_USE_FAKE_GPUS", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    fake_gpus: Option<bool>,

    /// DCGM's own log: there is none.
    #[arg(long, env = "DCGM_EXPORTER_ENABLE_DCGM_LOG", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_dcgm_log: Option<bool>,

    /// Level of DCGM's own log.
    #[arg(long, env = "DCGM_EXPORTER_DCGM_LOG_LEVEL", value_name = "LEVEL", value_parser = DCGM_LEVELS)]
    dcgm_log_level: Option<String>,

    /// Folder of files that tell HPC jobs.
    #[arg(long, env = "DCGM_HPC_JOB_MAPPING_DIR", value_name = "PATH")]
    hpc_job_mapping_dir: Option<String>,

    /// Dumps of internal state: there are none.
    #[arg(long, env = "DCGM_EXPORTER_DUMP_ENABLED", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    dump_enabled: Option<bool>,

    /// See --dump-enabled.
    #[arg(long, env = "DCGM_EXPORTER_DUMP_DIRECTORY", value_name = "PATH")]
    dump_directory: Option<String>,

    /// See --dump-enabled. Hours, or a duration.
    #[arg(long, env = "DCGM_EXPORTER_DUMP_RETENTION", value_name = "TIME")]
    dump_retention: Option<String>,

    /// See --dump-enabled.
    #[arg(long, env = "DCGM_EXPORTER_DUMP_COMPRESSION", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    dump_compression: Option<bool>,

    /// Checks for DCGM's libraries: there are none to skip.
    #[arg(long, env = "DISABLE_STARTUP_VALIDATE", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    disable_startup_validate: Option<bool>,

    /// GPUs that come and go: always noticed.
    #[arg(long, env = "DCGM_EXPORTER_ENABLE_GPU_BIND_UNBIND_WATCH", value_name = "BOOL",
        value_parser = parse_go_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_gpu_bind_unbind_watch: Option<bool>,

    /// See --enable-gpu-bind-unbind-watch.
    #[arg(long, env = "DCGM_EXPORTER_GPU_BIND_UNBIND_POLL_INTERVAL", value_name = "DURATION",
        value_parser = parse_go_duration)]
    gpu_bind_unbind_poll_interval: Option<std::time::Duration>,

    /// Go's profiler: there is none.
    #[arg(long, env = "DCGM_EXPORTER_ENABLE_PPROF", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_pprof: Option<bool>,

    /// Sockets from systemd.
    #[arg(long, env = "DCGM_EXPORTER_SYSTEMD_SOCKET", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    web_systemd_socket: Option<bool>,

    /// Configuration as YAML.
    #[arg(long, env = "DCGM_EXPORTER_CONFIG_FILE", value_name = "FILE")]
    config_file: Option<String>,

    /// Labels from the container runtime.
    #[arg(long, env = "DCGM_EXPORTER_CONTAINER_LABELS", value_name = "BOOL", value_parser = parse_go_bool,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    container_labels: Option<bool>,

    /// See --container-labels.
    #[arg(long, env = "DCGM_CONTAINER_RUNTIME_SOCKET", value_name = "PATH")]
    container_runtime_socket: Option<String>,
}

// === impl Unused ===

impl Unused {
    /// One line for each that is given. A switch that is off asks for nothing.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let on = |switch: Option<bool>| switch == Some(true);
        let level = self.dcgm_log_level.as_deref().is_some_and(|level| level != "NONE");
        [
            (self.cpu_devices.is_some(), "--cpu-devices", "CPUs are not watched"),
            (self.switch_devices.is_some(), "--switch-devices", "NVSwitches are not watched"),
            (
                self.remote_hostengine_info.is_some(),
                "--remote-hostengine-info",
                "GPUs are read through NVML on this node, no DCGM host engine is asked",
            ),
            (
                on(self.fake_gpus),
                "--fake-gpus",
                "there are no made-up GPUs inside; give podgauge-sim's libpodgauge_sim_nvml.so to --nvml-library",
            ),
            (on(self.enable_dcgm_log), "--enable-dcgm-log", "there is no DCGM whose log could be kept"),
            (level, "--dcgm-log-level", "there is no DCGM whose log could be kept; --debug logs more"),
            (self.hpc_job_mapping_dir.is_some(), "--hpc-job-mapping-dir", "HPC jobs are not read yet"),
            (on(self.dump_enabled), "--dump-enabled", "there are no dumps; --debug logs more"),
            (self.dump_directory.is_some(), "--dump-directory", "there are no dumps"),
            (self.dump_retention.is_some(), "--dump-retention", "there are no dumps"),
            (on(self.dump_compression), "--dump-compression", "there are no dumps"),
            (
                on(self.disable_startup_validate),
                "--disable-startup-validate",
                "there is no DCGM library to check for",
            ),
            (
                on(self.enable_gpu_bind_unbind_watch),
                "--enable-gpu-bind-unbind-watch",
                "GPUs that come and go are noticed without it",
            ),
            (
                self.gpu_bind_unbind_poll_interval.is_some(),
                "--gpu-bind-unbind-poll-interval",
                "GPUs are counted every 5 s",
            ),
            (on(self.enable_pprof), "--enable-pprof", "there is no Go runtime to profile"),
            (
                on(self.web_systemd_socket),
                "--web-systemd-socket",
                "sockets from systemd are not taken yet; --address is listened on",
            ),
            (
                self.config_file.is_some(),
                "--config-file",
                "the YAML configuration is not read yet; give flags and --collectors",
            ),
            (
                on(self.container_labels),
                "--container-labels",
                "the container runtime is not asked yet",
            ),
            (
                self.container_runtime_socket.is_some(),
                "--container-runtime-socket",
                "the container runtime is not asked yet",
            ),
        ]
        .into_iter()
        .filter(|(given, ..)| *given)
        .map(|(_, flag, why)| format!("{flag} has no effect here: {why}"))
        .collect()
    }
}
