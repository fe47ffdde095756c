"""Runs the shipped programs on a real GPU and prints claimed, measured and true load.

Around them: the simulated kubelet, which gives the real GPU to a pod, and the stand-in API server.
The load runs in a pod-shaped cgroup. Ends with exit code 1 if a figure misses its budget.
"""

import argparse
import os
import pathlib
import re
import sys
import time

import pynvml

import report
from loads import Background, Load, Ring
from node import CONTAINER, NAMESPACE, POD, UID, Node, free_port
from page import scrape, value
from report import at_most, note, row
from services import CASES, second_exporter, services
from shares import PERIOD, other_namespace, shares
from versus_smi import every_field, profiling, static_checks

parser = argparse.ArgumentParser()
parser.add_argument("--programs", required=True, help="folder with the built programs")
parser.add_argument("--seconds", type=float, default=60, help="length of each measurement")
parser.add_argument("--periods", default="2,0.05,0.1,0.5,5", help="periods of the 30 %% load, seconds; the first also goes through the adapter")
parser.add_argument("--parts", default="smi,fields,cost,utilization,shares,services", help="what to measure")
parser.add_argument("--services", default=",".join(CASES), help="what shares the GPU in the part services")
parser.add_argument("--report", help="write a Markdown report here")
args = parser.parse_args()
parts = args.parts.split(",")

pynvml.nvmlInit()
GPU = pynvml.nvmlDeviceGetHandleByIndex(0)


def as_text(answer):
    return answer.decode() if isinstance(answer, bytes) else answer


def counters(node):
    samples = node.scrape()
    return tuple(
        value(samples, name, pod=POD, namespace=NAMESPACE)
        for name in ("podgauge_gpu_active_seconds_total", "podgauge_gpu_observed_seconds_total")
    )


def utilization(node, period, with_adapter):
    """A 30 % load: counters against every NVML sample and kernel-busy time, adapter against counters."""
    load = Load(node, 0.3, period, args.seconds + 40)
    ring = Ring(GPU)
    # Whole seconds of settling: the pod's counters are there and the load is even.
    node.wait_for("the pod's counters", lambda: counters(node)[1] is not None and load.reports)
    time.sleep(4)
    log = Background(lambda: counters(node), 0.1)
    begin = time.time()
    time.sleep(args.seconds + 2)
    answer = node.wait_for("the adapter", lambda: (time.time(), node.adapter_value())) if with_adapter else None
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
    note(f"{name}: observed seconds", f"{o1 - o0:.2f} s", f"{t1 - t0:.2f} s")
    if period <= 0.1:
        # Short periods: power, a mean over a second, and clocks stand still between two reads.
        static_checks(node, GPU, f"loaded, period {period:g} s")
    if with_adapter:
        at, said = answer
        window = [entry for entry in kept if at - 61.5 <= entry[0] <= at]
        (_, (a0, o0)), (_, (a1, o1)) = window[0], window[-1]
        row(f"{name}: adapter vs counters", said, (a1 - a0) / (o1 - o0) * 100, 1.5, " %")
    load.end()
    ring.over = True
    return load


def fields(node):
    """Every field that NVML serves, idle and loaded, from an exporter of its own."""
    reference = pathlib.Path(__file__).resolve().parents[2] / "docs/METRICS.md"
    served = re.findall(r"^\| `(DCGM_FI_\w+)` \| \d+ \| (\w+)", reference.read_text(), re.M)
    file = node.work / "every-field.csv"
    file.write_text("".join(f"{name}, {kind}, of docs/METRICS.md\n" for name, kind in served))
    address = f"127.0.0.1:{free_port()}"
    child = node.start("exporter-every-field", [node.programs / "podgauge-exporter", "-a", address, "-f", file])
    node.wait_for("every field", lambda: value(scrape(address), "DCGM_FI_PROF_SM_ACTIVE") is not None)
    every_field(address, "idle")
    load = Load(node, 0.3, 0.05, 60)
    time.sleep(5)
    every_field(address, "loaded")
    profiling(address)
    load.end()
    child.terminate()
    child.wait()


def exporter_cost(node, seconds=30):
    """CPU of the exporter's process and time inside NVML, with a scrape a second."""
    pid = node.exporter.pid
    ticks = os.sysconf("SC_CLK_TCK")

    def cpu():
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    def nvml():
        return value(node.scrape(), "podgauge_exporter_nvml_seconds_total")

    cpu_0, nvml_0, begin = cpu(), nvml(), time.time()
    while time.time() < begin + seconds:
        node.scrape()
        time.sleep(1)
    cpu_1, nvml_1, passed = cpu(), nvml(), time.time() - begin
    rss = int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024
    at_most("time inside NVML per second, GPU not shared", (nvml_1 - nvml_0) / passed * 1000, 12, "ms")
    note("exporter CPU with a scrape a second", f"{(cpu_1 - cpu_0) / passed * 100:.2f} % of a core")
    note("exporter resident memory", f"{rss:.1f} MiB")


uuid, card = as_text(pynvml.nvmlDeviceGetUUID(GPU)), as_text(pynvml.nvmlDeviceGetName(GPU))
driver = as_text(pynvml.nvmlSystemGetDriverVersion())
node = Node(args.programs, uuid, card)
kernel_ms = None
try:
    node.write_scenario([(POD, UID, CONTAINER, "0")])
    tracing = ("--process-source", "auto") if "services" in parts else ()
    note("first page with the pod's labels after start", f"{node.start_exporter(*tracing):.2f} s")
    node.start_adapter()
    if "smi" in parts:
        static_checks(node, GPU, "idle")
    if "fields" in parts:
        fields(node)
    if "cost" in parts:
        exporter_cost(node)
    if "utilization" in parts:
        for position, period in enumerate(float(word) for word in args.periods.split(",")):
            load = utilization(node, period, with_adapter=position == 0)
            if position == 0:
                kernel_ms = load.kernel_ms
                print(f"load: {load.kernel_ms:.4f} ms a kernel, cgroup {load.cgroup}")
    if "shares" in parts:
        if kernel_ms is None:
            # Kernel time of an uncontended GPU.
            load = Load(node, 0.3, PERIOD, 30)
            kernel_ms = load.kernel_ms
            load.end()
        seconds = min(args.seconds, 60)
        shares(node, [0.35, 0.15], seconds, kernel_ms)
        shares(node, [0.3, 0.15, 0.1], seconds, kernel_ms)
        shares(node, [0.3, 0.15, 0.1], seconds, kernel_ms, period=PERIOD, judged=False)
        shares(node, [1.0, 0.3], min(seconds, 20), kernel_ms, judged=False, meanwhile=other_namespace)
    if "services" in parts:
        beside = second_exporter(node)
        for name in args.services.split(","):
            services(node, GPU, name, min(args.seconds, 60), beside)
finally:
    node.end()

report.finish(f"{card}, driver {driver}", args.report)
sys.exit(1 if report.misses else 0)
