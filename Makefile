# `make run` and `make test` do all the set-up themselves; see README.md. ARGS is handed to reloadlab or to pytest.
SHELL := /bin/sh
ARGS ?=
RUNS ?= 100

.PHONY: run test corpus faults soak null-runs setup browser lock
.DEFAULT_GOAL := run

run: setup
	@tools/as-root .venv/bin/reloadlab run $(ARGS)

test: setup browser
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	@tools/as-root .venv/bin/python -m pytest -n auto --dist worksteal -p no:cacheprovider $(ARGS)

corpus: setup
	@tools/as-root .venv/bin/reloadlab corpus $(ARGS)

faults: setup
	@tools/as-root tools/faults $(ARGS)

soak: setup
	@tools/as-root tools/soak $(RUNS) $(ARGS)

null-runs: setup
	@tools/as-root tools/ab-runs $(RUNS) own own --threshold 0.01 $(ARGS)

setup:
	@tools/setup

browser:
	@tools/setup browser

lock:
	@tools/lock
