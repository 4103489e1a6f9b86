# `make` lists the targets. Everything runs on loopback; nothing needs root or containers.

# Each integration test runs a control plane of its own, some 400 MB of memory each.
RUST_TEST_THREADS ?= 3
export RUST_TEST_THREADS

CARGO ?= cargo
FUZZ_SECONDS ?= 600
DEMO = $(CARGO) run --locked --release --quiet --example demo --

.PHONY: help demo demo-keep test bench soak fuzz lint fmt control-plane manifests clean rust go
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r target text; do \
		printf '  make %-14s %s\n' "$$target" "$$text"; \
	done

demo: build-demo ## the program on a real control plane, step by step, with measured times
	@$(DEMO)

demo-keep: build-demo ## the same, and everything stays up to play with until Ctrl-C
	@$(DEMO) --keep

test: lint control-plane ## formatting, lints, then unit, property and integration tests on a real API server
	$(CARGO) test --locked --workspace

bench: rust go ## latency beside the floor (a bare watch and apply loop), measured in the same run
	$(CARGO) bench --locked --bench '*'

soak: lint control-plane ## what takes minutes by its nature; the last result is in docs/soak.md
	$(CARGO) test --locked --workspace -- --ignored soak

fuzz: rust ## ten minutes of fuzzing, FUZZ_SECONDS for another time: docs/fuzzing.md
	@$(CARGO) +nightly fuzz --version >/dev/null 2>&1 || { \
		echo "make: needs a nightly Rust and cargo-fuzz: rustup toolchain install nightly; cargo install cargo-fuzz" >&2; \
		exit 1; }
	fuzz/seeds.sh
	$(CARGO) +nightly fuzz run review -- \
		-max_total_time=$(FUZZ_SECONDS) -max_len=65536 -timeout=10 -rss_limit_mb=4096

lint: rust ## formatting and clippy, as `make test` begins
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

fmt: rust ## format the code
	$(CARGO) fmt --all

control-plane: rust go ## build etcd, the API server and the rest from Go modules: ten minutes, once
	$(CARGO) run --locked --quiet --package control-plane -- build

manifests: rust ## write manifests/generated anew from its config.yaml, after a change of src/manifests
	$(CARGO) run --locked --quiet -- manifests --config manifests/generated/config.yaml --output manifests/generated

clean: rust ## delete what was built, the control plane too
	$(CARGO) clean

.PHONY: build-demo
build-demo: rust go
	@echo "Building the release binary and the demo; the first time takes some minutes."
	@$(CARGO) build --locked --release --quiet --bin gitlab-runner-webhook --example demo

rust:
	@command -v $(CARGO) >/dev/null || { \
		echo "make: cargo is missing; install Rust, best with rustup: https://rustup.rs" >&2; exit 1; }

# The harness itself says when Go is too old. This says early that there is none.
go:
	@command -v go >/dev/null || [ -n "$$KUBEBUILDER_ASSETS" ] || { \
		echo "make: go is missing, which builds the control plane; install Go 1.26 or newer: https://go.dev/dl" >&2; exit 1; }
