"""A GPU that several pods share: what each is credited with against its kernel-busy time."""

import os
import time

from loads import Background, Load
from node import CONTAINER, NODE, UID, free_port
from page import scrape, value
from report import at_most, equal, note, row

FAMILIES = ("podgauge_gpu_active_seconds_total", "podgauge_gpu_observed_seconds_total")
# The driver names one process a slot of 200 ms: whose kernel runs when it looks, and of an idle GPU,
# it seems, whose ran last. Requests are of this length, s; a process of more load has more of them.
REQUEST = 0.02
# Periods are so much longer or shorter, as a part: requests come when they come. A load of one fixed
# period can meet the driver's look in the same phase for long.
JITTER = 0.5
# Period of processes that have equally many requests, of unequal length.
PERIOD = 0.13


def pods_that_share(count):
    """Pods that hold a replica each: name, UID, container id, device."""
    return [(f"share-{n}", f"{UID[:-1]}{n}", f"{CONTAINER[:-1]}{n}", f"0::{n}") for n in range(count)]


def shares(node, duties, seconds, kernel_ms, period=None, jitter=JITTER, judged=True, meanwhile=None):
    """Unequal processes in the cgroups of pods that share the GPU, started one after the other.

    Without a period each has the one at which its requests make its part of the time."""
    pods = pods_that_share(len(duties))
    node.write_scenario(pods, replicas=len(pods))
    loads = [
        Load(node, duty, period or REQUEST / duty, seconds + 90, jitter, seed, uid, container)
        for seed, (duty, (_, uid, container, _)) in enumerate(zip(duties, pods), 1)
    ]
    for load in loads:
        # Of an uncontended GPU: these calibrate while others run.
        load.kernel_ms = kernel_ms

    def all_counters():
        samples = node.scrape()
        found = [tuple(value(samples, family, pod=pod[0]) for family in FAMILIES) for pod in pods]
        return found if all(None not in pair for pair in found) else None

    node.wait_for("every load and pod", lambda: all(load.reports for load in loads) and all_counters())
    time.sleep(5)
    nvml_0, begin = value(node.scrape(), "podgauge_exporter_nvml_seconds_total"), time.time()
    log = Background(all_counters, 0.1)
    time.sleep(seconds + 3)
    kept = [entry for entry in log.stop() if entry[1] is not None]
    inside = (value(node.scrape(), "podgauge_exporter_nvml_seconds_total") - nvml_0) / (time.time() - begin) * 1000
    # The moments at which a page with new slots was first seen bound the interval.
    changes = [entry for previous, entry in zip(kept, kept[1:]) if entry[1][0][1] > previous[1][0][1]]
    bursts = f"periods {period} s" if period else f"requests of {REQUEST * 1000:.0f} ms"
    kind = f"{len(duties)} processes, {bursts}" + (f" ± {jitter * 100:.0f} %" if jitter else "")
    if len(changes) < 2:
        row(f"shares of {kind}", None, None, 4, " %")
    else:
        (t0, first), (t1, last) = changes[0], changes[-1]
        truths = [load.busy(t0 - 0.1, t1 - 0.1) for load in loads]
        for n, (duty, truth) in enumerate(zip(duties, truths)):
            share = (last[n][0] - first[n][0]) / (last[n][1] - first[n][1]) * 100
            others = ", ".join(f"{other * 100:.0f}" for position, other in enumerate(duties) if position != n)
            what = f"{kind}, {t1 - t0:.0f} s: the {duty * 100:.0f} % one beside {others} %"
            if judged:
                row(what, share, truth, 4, " %")
            else:
                note(what, f"{share:.2f} %", "-" if truth is None else f"{truth:.2f} %", "", "as measured")
        seen = (last[0][1] - first[0][1]) / (t1 - t0) * 100
        note(f"{kind}: part of the time whose processes were seen", f"{seen:.1f} %")
    at_most(f"{kind}: time inside NVML per second", inside, 25, "ms")
    if meanwhile:
        meanwhile(node, [pod[0] for pod in pods])
    for load in loads:
        load.end()


def other_namespace(node, names):
    """An exporter that does not see the host's pids says so, and says nothing of the pods that share."""
    address = f"127.0.0.1:{free_port()}"
    child = node.start(
        "exporter-elsewhere",
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *node.exporter_command(address)],
        env={**os.environ, "NODE_NAME": NODE},
    )

    def page():
        samples = scrape(address)
        return samples if "podgauge_attribution_unavailable" in samples and "DCGM_FI_DEV_GPU_UTIL" in samples else None

    samples = node.wait_for("the exporter in another PID namespace", page)
    reason = samples["podgauge_attribution_unavailable"][0][0].get("reason")
    divided = ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED")
    labelled = [labels for family in divided for labels, _ in samples.get(family, []) if labels.get("pod") in names]
    equal("exporter in another PID namespace: reason, samples of pods", f"{reason}, {len(labelled)}", "no_host_pid_namespace, 0")
    # The program is a child of unshare, which waits for it.
    child.kill()
    child.wait()
