"""A service on the GPU: requests of one length, each a CUDA graph of matrix products, that come at random,
like clockwork, or one after the other. Writes when each was begun and done, two doubles a request."""

import argparse
import random
import struct
import sys
import time

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--kernels", type=int, required=True, help="matrix products of a request")
parser.add_argument("--rate", type=float, required=True, help="requests a second")
parser.add_argument("--arrive", choices=["poisson", "metronome", "saturated", "training"], default="poisson")
parser.add_argument("--seconds", type=float, required=True)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--requests", required=True, help="file to write")
args = parser.parse_args()

SIZE = 4096
a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
out = torch.empty_like(a)
small = torch.randn(512, 512, device="cuda")
for _ in range(5):
    torch.matmul(a, b, out=out)
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    for _ in range(args.kernels):
        torch.matmul(a, b, out=out)


def request():
    if args.arrive == "training":
        # Many short kernels that the host launches one by one.
        for _ in range(30):
            torch.relu_(small.add_(1e-3))
        torch.matmul(a, b, out=out)
    else:
        graph.replay()
    torch.cuda.synchronize()


for _ in range(3):
    request()
print("ready", flush=True)
sys.stdin.readline()
draw = random.Random(args.seed)
begin = due = time.time()
done = []
while (now := time.time()) < begin + args.seconds:
    if args.arrive in ("poisson", "metronome"):
        if now < due:
            if due - now > 0.0015:
                time.sleep(due - now - 0.001)
            continue
        due += draw.expovariate(args.rate) if args.arrive == "poisson" else 1 / args.rate
    began = time.time()
    request()
    done.append((began, time.time()))
with open(args.requests, "wb") as file:
    for pair in done:
        file.write(struct.pack("dd", *pair))
