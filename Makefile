# What can be done with this checkout. `make` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo check test prove atomicity faults fanout restart bench fuzz test-kernel test-compose images \
  build release fmt lint doc deny advisories microbench deps clean

# Where rustup puts cargo, and where Debian puts nft: not on everybody's path.
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin

toolchain := $(shell deploy/toolchain)
ifneq ($(toolchain),)
export RUSTUP_TOOLCHAIN := $(toolchain)
endif

target := $(or $(CARGO_TARGET_DIR),target)
# This machine as Rust calls it. Asked when needed: without Rust there is still a list of targets.
host = $(shell rustc -vV | sed -n 's/^host: //p')

# Images hold static programs. With STATIC=1 the demo uses them too, which saves a second release build.
build_static = RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target $(host)
static = $(target)/$(host)/release
build_release = $(if $(STATIC),$(build_static),cargo build --release)
release = $(if $(STATIC),$(static),$(target)/release)

# The test files that need no kernel and little time.
quick = architecture compile fake laws lease manifest names nodes plan planner simulation writer

heading = printf '\n\033[1m== %s\033[0m\n'

help: ## This list
	@echo 'Sallyport enforces NetworkPolicy on Linux nodes. In this checkout:'
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22
	@echo
	@echo 'Start with "make demo". Root is not needed where the kernel lets users make namespaces.'

demo: deps ## See policy enforced on this machine's kernel (ARGS=--bridged: pods behind bridges)
	$(build_release) --bin sallyport-controlplane --bin sallyport-enforcer --bin sallyport --bin demo
	$(release)/demo $(ARGS)

check: lint ## What a change runs again and again: formatting, lints, tests without the kernel, a short simulation
	@$(heading) 'cargo test (without the kernel)'
	SALLYPORT_SIMULATION_SEEDS=$(or $(SEEDS),1000) cargo test --workspace --no-fail-fast --lib --bins \
	  $(addprefix --test ,$(quick))

test: lint doc ## Formatting, lints, documentation, all tests; those on the real kernel where that is allowed
	@$(heading) 'cargo test'
	SALLYPORT_PROGRAMS_BUILT=1 cargo test --workspace --no-fail-fast

prove: ## The long proofs: atomicity, faults, fan-out, restart, fuzzing; more than an hour
	$(MAKE) atomicity EDITS=$(or $(EDITS),2000) ARGS=--all
	$(MAKE) faults
	$(MAKE) fanout
	$(MAKE) restart
	$(MAKE) fuzz

atomicity: deps ## Prove that edits never open a path nor break one, beside controls that leak (EDITS=1000 ARGS=--all)
	$(build_release) --bin sallyport-controlplane --bin sallyport-enforcer --bin sallyport --bin atomicity
	$(release)/atomicity --edits $(or $(EDITS),1000) $(ARGS)

faults: deps ## Do to it what can happen: kills, reboots, full disks, flushes, garbage, under probes (ARGS='--only kill --kills 1000')
	$(build_release) --bin sallyport-controlplane --bin sallyport-enforcer --bin sallyport --bin faults
	$(release)/faults $(ARGS)

fanout: deps ## One control plane with many simulated nodes, measured (ARGS='--nodes 5000 --pods 100000 --policies 10000')
	$(build_release) --bin sallyport-controlplane --bin sallyport-enforcer --bin sallyport --bin fanout
	$(release)/fanout $(ARGS)

restart: deps ## Restarts of a large cluster under a flood, timed (ARGS='--pods 100000 --policies 10000 --nodes 400 --peers 100000')
	$(build_release) --bin sallyport-controlplane --bin sallyport-enforcer --bin sallyport --bin restart
	$(release)/restart $(ARGS)

bench: deps ## Benchmarks, each beside what it is compared with (ARGS='B10 --policies 1,1000 --rounds 5'; --list names them)
	@deploy/dependencies bench
	$(build_release) --bin sallyport-controlplane --bin sallyport-enforcer --bin sallyport --bin bench
	$(release)/bench $(ARGS)

microbench: deps ## Time of the core's functions, by the size of the change (ARGS='meet --save-baseline before')
	cargo bench --bench meet --bench plan --bench compiler -- $(ARGS)

fuzz: deps ## Fuzz everything that reads what others wrote (SECONDS=60 for each target, ONLY='manifest netlink')
	deploy/fuzz $(or $(SECONDS),60) $(ONLY)

test-kernel: deps ## The same on other kernels, booted in virtual machines (ARGS='6.1 6.12', ARGS=--help)
	$(build_static) --bin sallyport-controlplane --bin sallyport-enforcer --bin sallyport \
	  --bin demo --bin conformance --bin atomicity --bin faults --bin datapath
	deploy/test-kernel --programs $(static) $(ARGS)

test-compose: images ## The demo's walk-through across containers, by docker-compose.yml
	deploy/test-compose

images: deps ## Container images of all programs, FROM scratch: nothing is pulled
	$(build_static) \
	  --bin sallyport-controlplane --bin sallyport-enforcer --bin sallyport --bin walkthrough
	mkdir -p target/images
	for program in sallyport-controlplane sallyport-enforcer sallyport walkthrough; do \
	  strip --strip-debug -o target/images/$$program $(static)/$$program; \
	done
	deploy/compose build --quiet
	docker images --filter 'reference=localhost/sallyport-*'

doc: deps ## The documentation of all crates, in target/doc; a broken link is an error
	@$(heading) 'cargo doc'
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps

deny: deps ## Licences, banned crates and sources of all dependencies, by deny.toml
	@deploy/dependencies deny
	cargo fetch --locked
	cargo deny --offline --locked check licenses bans sources

advisories: deps ## Known flaws of the dependencies, by the RustSec database (from GitHub)
	@deploy/dependencies deny
	@deploy/advisories

release: ## Files of a release: static programs, notes, checksums, in target/release-VERSION
	deploy/release

build: deps ## Release builds of all programs, in target/release
	cargo build --release --workspace --bins

fmt: ## Format the code
	cargo fmt --all
	cargo fmt --manifest-path integration/fuzz/Cargo.toml

lint: deps ## Formatting and lints, as `make check` checks them
	@$(heading) 'cargo fmt --check'
	cargo fmt --all --check
	cargo fmt --manifest-path integration/fuzz/Cargo.toml --check
	@$(heading) 'cargo clippy'
	cargo clippy --workspace --all-targets -- -D warnings

deps: ## Install what is missing (as root on Debian; else the command is named)
	@deploy/dependencies

clean: ## Delete everything that was built; container images stay
	cargo clean
	cargo clean --manifest-path integration/fuzz/Cargo.toml
