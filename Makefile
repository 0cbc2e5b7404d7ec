# Everything a contributor runs. Each verb sets up what it needs; Python 3.11 or newer and make are enough to begin with.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCK_VENV := .venvs/lock
PIP_TOOLS := pip-tools==7.6.2
LOCK := $(LOCK_VENV)/bin/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host

.DEFAULT_GOAL := help
.PHONY: help demo test interop lint format types cover bench bench-full bench-setup lock clean

help:  ## list the verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

$(READY): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## kill and restart a server under a client, without the sidecar and with it
	$(BIN)/mcp-sidecar demo

test: $(READY)  ## every test that needs only Python and Node
	$(BIN)/python tools/interop_env.py python node
	$(BIN)/python -m pytest -m "not cargo and not interop_full" $(PYTEST_ARGS)

# 5 is pytest's status for "nothing to run".
interop: $(READY)  ## servers that need cargo, where it is reachable, and the official conformance suite
	$(BIN)/python tools/interop_env.py all
	$(BIN)/python -m pytest tests/interop -m "cargo or interop_full" $(PYTEST_ARGS) || test $$? -eq 5

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## mypy --strict
	$(BIN)/mypy

cover: $(READY)  ## line and branch coverage, without the interop suite
	$(BIN)/python -m pytest -m "not interop and not cargo" --cov --cov-report=term-missing $(PYTEST_ARGS)

bench: $(READY)  ## what the sidecar costs beside nginx, in about three minutes; needs bench-setup once
	$(BIN)/python -m bench quick $(BENCH_ARGS)

bench-full: $(READY)  ## the same at length, with the MCP proxies of today beside it
	$(BIN)/python -m bench full $(BENCH_ARGS)

bench-setup: $(READY)  ## install what the benchmark needs: nginx, wrk, and proxies to compare with
	$(BIN)/python -m bench setup

lock: $(LOCK_VENV)/.ready  ## resolve the pinned requirements anew
	CUSTOM_COMPILE_COMMAND="make lock" $(LOCK) --output-file requirements.txt pyproject.toml
	CUSTOM_COMPILE_COMMAND="make lock" $(LOCK) --constraint requirements.txt --extra demo --extra dev \
		--output-file requirements-dev.txt pyproject.toml

$(LOCK_VENV)/.ready: Makefile
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_TOOLS)
	@touch $@

clean:  ## remove everything that make and the tools have made
	rm -rf $(VENV) .venvs .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist
	rm -rf bench/node/node_modules tests/interop/node/node_modules tests/interop/node/conformance/node_modules tests/interop/rust/target
	find mcp_sidecar tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} +
