# SPDX-License-Identifier: GPL-2.0-or-later
# The habitual verbs; the work is done by ./configure, meson, ninja and the programs in tests/.

build := build
# ninja's own choice (all processors) unless JOBS says otherwise.
export JOBS
targets := qemu-img qemu-io qemu-nbd storage-daemon/qemu-storage-daemon qemu-system-x86_64

.DEFAULT_GOAL := all
.PHONY: all configured core programs programs-asan check check-unit check-sim check-fuzz check-long \
        check-mutants check-qemu check-iotests check-asan bench demo clean help

all: core programs ## Build everything; the programs land in build/bin

configured:
	@block/qemu/check-core-list.sh
	@./configure --again

core: configured
	@qemu/build-dir $(build)/core
	@mkdir -p $(build)/bin && ln -sf ../core/tests/sim/fvd-sim $(build)/bin/fvd-sim

programs: configured
	@qemu/build-dir $(build)/qemu $(targets)
	@mkdir -p $(build)/bin
	@cd $(build)/bin && ln -sf $(addprefix ../qemu/,$(targets)) .

programs-asan:
	@./configure --again --enable-asan
	@qemu/build-dir $(build)/qemu-asan $(targets)
	@mkdir -p $(build)/bin-asan
	@cd $(build)/bin-asan && ln -sf $(addprefix ../qemu-asan/,$(targets)) .

check: all ## Run all tests; ends with the line 'N passed, N failed'
	@tests/run-all unit sim plants threads fuzz qemu iotests

check-unit: core ## The units of the core
	@tests/run-all unit

check-sim: core ## The simulator, its planted bugs, the core on real threads
	@tests/run-all sim plants threads

check-fuzz: ## The fuzzers and their corpus
	@tests/run-all fuzz

check-long: core ## Simulator and fuzzers for hours
	@tests/run-all sim-long fuzz-long

check-mutants: core ## Conditions of the format units flipped, one at a time: does a test notice?
	@tests/unit/mutants.py

check-qemu: programs ## Black-box tests of the real programs
	@tests/run-all qemu

check-iotests: programs ## QEMU's own block tests with -fvd
	@tests/run-all iotests

check-asan: all programs-asan ## Black-box tests of programs built with sanitizers
	@FVD_BIN=$(CURDIR)/$(build)/bin-asan tests/run-all qemu

bench: all ## Side by side with raw, qcow2 and QED
	@tests/bench/run

demo: programs ## Boot a VM over a slow link, cut its power, show that nothing is lost
	@tests/demo

clean: ## Remove build/ (fetched sources and compiler output stay in the cache)
	rm -rf $(build)

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-14s %s\n", $$1, $$2 }'
	@echo; echo "  ./configure --help    other QEMU sources, sanitizers, where things are kept"
