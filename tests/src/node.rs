//! A simulated GPU node: a scenario file, what is made from it, and the exporter on it.

use std::path::{Path, PathBuf};
use std::process::Command;

use podgauge_sim::kubelet::{Kubelet, KubeletHandle, KubeletOptions};
use podgauge_sim_nvml::scenario::Scenario;
use podgauge_sim_nvml::trees;
use tempfile::TempDir;

use crate::nvml_library;
use crate::program::Exporter;

/// A folder with a scenario, and the trees and the kubelet's socket made from it.
#[derive(Debug)]
pub struct Node {
    folder: TempDir,
}

impl Node {
    /// A node on which this YAML text is played.
    pub fn new(yaml: &str) -> Self {
        let node = Self { folder: tempfile::tempdir().unwrap() };
        node.play(yaml);
        node
    }

    /// Plays another text from now on. The file is replaced whole: no reader sees half of it.
    pub fn play(&self, yaml: &str) {
        let scenario = Scenario::parse(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
        trees::write(&self.trees(), &scenario).unwrap();
        let next = self.folder.path().join("next.yaml");
        std::fs::write(&next, yaml).unwrap();
        std::fs::rename(next, self.scenario()).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn scenario(&self) -> PathBuf {
        self.folder.path().join("scenario.yaml")
    }

    /// The file trees of the node: proc, pod-logs and container-logs.
    pub fn trees(&self) -> PathBuf {
        self.folder.path().join("trees")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("kubelet.sock")
    }

    /// Starts the kubelet, which answers at once.
    pub async fn kubelet(&self) -> KubeletHandle {
        Kubelet::start(self.socket(), self.scenario(), KubeletOptions::default()).await.unwrap()
    }

    /// Starts the exporter on this node without Kubernetes.
    pub async fn exporter(&self) -> Exporter {
        self.exporter_with(|_| {}).await
    }

    /// Starts the exporter on this node with Kubernetes; the kubelet is [`kubelet`](Self::kubelet).
    pub async fn exporter_in_kubernetes(&self) -> Exporter {
        self.exporter_with(|command| self.in_kubernetes(command)).await
    }

    /// As [`exporter_in_kubernetes`](Self::exporter_in_kubernetes), with `podgauge_exporter_…` on its page.
    pub async fn exporter_in_kubernetes_with_own_metrics(&self) -> Exporter {
        self.exporter_with(|command| {
            self.in_kubernetes(command);
            command.arg("--enable-exporter-metrics");
        })
        .await
    }

    /// Adds the arguments that Kubernetes takes.
    pub fn in_kubernetes(&self, command: &mut Command) {
        self.in_kubernetes_at(command, &self.socket());
    }

    /// As [`in_kubernetes`](Self::in_kubernetes), with this as the kubelet's socket.
    pub fn in_kubernetes_at(&self, command: &mut Command, socket: &Path) {
        command.arg("-k").arg("--pod-resources-kubelet-socket").arg(socket);
        for (flag, tree) in [
            ("--path.procfs", "proc"),
            ("--path.pod-logs", "pod-logs"),
            ("--path.container-logs", "container-logs"),
        ] {
            command.arg(flag).arg(self.trees().join(tree));
        }
    }

    /// Starts the exporter on this node.
    pub async fn exporter_with(&self, configure: impl FnOnce(&mut Command)) -> Exporter {
        Exporter::start(|command| {
            command.arg("--nvml-library").arg(nvml_library()).env("PODGAUGE_SIM_SCENARIO", self.scenario());
            command.env("NODE_NAME", "gpu-node-0");
            configure(command);
        })
        .await
    }
}
