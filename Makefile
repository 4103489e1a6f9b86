# `make` lists the targets. Everything runs on loopback; nothing but `make e2e` needs root or containers.

# Each integration test runs a control plane of its own, some 400 MB of memory each.
RUST_TEST_THREADS ?= 3
export RUST_TEST_THREADS

CARGO ?= cargo
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= review pem der config timeout

# The image: a static binary and nothing else.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
IMAGE_TARGET ?= $(shell uname -m)-unknown-linux-gnu
IMAGE ?= gitlab-runner-webhook:$(VERSION)
IMAGE_FLAGS ?=
# Only of what is committed: a label must not claim more.
REVISION ?= $(shell git diff --quiet HEAD -- 2>/dev/null && git rev-parse HEAD)
IMAGE_ARCHIVE = target/image/gitlab-runner-webhook.tar
STATIC_BINARY = target/$(IMAGE_TARGET)/release/gitlab-runner-webhook
CYCLONEDX_VERSION = 0.5.9
CYCLONEDX = target/tools/cargo-cyclonedx-$(CYCLONEDX_VERSION)
DENY_VERSION = 0.20.2
DENY = target/tools/cargo-deny-$(DENY_VERSION)
CHECKS ?= bans licenses sources
MUTANTS_VERSION = 27.1.0
MUTANTS = target/tools/cargo-mutants-$(MUTANTS_VERSION)

SCRIPTS = .ci/run certs/issue.sh fuzz/seeds.sh
# Decisions.
MUTATED = src/sync/clone/plan.rs src/sync/trust_bundle/plan.rs src/admission/kind.rs src/admission/inject.rs \
	src/admission/inject/job.rs src/admission/inject/manager.rs src/admission/gate.rs src/pki/keyring.rs \
	src/pki/plan.rs src/pki/state.rs src/trust/bundle.rs

DEMO = $(CARGO) run --locked --release --quiet --example demo --

.PHONY: help demo demo-keep test e2e bench perturb soak fuzz mutants lint deny fmt image static sbom fips control-plane manifests docs clean rust go
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r target text; do \
		printf '  make %-14s %s\n' "$$target" "$$text"; \
	done

demo: build-demo ## the program on a real control plane, step by step, with measured times
	@$(DEMO)

demo-keep: build-demo ## the same, and everything stays up to play with until Ctrl-C
	@$(DEMO) --keep

test: lint control-plane ## formatting, lints, then unit, property and integration tests on a real API server
	$(CARGO) test --locked --workspace

image: static ## the image as target/image/gitlab-runner-webhook.tar, without Docker: docs/image.md
	$(CARGO) run --locked --quiet --package image-archive -- --binary $(STATIC_BINARY) --output $(IMAGE_ARCHIVE) \
		--image-version $(VERSION) --reference $(IMAGE) --revision "$(REVISION)" $(IMAGE_FLAGS)

# Paths of this machine are taken out: they mean nothing elsewhere, and are nobody's business.
static: rust ## the static binary of the image
	@registry="$${CARGO_HOME:-$$HOME/.cargo}/registry/src" && set -x && \
	RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$(CURDIR)=. --remap-path-prefix=$$registry=registry" \
	CFLAGS="-ffile-prefix-map=$$registry=registry" \
	$(CARGO) build --locked --release --target $(IMAGE_TARGET) --target-dir target --bin gitlab-runner-webhook

sbom: rust ## what is compiled into the image: target/image/gitlab-runner-webhook.cdx.json (CycloneDX)
	@test -x $(CYCLONEDX)/bin/cargo-cyclonedx || $(CARGO) install --locked --quiet --root $(CYCLONEDX) \
		--target-dir target/tools/build cargo-cyclonedx --version $(CYCLONEDX_VERSION)
	@mkdir -p target/image
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-0} $(CYCLONEDX)/bin/cargo-cyclonedx cyclonedx --quiet --format json \
		--spec-version 1.5 --target $(IMAGE_TARGET) --no-build-deps --describe binaries
	@sed 's#path+file://$(CURDIR)#path+file://#g' cli/gitlab-runner-webhook_bin.cdx.json >target/image/gitlab-runner-webhook.cdx.json
	@rm -f *_bin.cdx.json cli/*_bin.cdx.json image/*_bin.cdx.json tests/*/*_bin.cdx.json
	@echo target/image/gitlab-runner-webhook.cdx.json

