//! A simulated node for the shipped exporter: scenario, file trees, kubelet.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use podgauge_sim::kubelet::{Kubelet, KubeletHandle, KubeletOptions};
use podgauge_sim_nvml::scenario::Scenario;
use podgauge_sim_nvml::trees;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::process::{Program, Programs};

/// A folder with a scenario and what is made of it. The kubelet runs in this process.
#[derive(Debug)]
pub(crate) struct Node {
    folder: TempDir,
    _kubelet: KubeletHandle,
}

/// A running podgauge-exporter.
#[derive(Debug)]
pub(crate) struct Exporter {
    pub(crate) program: Program,
    pub(crate) address: SocketAddr,
}

impl Node {
    /// Must be given the runtime that its kubelet shall run on.
    pub(crate) fn start(runtime: &Runtime, yaml: &str) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let scenario = Scenario::parse(yaml).map_err(anyhow::Error::msg)?;
        trees::write(&folder.path().join("trees"), &scenario)?;
        std::fs::write(folder.path().join("scenario.yaml"), yaml)?;
        let socket = folder.path().join("kubelet.sock");
        let kubelet = Kubelet::start(
            socket,
            folder.path().join("scenario.yaml"),
            KubeletOptions { empty_for: std::time::Duration::ZERO, ..KubeletOptions::default() },
        );
        Ok(Self { _kubelet: runtime.block_on(kubelet)?, folder })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn scenario(&self) -> PathBuf {
        self.folder.path().join("scenario.yaml")
    }

    /// Plays another scenario from when this returns. The file is replaced whole.
    pub(crate) fn play(&self, yaml: &str) -> anyhow::Result<()> {
        let next = self.folder.path().join("next.yaml");
        std::fs::write(&next, yaml)?;
        std::fs::rename(next, self.scenario()).context("cannot replace the scenario")
    }

    /// Starts the exporter with pods, and gives it once it listens.
    pub(crate) fn exporter(&self, programs: &Programs, address: SocketAddr) -> anyhow::Result<Exporter> {
        let mut command = Command::new(&programs.exporter);
        command
            .env_remove("RUST_LOG")
            .env("PODGAUGE_SIM_SCENARIO", self.scenario())
            .env("NODE_NAME", Scenario::read(&self.scenario())?.node)
            .arg("-k")
            .args(["-a", &address.to_string(), "--enable-exporter-metrics"])
            .arg("--nvml-library")
            .arg(&programs.nvml_library)
            .arg("--pod-resources-kubelet-socket")
            .arg(self.path().join("kubelet.sock"))
            .arg("--path.pod-logs")
            .arg(self.path().join("trees/pod-logs"));
        Ok(Exporter { program: Program::start("podgauge-exporter", command)?, address })
    }
}

impl Exporter {
    /// One page.
    pub(crate) fn page(&self) -> std::io::Result<String> {
        crate::http1::get(self.address, "/metrics")
    }
}

/// A node of so many GPUs, each of which a pod holds. `load` is a GPU's, as YAML.
pub(crate) fn one_pod_a_gpu(node: &str, gpus: usize, load: impl Fn(usize) -> String) -> String {
    let mut yaml = format!("node: {node}\ngpus:\n");
    for gpu in 0..gpus {
        yaml.push_str(&format!("  - load: {}\n", load(gpu)));
    }
    yaml.push_str("pods:\n");
    for gpu in 0..gpus {
        yaml.push_str(&format!(
            "  - {{name: worker-{gpu}, labels: {{app: worker}}, containers: [{{devices: [\"{gpu}\"]}}]}}\n"
        ));
    }
    yaml
}

/// A runtime for what is simulated.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
