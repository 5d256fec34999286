# The human's way in; CMakeLists.txt has the build itself. Needs GNU make and a C compiler: `make
# deps` gets the rest, and the other targets get what they need.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
WERROR ?= OFF
CMAKE_ARGS ?=
FUZZ_SECONDS ?= 60

export JOBS
TESTS = ON
cmake_args = -DKIVI_BUILD_TESTS=$(TESTS) -DKIVI_WERROR=$(WERROR) \
	-DCMAKE_INSTALL_PREFIX="$(PREFIX)" $(CMAKE_ARGS)
demo_args = eval --model examples/lm/mini.gguf --text examples/lm/sample.txt --windows 2

# $(call build,<preset>): configures quietly and builds.
define build
@mkdir -p build
@cmake --preset $(1) $(cmake_args) >build/$(1).log || { cat build/$(1).log; exit 1; }
@cmake --build build/$(1) -j $(JOBS)
endef

.PHONY: help deps build demo bench check check-long check-tsan check-cuda demo-cuda fuzz install \
	format clean

help: ## This list
	@echo "libkivi: a quantized key/value cache. Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: JOBS=$(JOBS) PREFIX=$(PREFIX) WERROR=$(WERROR) CMAKE_ARGS=$(CMAKE_ARGS)"

deps: ## Install what is missing for building and testing (Debian and relatives)
	@cmake/deps.sh build check

build: TESTS = OFF
build: ## The optimized library and tools, in build/release
	@cmake/deps.sh build
	$(call build,release)

demo: build ## A small language model on several caches, side by side
	OMP_WAIT_POLICY=passive build/release/examples/kivi-lm $(demo_args) --cache f16,kivi4,kivi2,k2t

bench: build ## The standard table of speeds
	build/release/bench/kivi-bench all --quick

check: deps ## All tests: optimized, sanitizers, valgrind, install and consume
	@tests/check.sh $(cmake_args)

check-long: deps ## The tests that take longer: millions of steps, every combination
	$(call build,release)
	KIVI_TEST_LONG=1 ctest --test-dir build/release --output-on-failure

check-cuda: deps ## The tests on a GPU; says so where there is none
	$(call build,cuda)
	ctest --test-dir build/cuda --output-on-failure -L cuda

demo-cuda: TESTS = OFF
demo-cuda: ## The demo with the cache on a GPU
	@cmake/deps.sh build
	$(call build,cuda)
	KIVI_MODULE_PATH="$(CURDIR)/build/cuda/src/cuda" KIVI_BACKEND=cuda \
		build/cuda/examples/kivi-lm $(demo_args) --cache f16,kivi4,kivi2

fuzz: TESTS = OFF
fuzz: ## All fuzz targets, FUZZ_SECONDS each (60)
	@cmake/deps.sh build fuzz
	$(call build,fuzz)
	fuzz/run.sh build/fuzz/fuzz $(FUZZ_SECONDS)

install: build ## Install to PREFIX (/usr/local); DESTDIR is honoured
	cmake --install build/release

format: ## Format the sources
	@cmake/deps.sh format
	git ls-files '*.c' '*.h' '*.cu' '*.cuh' | xargs clang-format -i

clean: ## Remove build/
	rm -rf build

-include cmake/cross.mk