# On the node that is started here, cargo has no network: everything is built before.
e2e: rust ## the program in containers, on a node that is started for it (Linux, root) or on the cluster of KUBECONFIG
ifeq ($(KUBECONFIG),)
	$(CARGO) run --locked --quiet --package control-plane -- node --check
	@$(MAKE) --no-print-directory go image
	$(CARGO) test --locked --no-run --test e2e
	E2E_IMAGE=$(filter-out gitlab-runner-webhook:$(VERSION),$(IMAGE)) \
	$(CARGO) run --locked --quiet --package control-plane -- node --load $(IMAGE_ARCHIVE) -- \
		$(CARGO) test --locked --offline --quiet --test e2e
	$(CARGO) test --locked --package control-plane --test node -- --ignored --test-threads=1
else
	$(CARGO) test --locked --test e2e
endif

fips: rust control-plane ## build with the FIPS module of AWS-LC, and run that once; takes CMake
	$(CARGO) test --locked --features fips --target-dir target/fips --test fips

bench: rust go ## latency beside the floor (a bare watch and apply loop), measured in the same run
	$(CARGO) bench --locked --bench '*'

perturb: control-plane ## one thing goes wrong, at every point of a story where one can: docs/soak.md
	$(CARGO) test --locked --test perturb -- --include-ignored --nocapture --test-threads=1 soak_perturb

soak: lint control-plane ## what takes minutes by its nature; the last result is in docs/soak.md
	$(CARGO) test --locked --workspace -- --ignored soak

fuzz: rust ## ten minutes of fuzzing of each target, FUZZ_SECONDS for another time: docs/fuzzing.md
	@$(CARGO) +nightly fuzz --version >/dev/null 2>&1 || { \
		echo "make: needs a nightly Rust and cargo-fuzz: rustup toolchain install nightly; cargo install cargo-fuzz" >&2; \
		exit 1; }
	fuzz/seeds.sh
	@set -e; for target in $(FUZZ_TARGETS); do set -x; \
		$(CARGO) +nightly fuzz run $$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=65536 -timeout=10 -rss_limit_mb=4096; \
	done

lint: rust ## formatting, clippy and the documentation of the code, as `make test` begins
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --quiet --no-deps --workspace
	$(CARGO) check --locked --quiet --manifest-path fuzz/Cargo.toml --target-dir target/fuzz

	@if command -v shellcheck >/dev/null; then set -x; shellcheck $(SCRIPTS); else \
		echo "make: shellcheck is missing, the scripts are NOT checked; install it" >&2; fi

# Advisories need RustSec's database, which is fetched from the internet: `make deny CHECKS=advisories`.
deny: rust ## licenses, sources and duplicates of what is compiled in, by deny.toml
	@test -x $(DENY)/bin/cargo-deny || $(CARGO) install --locked --quiet --root $(DENY) \
		--target-dir target/tools/build cargo-deny --version $(DENY_VERSION)
	$(DENY)/bin/cargo-deny --locked check $(CHECKS)

mutants: rust ## is each decision held by a unit test? An hour and more; the last result is in docs/soak.md
	@test -x $(MUTANTS)/bin/cargo-mutants || $(CARGO) install --locked --quiet --root $(MUTANTS) \
		--target-dir target/tools/build cargo-mutants --version $(MUTANTS_VERSION)
	$(MUTANTS)/bin/cargo-mutants mutants --package gitlab-runner-webhook --output target/mutants \
		$(addprefix --file ,$(MUTATED)) -- --lib

fmt: rust ## format the code
	$(CARGO) fmt --all

control-plane: rust go ## build etcd, the API server and the rest from Go modules: ten minutes, once
	$(CARGO) run --locked --quiet --package control-plane -- build

manifests: rust ## write manifests/generated anew from its config.yaml, after a change of cli/src/manifests
	$(CARGO) run --locked --quiet -- manifests --config manifests/generated/config.yaml --output manifests/generated

docs: rust ## man pages and shell completions below target/docs/share; and the generated tables of docs/
	$(CARGO) run --locked --quiet --example reference -- target/docs
	UPDATE_DOCS=1 $(CARGO) test --locked --quiet --test offline docs::

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
