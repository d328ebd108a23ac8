# `make run` and `make test` do all the set-up themselves; see README.md. ARGS is handed to reloadlab or to pytest.
SHELL := /bin/sh
ARGS ?=
comma := ,
RUNS ?= 100
PARTS ?= 9
KERNELS ?= 5.10,6.1,6.12,newest
# Without those that are the path of an image, which is there already.
VERSIONS = $(foreach kernel,$(subst $(comma), ,$(KERNELS)),$(if $(findstring /,$(kernel)),,$(kernel)))
KERNEL ?= 6.1

.PHONY: run test kernels vm box corpus faults soak null-runs setup for-tests lock
.DEFAULT_GOAL := run

run: setup
	@tools/as-root .venv/bin/reloadlab run $(ARGS)

test: setup for-tests
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	@tools/as-root .venv/bin/python -m pytest -n auto --dist worksteal -p no:cacheprovider $(ARGS)

# Needs QEMU, which set-up does not install: the first error says what does.
kernels: setup
	@$(if $(VERSIONS),tools/as-root .venv/bin/reloadlab vm fetch $(VERSIONS))
	@tools/as-root .venv/bin/reloadlab run --kernel $(KERNELS) --rounds 0 $(ARGS)

# Needs Vagrant, libvirt and QEMU, which set-up does not install: the first error says what does. docs/vagrant.md
vm: export KERNEL := $(KERNEL)
vm: export ARGS := $(ARGS)
vm:
	@tools/vm

# What a box is built with, set-up does not install either: the first error names it. docs/vagrant.md
box: setup
	@tools/as-root .venv/bin/reloadlab vm box $(KERNEL) $(ARGS)

corpus: setup
	@tools/as-root .venv/bin/reloadlab corpus $(ARGS)

faults: setup
	@tools/as-root tools/faults $(ARGS)

soak: setup
	@tools/as-root tools/soak $(RUNS) $(PARTS) $(ARGS)

null-runs: setup
	@tools/as-root tools/ab-runs $(RUNS) own own --threshold 0.01 $(ARGS)

setup:
	@tools/setup

for-tests:
	@tools/setup tests

lock:
	@tools/lock
