"""A GPU load of known kernel-busy time: bf16 matrix products with a host-side duty cycle.

Prints JSON lines: first {"kernel_ms": ...}, the uncontended time of one kernel, then about twenty
times a second {"t": epoch seconds, "kernels": finished so far}. Kernels finished times kernel time
over wall time is the share of time in which the GPU was busy with this process, known without
asking the driver.
"""

import argparse
import json
import random
import statistics
import sys
import time

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--size", type=int, default=4096, help="rows and columns of the matrices")
parser.add_argument("--duty", type=float, required=True, help="part of each period in which kernels are launched")
parser.add_argument("--period", type=float, required=True, help="seconds")
parser.add_argument("--jitter", type=float, default=0, help="each period is this much longer or shorter at most, as a part of it")
parser.add_argument("--seed", type=int, default=1, help="of the jitter")
parser.add_argument("--seconds", type=float, required=True, help="how long")
args = parser.parse_args()

a = torch.randn(args.size, args.size, device="cuda", dtype=torch.bfloat16)
b = torch.randn(args.size, args.size, device="cuda", dtype=torch.bfloat16)
out = torch.empty_like(a)


def say(**values):
    print(json.dumps(values), flush=True)


def calibrate():
    """Time of one kernel, of a full queue: device events around 100, median of 7."""
    times = []
    for _ in range(7):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(100):
            torch.matmul(a, b, out=out)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 100)
    return statistics.median(times)


for _ in range(20):
    torch.matmul(a, b, out=out)
torch.cuda.synchronize()
kernel_ms = calibrate()
say(kernel_ms=kernel_ms, size=args.size)

# A queue of about 4 ms: long enough that the GPU never waits for the host inside the busy part,
# short enough that the busy part ends when it should.
batch = max(1, round(4 / kernel_ms))
kernels = 0
periods = random.Random(args.seed)
begin = time.time()
said = 0.0
# The period under way: when it began, and how long it is.
started, length = begin, args.period
while (now := time.time()) < begin + args.seconds:
    while now >= started + length:
        started += length
        length = args.period * (1 + args.jitter * periods.uniform(-1, 1))
    if now - started < args.duty * length:
        for _ in range(batch):
            torch.matmul(a, b, out=out)
        torch.cuda.synchronize()
        kernels += batch
    else:
        time.sleep(max(0.0, min(started + length - now, 0.02, begin + args.seconds - now)))
    if time.time() - said >= 0.05:
        said = time.time()
        say(t=said, kernels=kernels)
sys.exit(0)
