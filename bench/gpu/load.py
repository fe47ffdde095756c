"""A GPU load of known kernel-busy time: bf16 matrix products with a host-side duty cycle.

Prints JSON lines: first {"kernel_ms": ...}, the uncontended time of one kernel, then about twenty
times a second {"t": epoch seconds, "kernels": finished so far}. Kernels finished times kernel time
over wall time is the share of time in which the GPU was busy with this process, known without
asking the driver.
"""

import argparse
import json
import statistics
import sys
import time

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--size", type=int, default=4096, help="rows and columns of the matrices")
parser.add_argument("--duty", type=float, required=True, help="part of each period in which kernels are launched")
parser.add_argument("--period", type=float, required=True, help="seconds")
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
begin = time.time()
said = 0.0
while (now := time.time()) < begin + args.seconds:
    if ((now - begin) / args.period) % 1.0 < args.duty:
        for _ in range(batch):
            torch.matmul(a, b, out=out)
        torch.cuda.synchronize()
        kernels += batch
    else:
        rest = args.period - (now - begin) % args.period
        time.sleep(min(rest, 0.02, max(0.0, begin + args.seconds - now)))
    if time.time() - said >= 0.05:
        said = time.time()
        say(t=said, kernels=kernels)
sys.exit(0)
