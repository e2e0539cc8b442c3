# bootflip: `make help` lists what there is.

CARGO ?= cargo
ARGS ?=
LAB ?= target/lab
LAB_INSTALL ?= target/lab-install
LAB_XEN ?= target/lab-xen
SECONDS ?= 60

.PHONY: help build demo lab lab-install lab-xen bench fuzz test test-full deb deny check-tools

help:
	@echo "make demo [ARGS=...]   the whole cycle on loopback; needs Rust and a C compiler, no root"
	@echo "                       ARGS: --vms N, --seed S, --faults, --json"
	@echo "make lab [ARGS=...]    the whole cycle in QEMU with real firmware, installer and pygrub; root, Debian"
	@echo "                       ARGS: --vms N, --json"
	@echo "make lab-install [ARGS=...]"
	@echo "                       Debian's own installer, unmodified, in QEMU: half an hour and more; root, Debian"
	@echo "                       ARGS: --faults (a SIGKILL of the server in the middle), --json"
	@echo "make lab-xen [ARGS=...] a PV guest of a real Xen (in QEMU) is installed anew and comes back as PV; root, Debian"
	@echo "                       ARGS: --faults, --json"
	@echo "make bench [ARGS=...]  beside dnsmasq, tftpd-hpa, atftpd, Kea and nginx: ratios, target/bench.json; root, Debian"
	@echo "                       ARGS: --quick (2 minutes), --only tftp|http|dhcp|decode"
	@echo "make fuzz [SECONDS=60] each target of fuzz/ for so long; installs cargo-fuzz; RUNS=N: so many executions instead"
	@echo "make test              format, clippy, unit and integration tests; a time for each group"
	@echo "make test-full         make test, ten times as many walks, the demos, foreign XenAPI clients, schemathesis, the labs"
	@echo "make deb               target/debian/bootflip_*.deb, with manual pages, completions and an SBOM"
	@echo "make deny              licences, sources and doubles of all dependencies; ADVISORIES=1: known defects too"
	@echo "make build             target/debug/bootflip"

check-tools:
	@command -v $(CARGO) >/dev/null || { \
	    echo "cargo is missing: install Rust (https://rustup.rs), 1.90 or newer"; exit 1; }
	@command -v cc >/dev/null || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "a C compiler is missing (SQLite and the TLS library are C): installing gcc and libc6-dev"; \
	        apt-get -q update >/dev/null && apt-get -qy install gcc libc6-dev >/dev/null; \
	    else \
	        echo "a C compiler is missing (SQLite and the TLS library are C): install gcc"; exit 1; \
	    fi; }

build: check-tools
	$(CARGO) build --locked

demo: check-tools
	@$(CARGO) build --locked 1>&2
	@target/debug/bootflip demo $(ARGS)

lab: check-tools
	@[ "$$(id -u)" = 0 ] || { echo "make lab needs root: it makes a network namespace"; exit 1; }
	@tests/lab/prepare.sh $(LAB) 1>&2
	@$(CARGO) build --locked 1>&2
	@target/debug/bootflip lab --dir $(LAB) $(ARGS)

lab-install: check-tools
	@[ "$$(id -u)" = 0 ] || { echo "make lab-install needs root: it makes a network namespace"; exit 1; }
	@tests/labinstall/prepare.sh $(LAB_INSTALL) 1>&2
	@$(CARGO) build --locked 1>&2
	@target/debug/bootflip lab --installer debian --dir $(LAB_INSTALL) $(ARGS)

lab-xen: check-tools
	@[ "$$(id -u)" = 0 ] || { echo "make lab-xen needs root: it makes a network namespace"; exit 1; }
	@tests/labxen/prepare.sh $(LAB_XEN) $(LAB) 1>&2
	@$(CARGO) build --locked 1>&2
	@target/debug/bootflip lab-xen --dir $(LAB_XEN) $(ARGS)

bench: check-tools
	@[ "$$(id -u)" = 0 ] || { echo "make bench needs root: it makes network namespaces"; exit 1; }
	@benches/prepare.sh target/bench 1>&2
	@$(CARGO) bench --locked --bench compare -- $(ARGS)

# libFuzzer is C++. New finds stay out of the corpus in git: they go to fuzz/target.
fuzz: check-tools
	@command -v c++ >/dev/null || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "a C++ compiler is missing: installing g++"; \
	        apt-get -q update >/dev/null && apt-get -qy install g++ >/dev/null; \
	    else \
	        echo "a C++ compiler is missing (libFuzzer is C++): install g++"; exit 1; \
	    fi; }
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz
	@set -e; for target in $$($(CARGO) fuzz list); do \
	    echo "== $$target"; \
	    mkdir -p fuzz/target/corpus/$$target; \
	    RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
	        -print_final_stats=1 -verbosity=0 $(if $(RUNS),-runs=$(RUNS),-max_total_time=$(SECONDS)); \
	done

deb: check-tools
	@packaging/build.sh release

# The list of known defects is a git repository elsewhere; everything else needs only the registry.
deny: check-tools
	@packaging/tools.sh deny
	@target/tools/bin/cargo-deny check --hide-inclusion-graph bans licenses sources $(if $(ADVISORIES),advisories)

test: check-tools
	@tests/run.sh

test-full: check-tools
	@BOOTFLIP_FULL=1 tests/run.sh
