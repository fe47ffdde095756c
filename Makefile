# `make demo` shows podgauge at work without a GPU; `make test` runs every test.
#
#   make demo           the simulated node with a live table; ARGS=--once for one pass
#   make test           builds the programs and drives them over their sockets
#   make lint           formatting and clippy, warnings are errors
#   make bench          benchmarks
#   make gpu            on a machine with an NVIDIA GPU: claimed, measured and true load
#   make build          the programs alone

CARGO ?= cargo
# Behaviours mostly wait for something: more of them than cores run side by side.
export RUST_TEST_THREADS ?= 8

.PHONY: build demo test lint bench gpu tools cargo

build: cargo
	$(CARGO) build --workspace --locked

demo: build
	target/debug/podgauge-sim demo $(ARGS)

test: build tools
	PATH="$(CURDIR)/target/tools/bin:$$PATH" $(CARGO) test --workspace --locked $(ARGS)

lint: cargo
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

bench: cargo
	$(CARGO) build --release --locked -p podgauge-exporter -p podgauge-adapter -p podgauge-sim-nvml -p podgauge-bench
	ulimit -n "$$(ulimit -H -n)"; target/release/podgauge-bench $(ARGS)

gpu: cargo
	bench/gpu/run.sh $(ARGS)

tools:
	tests/tools/debian-tools.sh

cargo:
	@command -v $(CARGO) >/dev/null || { \
	  echo "cargo is not installed: get Rust 1.89 or newer from https://rustup.rs, and a C compiler (apt-get install gcc)" >&2; exit 1; }
	@command -v cc >/dev/null || { \
	  echo "there is no C compiler: as root, run: apt-get install gcc libc6-dev" >&2; exit 1; }
