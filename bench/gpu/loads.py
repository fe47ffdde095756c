"""Load processes in pod-shaped cgroups, and a second reader of the driver's samples."""

import json
import pathlib
import subprocess
import sys
import threading
import time

import pynvml

from node import CONTAINER, UID

HERE = pathlib.Path(__file__).resolve().parent


def in_pod(pid, uid, container):
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

    def __init__(self, node, duty, period, seconds, jitter=0.0, seed=1, uid=UID, container=CONTAINER):
        command = [sys.executable, HERE / "load.py", "--duty", str(duty), "--period", str(period),
                   "--jitter", str(jitter), "--seed", str(seed), "--seconds", str(seconds)]
        self.child = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
        node.children.append(("load", self.child))
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
        """Percent of the time in which the GPU ran this process's kernels."""
        first, last = self.kernels_at(begin), self.kernels_at(end)
        if first is None or last is None:
            return None
        return (last - first) * self.kernel_ms / 1000 / (end - begin) * 100

    def end(self):
        self.child.terminate()
        self.child.wait()


class Background(threading.Thread):
    """Asks again and again until told to stop; keeps (time, answer)."""

    def __init__(self, ask, every):
        super().__init__(daemon=True)
        self.ask, self.every, self.kept, self.over = ask, every, [], False
        self.start()

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

    def __init__(self, gpu):
        super().__init__(daemon=True)
        self.gpu, self.slots, self.last, self.over = gpu, [], 0, False
        self.start()

    def run(self):
        while not self.over:
            try:
                _, samples = pynvml.nvmlDeviceGetSamples(self.gpu, pynvml.NVML_GPU_UTILIZATION_SAMPLES, self.last)
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
