"""Services of unlike request length on one GPU: what each pod is credited with, by the trace of context
switches and by NVML's samples, against the time in which it had a request open while it was on the GPU."""

import os
import struct
import subprocess
import sys
import time

import pynvml

from loads import HERE, Background, in_pod
from node import NODE, free_port
from page import scrape, value
from report import at_most, note, row
from shares import FAMILIES, pods_that_share
from switches import Switches, clock_shift, occupied

# Matrix products of a long and of a short request, and their milliseconds on an H100, about.
LONG, SHORT = (24, 4.7), (2, 0.44)
CASES = {
    "40+20": [(LONG, 40, "poisson"), (SHORT, 20, "poisson")],
    "25+15+10": [(LONG, 25, "poisson"), (SHORT, 15, "poisson"), (LONG, 10, "poisson")],
    "30+30": [(LONG, 30, "poisson"), (LONG, 30, "poisson")],
    "100+20": [(LONG, 100, "saturated"), (SHORT, 20, "poisson")],
    "eight": [(kind, share, "poisson") for kind in (SHORT, LONG) for share in (5, 5, 10, 10)],
    "40+20 like clockwork": [(LONG, 40, "metronome"), (SHORT, 20, "metronome")],
    "five": [(LONG, 20, "poisson"), (LONG, 10, "poisson"), (SHORT, 10, "poisson"), (SHORT, 5, "poisson"), (SHORT, 100, "training")],
    "training+20": [(SHORT, 100, "training"), (SHORT, 20, "poisson")],
}
# Points of a hundred that a share may be off.
BUDGET = 3


def second_exporter(node):
    """An exporter that takes NVML's samples, beside the one that may trace."""
    address = f"127.0.0.1:{free_port()}"
    node.start("exporter-nvml", node.exporter_command(address, "--process-source", "nvml"), env={**os.environ, "NODE_NAME": NODE})
    return address


def counters(address, pods):
    samples = scrape(address)
    found = [tuple(value(samples, family, pod=pod[0]) for family in FAMILIES) for pod in pods]
    return found if all(None not in pair for pair in found) else None


def between(kept):
    """The first and the last page with new slots."""
    changes = [entry for previous, entry in zip(kept, kept[1:]) if entry[1][0][1] > previous[1][0][1]]
    return changes[0], changes[-1]


def share_of(first, last, n):
    return (last[n][0] - first[n][0]) / (last[n][1] - first[n][1]) * 100


def services(node, gpu, name, seconds, nvml_address):
    case = CASES[name]
    pods = pods_that_share(len(case))
    node.write_scenario(pods, replicas=len(pods))
    children = []
    for n, ((kind, share, arrive), (_, uid, container, _)) in enumerate(zip(case, pods)):
        kernels, ms = kind
        file = node.work / f"requests-{n}"
        command = [sys.executable, HERE / "serve.py", "--kernels", kernels, "--rate", share / 100 / (ms / 1000), "--arrive", arrive,
                   "--seconds", seconds + 40, "--seed", n + 1, "--requests", file]
        child = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        node.children.append((f"service-{n}", child))
        in_pod(child.pid, uid, container)
        children.append((child, file))
    for child, _ in children:
        child.stdout.readline()
    for child, _ in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    pci = pynvml.nvmlDeviceGetPciInfo(gpu)
    switches = Switches(pynvml.nvmlDeviceGetMinorNumber(gpu), pci.domain, pci.bus, pci.device)
    node.wait_for("the pods", lambda: counters(node.address, pods) and counters(nvml_address, pods))
    # The fit needs 10 s of slots.
    time.sleep(16)
    logs = [Background(lambda address=address: counters(address, pods), 0.1) for address in (node.address, nvml_address)]
    time.sleep(seconds + 2)
    kept = [[entry for entry in log.stop() if entry[1] is not None] for log in logs]
    samples = node.scrape()
    visits = switches.stop()
    for child, _ in children:
        child.wait()
    (t0, first), (t1, last) = between(kept[0])
    (_, first_nvml), (_, last_nvml) = between(kept[1])
    requests = []
    for _, file in children:
        raw = file.read_bytes()
        requests.append(list(struct.iter_unpack("dd", raw)))
    # A slot waits for its records.
    begin, end = t0 - 0.3, t1 - 0.3
    of = [[(came, went) for pid, came, went in visits if pid == child.pid] for child, _ in children]
    shift = clock_shift(of, requests, begin, end)
    source = [labels["source"] for labels, _ in samples.get("podgauge_exporter_process_source", [])]
    sums = [0.0, 0.0]
    for n, (kind, share, arrive) in enumerate(case):
        truth = occupied(of[n], requests[n], begin, end, shift) / (end - begin) * 100
        traced, sampled = share_of(first, last, n), share_of(first_nvml, last_nvml, n)
        sums[0] += traced
        sums[1] += truth
        what = f"{name}: {kind[1]} ms, {arrive}, {share} %; NVML's samples say {sampled:.1f} %"
        if arrive == "training":
            note(what, f"{traced:.2f} %", f"{truth:.2f} %", "", "as measured")
        else:
            row(what, traced, truth, BUDGET, " %")
    def total(name):
        return value(samples, name)
    note(f"{name}: source {source}, records, lost, residual, lost by the second reader",
         f"{total('podgauge_exporter_context_switch_records_total')}, {total('podgauge_exporter_context_switch_records_lost_total')}, {total('podgauge_exporter_share_residual')}, {switches.lost}",
         f"sums {sums[0]:.1f} and {sums[1]:.1f} %")
