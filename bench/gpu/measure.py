"""Runs the shipped programs on a real GPU and prints claimed, measured and true load.

Around them: the simulated kubelet, which gives the real GPU to a pod, and the stand-in API server.
The load runs in a pod-shaped cgroup. Ends with exit code 1 if a figure misses its budget.
"""

import argparse
import json
import os
import pathlib
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import pynvml

UID = "0f2e4a60-1111-4222-8333-444455556666"
CONTAINER = "c0ffee" * 10 + "c0ff"
NODE = "gpu-host"
POD = "load"
NAMESPACE = "demo"

parser = argparse.ArgumentParser()
parser.add_argument("--programs", required=True, help="folder with the built programs")
parser.add_argument("--seconds", type=float, default=60, help="length of each measurement")
parser.add_argument("--periods", default="2,0.05,0.1,0.5,5", help="periods of the 30 %% load, seconds; the first also goes through the adapter")
parser.add_argument("--only-shares", action="store_true", help="leave everything out but the shares of several processes")
parser.add_argument("--report", help="write a Markdown report here")
args = parser.parse_args()
programs = pathlib.Path(args.programs).resolve()
here = pathlib.Path(__file__).resolve().parent
work = pathlib.Path(tempfile.mkdtemp(prefix="podgauge-gpu-"))
children = []
misses = []


class Rows(list):
    """The report's rows, printed as they come: a run takes minutes."""

    def append(self, row):
        print(" | ".join(row), flush=True)
        super().append(row)


rows = Rows()


def start(name, command, **more):
    log = open(work / f"{name}.log", "w")
    child = subprocess.Popen(command, stdout=log, stderr=log, **more)
    children.append((name, child))
    return child


def fetch(url, context=None, token=None):
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_for(what, ask, seconds=40):
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
    for name, _ in children:
        print(f"--- {name}\n{(work / f'{name}.log').read_text()[-3000:]}", file=sys.stderr)
    raise SystemExit(f"waited {seconds} s for {what}: {last}")


LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def exporter_command(address):
    return [programs / "podgauge-exporter", "-k", "-a", address, "--pod-resources-kubelet-socket", work / "kubelet.sock",
            "--path.pod-logs", work / "trees/pod-logs", "--path.container-logs", work / "trees/container-logs",
            "--enable-exporter-metrics"]


def scrape(address=None):
    """Samples of the exporter's page: {name: [(labels, value)]}."""
    status, text = fetch(f"http://{address or EXPORTER}/metrics")
    assert status == 200, status
    samples = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, labels, value = LINE.match(line).groups()
            samples.setdefault(name, []).append((dict(LABEL.findall(labels or "")), float(value)))
    return samples


def value(samples, name, **labels):
    found = [v for have, v in samples.get(name, []) if all(have.get(k) == w for k, w in labels.items())]
    return found[0] if found else None


def row(what, claimed, truth, budget, unit=""):
    if claimed is None or truth is None:
        verdict, miss = "no value", True
    else:
        miss = abs(claimed - truth) > budget
        verdict = "MISSED" if miss else "ok"
    shown = [f"{x:.2f}{unit}" if x is not None else "-" for x in (claimed, truth)]
    rows.append((what, shown[0], shown[1], f"± {budget:g}{unit}", verdict))
    if miss:
        misses.append(what)


class Background(threading.Thread):
    """Asks again and again until told to stop; keeps (time, answer)."""

    def __init__(self, ask, every):
        super().__init__(daemon=True)
        self.ask, self.every, self.kept, self.over = ask, every, [], False

    def run(self):
        while not self.over:
            try:
                self.kept.append((time.time(), self.ask()))
            except Exception as error:
                print(f"{self.ask.__name__}: {error}", file=sys.stderr)
            time.sleep(self.every)

    def stop(self):
        self.over = True
        self.join()
        return self.kept


