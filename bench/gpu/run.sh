#!/bin/sh
# `make gpu`: on a machine with an NVIDIA GPU, compares what podgauge claims with what nvidia-smi
# and NVML say and with loads of known kernel-busy time.
#
# Needs root (it makes a pod-shaped cgroup), nvidia-smi, and a python3 with PyTorch and
# nvidia-ml-py. Programs are built in release mode, or taken from PODGAUGE_PROGRAMS.
set -eu
cd "$(dirname "$0")/../.."
command -v nvidia-smi >/dev/null || { echo "no nvidia-smi: this machine has no NVIDIA driver; nothing was measured" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "run as root: a pod-shaped cgroup is made under /sys/fs/cgroup" >&2; exit 1; }
python3 -c 'import torch, pynvml' 2>/dev/null || {
  echo "python3 has no PyTorch or no nvidia-ml-py: pip install torch nvidia-ml-py" >&2; exit 1; }
if [ -z "${PODGAUGE_PROGRAMS:-}" ]; then
  cargo build --release --locked -p podgauge-exporter -p podgauge-adapter -p podgauge-sim
  PODGAUGE_PROGRAMS=target/release
fi
exec python3 bench/gpu/measure.py --programs "$PODGAUGE_PROGRAMS" "$@"
