"""The programs of one run, their folder, and the scenario that the simulated kubelet plays."""

import json
import os
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time

from page import fetch, scrape, value

UID = "0f2e4a60-1111-4222-8333-444455556666"
CONTAINER = "c0ffee" * 10 + "c0ff"
NODE = "gpu-host"
POD = "load"
NAMESPACE = "demo"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Node:
    """An exporter on the driver's own library, and around it what a cluster would be."""

    def __init__(self, programs, uuid, card):
        self.programs, self.uuid, self.card = pathlib.Path(programs).resolve(), uuid, card
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="podgauge-gpu-"))
        self.scenario = self.work / "scenario.yaml"
        self.simulator = self.programs / "podgauge-sim"
        self.children = []

    def start(self, name, command, **more):
        log = open(self.work / f"{name}.log", "w")
        child = subprocess.Popen(command, stdout=log, stderr=log, **more)
        self.children.append((name, child))
        return child

    def wait_for(self, what, ask, seconds=40):
        end = time.time() + seconds
        last = None
        while time.time() < end:
            try:
                found = ask()
                if found:
                    return found
            except Exception as error:  # not there yet
                last = error
            time.sleep(0.1)
        for name, _ in self.children:
            log = self.work / f"{name}.log"
            if log.exists():
                print(f"--- {name}\n{log.read_text()[-3000:]}", file=sys.stderr)
        raise SystemExit(f"waited {seconds} s for {what}: {last}")

    def write_scenario(self, pods, replicas=None):
        """Pods as (name, UID, container id, devices); each holds what its devices say."""
        shared = f", replicas: {replicas}" if replicas else ""
        lines = [f"node: {NODE}", f"gpus: [{{uuid: {json.dumps(self.uuid)}, model: {json.dumps(self.card)}{shared}}}]", "pods:"]
        for name, uid, container, device in pods:
            lines.append(
                f"- {{namespace: {NAMESPACE}, name: {name}, uid: {uid}, labels: {{app: {name}}},"
                f" containers: [{{name: main, id: {json.dumps(container)}, devices: [{json.dumps(device)}]}}]}}"
            )
        after = self.work / "next.yaml"
        after.write_text("\n".join(lines) + "\n")
        after.rename(self.scenario)
        trees = self.work / "trees"
        self.start("trees", [self.simulator, "trees", "--scenario", self.scenario, "--to", trees]).wait()

    def exporter_command(self, address, *more):
        work = self.work
        return [self.programs / "podgauge-exporter", "-k", "-a", address, "--pod-resources-kubelet-socket", work / "kubelet.sock",
                "--path.pod-logs", work / "trees/pod-logs", "--path.container-logs", work / "trees/container-logs",
                "--enable-exporter-metrics", *more]

    def start_exporter(self, *more):
        """The kubelet, and the exporter; returns seconds to the first page with the pod's labels."""
        self.start("kubelet", [self.simulator, "kubelet", "--scenario", self.scenario, "--socket", self.work / "kubelet.sock", "--empty-for", "0s"])
        self.wait_for("the kubelet", (self.work / "kubelet.sock").exists)
        self.address = f"127.0.0.1:{free_port()}"
        began = time.time()
        self.exporter = self.start("exporter", self.exporter_command(self.address, *more), env={**os.environ, "NODE_NAME": NODE})
        self.wait_for("a page with the pod", lambda: value(self.scrape(), "DCGM_FI_DEV_GPU_TEMP", pod=POD) is not None)
        return time.time() - began

    def start_adapter(self):
        """The stand-in API server and the adapter behind it."""
        kubeconfig, ca = self.work / "kubeconfig", self.work / "adapter-ca.pem"
        self.start("apiserver", [self.simulator, "apiserver", "--scenario", self.scenario, "--kubeconfig", kubeconfig, "--exporter", f"{NODE}={self.address}"])
        # The admin's token, as the stand-in prints it; its line is written last of all.
        log = self.work / "apiserver.log"
        said = self.wait_for("the API server", lambda: re.search(r"kubeconfig \S+kubeconfig \(token (\S+)\)", log.read_text()))
        self.token = said.group(1)
        port = free_port()
        self.api = f"https://127.0.0.1:{port}"
        self.start("adapter", [self.programs / "podgauge-adapter", "--kubeconfig", f"{kubeconfig}.adapter", "--exporter-service",
                               "podgauge/podgauge-exporter", "--bind-address", "127.0.0.1", "--secure-port", str(port), "--write-ca-file", ca])
        self.wait_for("the adapter's CA", ca.exists)
        self.tls = ssl.create_default_context(cafile=ca)
        self.wait_for("the adapter", lambda: fetch(f"{self.api}/readyz", self.tls)[0] == 200)

    def scrape(self):
        return scrape(self.address)

    def adapter_value(self):
        path = f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{NAMESPACE}/pods/{POD}/gpu_utilization"
        status, text = fetch(f"{self.api}{path}", self.tls, self.token)
        if status != 200:
            raise RuntimeError(text[:300])
        quantity = json.loads(text)["items"][0]["value"]
        return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)

    def end(self):
        for _, child in reversed(self.children):
            if child.poll() is None:
                child.terminate()
        for _, child in self.children:
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
        for name in ("exporter", "adapter"):
            log = self.work / f"{name}.log"
            if log.exists():
                print(f"--- {name}\n{log.read_text()[-2000:]}")