class Ring(threading.Thread):
    """Every slot of NVML's own sample ring, read by a second client of the driver."""

    def __init__(self):
        super().__init__(daemon=True)
        self.slots, self.last, self.over = [], 0, False

    def run(self):
        while not self.over:
            try:
                _, samples = pynvml.nvmlDeviceGetSamples(GPU, pynvml.NVML_GPU_UTILIZATION_SAMPLES, self.last)
                for sample in samples:
                    if sample.timeStamp > self.last:
                        self.slots.append((sample.timeStamp / 1e6, sample.sampleValue.uiVal))
                self.last = max([self.last] + [sample.timeStamp for sample in samples])
            except pynvml.NVMLError_NotFound:
                pass
            time.sleep(2)

    def mean(self, begin, end):
        inside = [value for at, value in self.slots if begin < at <= end]
        return sum(inside) / len(inside) if inside else None


def in_pod(pid, uid=UID, container=CONTAINER):
    """Puts a process where a container of the pod would be."""
    root = pathlib.Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        scopes = [root / f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid.replace('-', '_')}.slice/cri-containerd-{container}.scope"]
    else:  # cgroup v1: a tree for each controller
        scopes = [root / name / f"kubepods/burstable/pod{uid}/{container}" for name in ("devices", "memory", "pids") if (root / name).is_dir()]
    try:
        for scope in scopes:
            scope.mkdir(parents=True, exist_ok=True)
            (scope / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        print(f"no pod-shaped cgroup ({error}): allocations alone attribute the load", file=sys.stderr)
    return pathlib.Path(f"/proc/{pid}/cgroup").read_text().strip()


class Load:
    """The load process, and the busy time it reports."""

    def __init__(self, duty, period, seconds, size=4096, uid=UID, container=CONTAINER):
        command = [sys.executable, here / "load.py", "--duty", str(duty), "--period", str(period),
                   "--seconds", str(seconds), "--size", str(size)]
        self.child = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
        children.append(("load", self.child))
        (work / "load.log").touch()
        self.cgroup = in_pod(self.child.pid, uid, container)
        self.kernel_ms = json.loads(self.child.stdout.readline())["kernel_ms"]
        self.reports = []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.child.stdout:
            report = json.loads(line)
            self.reports.append((report["t"], report["kernels"]))

    def kernels_at(self, moment):
        before = [r for r in self.reports if r[0] <= moment]
        after = [r for r in self.reports if r[0] > moment]
        if not before or not after:
            return None
        (t0, k0), (t1, k1) = before[-1], after[0]
        return k0 + (k1 - k0) * (moment - t0) / (t1 - t0)

    def busy(self, begin, end):
        first, last = self.kernels_at(begin), self.kernels_at(end)
        if first is None or last is None:
            return None
        return (last - first) * self.kernel_ms / 1000 / (end - begin) * 100

    def end(self):
        self.child.terminate()
        self.child.wait()


def quote(text):
    return json.dumps(text)


def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def static_checks(when):
    """The exporter against nvidia-smi -q of the same moment."""
    query = "name,memory.used,memory.free,memory.reserved,clocks.sm,clocks.mem,power.draw,temperature.gpu,temperature.memory,driver_version"
    page = scrape()
    out = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "-i", "0"], capture_output=True, text=True, check=True
    ).stdout
    smi = dict(zip(query.split(","), [word.strip() for word in out.strip().split(",")]))
    full = subprocess.run(["nvidia-smi", "-q", "-i", "0"], capture_output=True, text=True, check=True).stdout
    labels = page["DCGM_FI_DEV_SM_CLOCK"][0][0]
    for what, ours, theirs in [
        ("name", labels["modelName"], smi["name"]),
        ("driver", labels["DCGM_FI_DRIVER_VERSION"], smi["driver_version"]),
        ("UUID", labels["UUID"], re.search(r"GPU UUID\s*: (\S+)", full).group(1)),
    ]:
        verdict = "ok" if ours == theirs else "MISSED"
        rows.append((f"{what} vs nvidia-smi, {when}", ours, theirs, "equal", verdict))
        if ours != theirs:
            misses.append(what)

    def number(text):
        return float(text) if re.fullmatch(r"[0-9.]+", text) else None

    for what, family, key, budget, unit in [
        ("memory used", "DCGM_FI_DEV_FB_USED", "memory.used", 1, " MiB"),
        ("memory free", "DCGM_FI_DEV_FB_FREE", "memory.free", 1, " MiB"),
        ("memory reserved", "DCGM_FI_DEV_FB_RESERVED", "memory.reserved", 1, " MiB"),
        ("SM clock", "DCGM_FI_DEV_SM_CLOCK", "clocks.sm", 30, " MHz"),
        ("memory clock", "DCGM_FI_DEV_MEM_CLOCK", "clocks.mem", 1, " MHz"),
        ("power", "DCGM_FI_DEV_POWER_USAGE", "power.draw", 15, " W"),
        ("GPU temperature", "DCGM_FI_DEV_GPU_TEMP", "temperature.gpu", 1, " C"),
        ("memory temperature", "DCGM_FI_DEV_MEMORY_TEMP", "temperature.memory", 1, " C"),
    ]:
        if when != "idle" and key == "clocks.sm":
            # Under load the clock moves in steps of 15 MHz many times a second.
            budget = 100
        row(f"{what} vs nvidia-smi, {when}", value(page, family), number(smi[key]), budget, unit)
    # nvidia-smi -q has no energy: the driver's own counter, read by another client just after.
    page = scrape()
    energy = pynvml.nvmlDeviceGetTotalEnergyConsumption(GPU)
    row(f"energy vs NVML, {when}", value(page, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION") / 1000, energy / 1000, 800, " J")


def adapter_value():
    path = f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{NAMESPACE}/pods/{POD}/gpu_utilization"
    status, text = fetch(f"{API}{path}", TLS, TOKEN)
    if status != 200:
        raise RuntimeError(text[:300])
    item = json.loads(text)["items"][0]
    quantity = item["value"]
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def counters():
    samples = scrape()
    return tuple(
        value(samples, name, pod=POD, namespace=NAMESPACE)
        for name in ("podgauge_gpu_active_seconds_total", "podgauge_gpu_observed_seconds_total")
    )


def utilization(period, with_adapter):
    load = Load(0.3, period, args.seconds + 40)
    ring = Ring()
    ring.start()
    # Whole seconds of settling: the pod's counters are there and the load is even.
    wait_for("the pod's counters", lambda: counters()[1] is not None and load.reports)
    time.sleep(4)
    log = Background(counters, 0.1)
    log.start()
    begin = time.time()
    time.sleep(args.seconds + 2)
    answer = wait_for("the adapter", lambda: (time.time(), adapter_value())) if with_adapter else None
    time.sleep(2.5)
    kept = log.stop()
    # The moments at which a page with new slots was first seen bound the interval.
    changes = [entry for previous, entry in zip(kept, kept[1:]) if entry[1][1] > previous[1][1]]
    first = next(entry for entry in changes if entry[0] >= begin)
    last = [entry for entry in changes if entry[0] <= begin + args.seconds + 1][-1]
    (t0, (a0, o0)), (t1, (a1, o1)) = first, last
    measured = (a1 - a0) / (o1 - o0) * 100
    # A page's newest slot is up to one slot old: the same interval by the driver's own clock.
    time.sleep(2.5)
    nvml = ring.mean(t0 - 0.1, t1 - 0.1)
    truth = load.busy(t0 - 0.1, t1 - 0.1)
    name = f"30 % load, period {period:g} s, {t1 - t0:.0f} s"
    row(f"{name}: counters vs all NVML samples", measured, nvml, 0.5, " %")
    row(f"{name}: counters vs kernel-busy time", measured, truth, 3, " %")
    rows.append((f"{name}: observed seconds", f"{o1 - o0:.2f} s", f"{t1 - t0:.2f} s", "", ""))
    if period <= 0.1:
        # Short periods: power, a mean over a second, and clocks stand still between two reads.
        static_checks(f"loaded, period {period:g} s")
    if with_adapter:
        at, said = answer
        window = [entry for entry in kept if at - 61.5 <= entry[0] <= at]
        (_, (a0, o0)), (_, (a1, o1)) = window[0], window[-1]
        row(f"{name}: adapter vs counters", said, (a1 - a0) / (o1 - o0) * 100, 1.5, " %")
    load.end()
    ring.over = True
    return load


def shared_pods(count):
    """Pods that hold a replica each: name, UID, container id."""
    return [(f"share-{n}", f"{UID[:-1]}{n}", f"{CONTAINER[:-1]}{n}") for n in range(count)]


def play(text):
    """Another scenario from now on: the kubelet reads the file again, the trees are written again."""
    after = work / "next.yaml"
    after.write_text(text)
    after.rename(scenario)
    start("trees-again", [simulator, "trees", "--scenario", scenario, "--to", work / "trees"]).wait()


def shared_scenario(pods):
    lines = [f"node: {NODE}", f"gpus: [{{uuid: {quote(uuid)}, model: {quote(card)}, replicas: {len(pods)}}}]", "pods:"]
    for n, (name, uid, container) in enumerate(pods):
        lines.append(f"- {{namespace: {NAMESPACE}, name: {name}, uid: {uid}, containers: [{{name: main, id: {quote(container)}, devices: ['0::{n}']}}]}}")
    return "\n".join(lines) + "\n"


# The driver names one process a slot of 200 ms: whose kernel runs at that moment. A load whose
# period divides the slot is always met in the same phase, and one process gets all of it.
SHARE_PERIOD = 0.13


def shares(duties, seconds, kernel_ms, saturated=False, meanwhile=None):
    """Unequal processes in the cgroups of pods that share the GPU: counters against kernel-busy time."""
    pods = shared_pods(len(duties))
    play(shared_scenario(pods))
    loads = [Load(duty, SHARE_PERIOD, seconds + 90, uid=uid, container=container) for duty, (_, uid, container) in zip(duties, pods)]

    def all_counters():
        samples = scrape()
        families = ("podgauge_gpu_active_seconds_total", "podgauge_gpu_observed_seconds_total")
        found = [tuple(value(samples, family, pod=name) for family in families) for name, _, _ in pods]
        return found if all(None not in pair for pair in found) else None

    for load in loads:
        load.kernel_ms = kernel_ms
    wait_for("every load and pod", lambda: all(load.reports for load in loads) and all_counters())
    time.sleep(5)
    nvml_0, begin_nvml = value(scrape(), "podgauge_exporter_nvml_seconds_total"), time.time()
    log = Background(all_counters, 0.1)
    log.start()
    time.sleep(seconds + 3)
    kept = [entry for entry in log.stop() if entry[1] is not None]
    inside = (value(scrape(), "podgauge_exporter_nvml_seconds_total") - nvml_0) / (time.time() - begin_nvml) * 1000
    # The moments at which a page with new slots was first seen bound the interval.
    changes = [entry for previous, entry in zip(kept, kept[1:]) if entry[1][0][1] > previous[1][0][1]]
    if len(changes) < 2:
        misses.append("shares: no pod's counters rise")
        rows.append((f"shares of {duties}", "no counters", "", "", "MISSED"))
    else:
        (t0, first), (t1, last) = changes[0], changes[-1]
        truths = [load.busy(t0 - 0.1, t1 - 0.1) for load in loads]
        total = sum(truth or 0 for truth in truths)
        for n, (duty, truth) in enumerate(zip(duties, truths)):
            share = (last[n][0] - first[n][0]) / (last[n][1] - first[n][1]) * 100
            what = f"share of the {duty * 100:.0f} % process beside {', '.join(f'{d * 100:.0f}' for i, d in enumerate(duties) if i != n)} %, {t1 - t0:.0f} s"
            if saturated or total > 70:
                shown = "-" if truth is None else f"{truth:.2f} %"
                rows.append((f"{what}: GPU saturated", f"{share:.2f} %", shown, "", "as measured"))
            else:
                row(what, share, truth, 4, " %")
        seen = (last[0][1] - first[0][1]) / (t1 - t0) * 100
        rows.append((f"part of the time in which the slots' processes were seen, {len(duties)} processes", f"{seen:.1f} %", "", "", ""))
    verdict = "ok" if inside <= 25 else "MISSED"
    if inside > 25:
        misses.append("time inside NVML, GPU shared")
    rows.append((f"time inside NVML per second, GPU shared by {len(duties)}", f"{inside:.1f} ms", "", "≤ 25 ms", verdict))
    if meanwhile:
        meanwhile([name for name, _, _ in pods])
    for load in loads:
        load.end()


def other_namespace(names):
    """An exporter that does not see the host's pids says so, and says nothing of the pods that share."""
    address = f"127.0.0.1:{free_port()}"
    child = start(
        "exporter-elsewhere",
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *exporter_command(address)],
        env={**os.environ, "NODE_NAME": NODE},
    )

    def page():
        samples = scrape(address)
        return samples if "podgauge_attribution_unavailable" in samples and "DCGM_FI_DEV_GPU_UTIL" in samples else None

    samples = wait_for("the exporter in another PID namespace", page)
    reason = samples["podgauge_attribution_unavailable"][0][0].get("reason")
    labelled = [labels for family in ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED") for labels, _ in samples.get(family, []) if labels.get("pod") in names]
    right = reason == "no_host_pid_namespace" and not labelled
    if not right:
        misses.append("exporter in another PID namespace")
    rows.append(("exporter in another PID namespace: reason, samples of pods", f"{reason}, {len(labelled)}", "no_host_pid_namespace, 0", "equal", "ok" if right else "MISSED"))
    # The program is a child of unshare, which waits for it.
    child.kill()
    child.wait()


def exporter_cost(seconds=30):
    """CPU of the exporter's process and time inside NVML, with a scrape a second."""
    pid = exporter.pid
    ticks = os.sysconf("SC_CLK_TCK")

    def cpu():
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    def nvml():
        return value(scrape(), "podgauge_exporter_nvml_seconds_total")

    cpu_0, nvml_0, begin = cpu(), nvml(), time.time()
    while time.time() < begin + seconds:
        scrape()
        time.sleep(1)
    cpu_1, nvml_1, passed = cpu(), nvml(), time.time() - begin
    rss = int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024
    inside = (nvml_1 - nvml_0) / passed * 1000
    verdict = "ok" if inside <= 12 else "MISSED"
    if inside > 12:
        misses.append("time inside NVML")
    rows.append(("time inside NVML per second, GPU not shared", f"{inside:.1f} ms", "", "≤ 12 ms", verdict))
    rows.append(("exporter CPU with a scrape a second", f"{(cpu_1 - cpu_0) / passed * 100:.2f} % of a core", "", "", ""))
    rows.append(("exporter resident memory", f"{rss:.1f} MiB", "", "", ""))


def report():
    lines = ["| what | podgauge | reference | budget | verdict |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(r) + " |" for r in rows]
    table = "\n".join(lines)
    print(f"\n{card}, driver {driver}, {time.strftime('%Y-%m-%d', time.gmtime())}\n\n{table}\n")
    if misses:
        print(f"missed: {', '.join(misses)}")
    if args.report:
        pathlib.Path(args.report).write_text(table + "\n")


pynvml.nvmlInit()
GPU = pynvml.nvmlDeviceGetHandleByIndex(0)


def as_text(answer):
    return answer.decode() if isinstance(answer, bytes) else answer


uuid, card = as_text(pynvml.nvmlDeviceGetUUID(GPU)), as_text(pynvml.nvmlDeviceGetName(GPU))
driver = as_text(pynvml.nvmlSystemGetDriverVersion())
scenario = work / "scenario.yaml"
scenario.write_text(
    f"node: {NODE}\ngpus: [{{uuid: {quote(uuid)}, model: {quote(card)}}}]\n"
    f"pods: [{{namespace: {NAMESPACE}, name: {POD}, uid: {UID}, labels: {{app: load}},"
    f" containers: [{{name: main, id: {quote(CONTAINER)}, devices: [\"0\"]}}]}}]\n"
)
try:
    simulator = programs / "podgauge-sim"
    start("trees", [simulator, "trees", "--scenario", scenario, "--to", work / "trees"]).wait()
    start("kubelet", [simulator, "kubelet", "--scenario", scenario, "--socket", work / "kubelet.sock", "--empty-for", "0s"])
    wait_for("the kubelet", (work / "kubelet.sock").exists)
    EXPORTER = f"127.0.0.1:{free_port()}"
    started = time.time()
    exporter = start(
        "exporter",
        exporter_command(EXPORTER),
        env={**os.environ, "NODE_NAME": NODE},
    )
    wait_for("a page with the pod", lambda: value(scrape(), "DCGM_FI_DEV_GPU_TEMP", pod=POD) is not None)
    rows.append(("first page with the pod's labels after start", f"{time.time() - started:.2f} s", "", "", ""))

    kubeconfig, ca = work / "kubeconfig", work / "adapter-ca.pem"
    start("apiserver", [simulator, "apiserver", "--scenario", scenario, "--kubeconfig", kubeconfig, "--exporter", f"{NODE}={EXPORTER}"])
    # The admin's token, as the stand-in prints it; its line is written last of all.
    said = wait_for("the API server", lambda: re.search(r"kubeconfig \S+kubeconfig \(token (\S+)\)", (work / "apiserver.log").read_text()))
    TOKEN = said.group(1)
    port = free_port()
    API = f"https://127.0.0.1:{port}"
    start("adapter", [programs / "podgauge-adapter", "--kubeconfig", f"{kubeconfig}.adapter", "--exporter-service",
                      "podgauge/podgauge-exporter", "--bind-address", "127.0.0.1", "--secure-port", str(port), "--write-ca-file", ca])
    wait_for("the adapter's CA", ca.exists)
    TLS = ssl.create_default_context(cafile=ca)
    wait_for("the adapter", lambda: fetch(f"{API}/readyz", TLS)[0] == 200)

    if args.only_shares:
        load = Load(0.3, SHARE_PERIOD, 30)
        kernel_ms, args.periods = load.kernel_ms, ""
        load.end()
    else:
        static_checks("idle")
        exporter_cost()
    for position, period in enumerate(float(word) for word in args.periods.split(",") if word):
        load = utilization(period, with_adapter=position == 0)
        if position == 0:
            kernel_ms = load.kernel_ms
            print(f"load: {load.kernel_ms:.4f} ms a kernel, cgroup {load.cgroup}")
    # Kernel time of an uncontended GPU: the first load's, all are of one size.
    seconds = min(args.seconds, 60)
    shares([0.35, 0.15], seconds, kernel_ms)
    shares([0.3, 0.15, 0.1], seconds, kernel_ms)
    shares([1.0, 0.3], min(seconds, 20), kernel_ms, saturated=True, meanwhile=other_namespace)
finally:
    for name, child in reversed(children):
        if child.poll() is None:
            child.terminate()
    for name, child in children:
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
    for name in ("exporter", "adapter"):
        log = work / f"{name}.log"
        if log.exists():
            print(f"--- {name}\n{log.read_text()[-2000:]}")

report()
sys.exit(1 if misses else 0)
