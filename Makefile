# Everything a contributor runs. Each verb sets up what it needs; Python 3.11 or newer and make are enough to begin with.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
LOCK_ARGS ?=
MATRIX_ARGS ?=
IMAGE_ARGS ?=

BIN := .venv/bin
DEMO := .venvs/demo
RELEASE := .venvs/release
MAKE_ENVIRONMENT := $(PYTHON) -m tools.environments
# Two at a time: tests that wait leave the core to others.
PARALLEL := -n 2 --dist worksteal
NOT_ALONE := not interop and not cargo and not go

# They would show the environments modules of other programs, or hide this folder's. tools/environments.py says the same of pip.
unexport PYTHONPATH PYTHONHOME PYTHONSAFEPATH

.DEFAULT_GOAL := help
.PHONY: help setup demo check check-core check-proxy test matrix interop lint format types cover bench bench-full bench-setup lock image-check installs dist release clean

help:  ## list the verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup:  ## .venv, as requirements-dev.txt says; the other verbs do it by themselves
	@$(MAKE_ENVIRONMENT) .venv requirements-dev.txt --editable

demo:  ## kill and restart a server under a client, without the sidecar and with it
	@$(MAKE_ENVIRONMENT) $(DEMO) requirements-demo.txt --no-compile
	@$(DEMO)/bin/python -m mcp_sidecar demo

# Two processes that share nothing cost less than two that are handed one test after the other.
check: lint types  ## for daily work: lint, types, and the tests of the core and the proxy, within a minute
	@$(MAKE) --no-print-directory -j 2 check-core check-proxy

DAILY := $(BIN)/python -m pytest -q --hypothesis-profile quick -m "$(NOT_ALONE) and not long"

check-core:  ## the first half of the tests of check, which sets up
	@$(DAILY) tests/test_architecture.py tests/wire tests/verdicts tests/healing tests/waiting tests/downstream tests/streams tests/upstream tests/fastpath tests/sessions/stores $(PYTEST_ARGS)

check-proxy:  ## the other half
	@$(DAILY) tests/endpoint tests/sessions --ignore tests/sessions/stores $(PYTEST_ARGS)

# 5 is pytest's status for "nothing to run".
test: setup  ## every test that needs only Python and Node
	$(BIN)/python -m tools.interop_env python node
	$(BIN)/python -m pytest $(PARALLEL) -m "$(NOT_ALONE)" $(PYTEST_ARGS) || test $$? -eq 5
	$(BIN)/python -m pytest -m "interop and not cargo and not go and not interop_full" $(PYTEST_ARGS) || test $$? -eq 5

matrix:  ## the tests without interop, on each Python that the package promises and this machine has
	$(PYTHON) -m tools.matrix $(MATRIX_ARGS) -- $(PARALLEL) -m "$(NOT_ALONE)" $(PYTEST_ARGS)

interop: setup  ## what needs cargo or Go, where those are reachable: servers, deploy/; and the official conformance suite
	$(BIN)/python -m tools.interop_env all
	$(BIN)/python -m pytest tests/interop tests/test_deploy.py -m "cargo or go or interop_full" $(PYTEST_ARGS) || test $$? -eq 5

lint: setup  ## ruff: rules and format; vulture: code that nobody uses
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/vulture

format: setup  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup  ## mypy --strict
	$(BIN)/mypy

cover: setup  ## line and branch coverage, without the interop suite
	$(BIN)/python -m pytest -m "$(NOT_ALONE)" --cov --cov-report=term-missing $(PYTEST_ARGS)

bench: setup  ## what the sidecar costs beside nginx, in less than five minutes; needs bench-setup once
	$(BIN)/python -m bench quick $(BENCH_ARGS)

bench-full: setup  ## the same at length, with the MCP proxies of today beside it
	$(BIN)/python -m bench full $(BENCH_ARGS)

bench-setup: setup  ## install what the benchmark needs: nginx, wrk, and proxies to compare with
	$(BIN)/python -m bench setup

lock:  ## resolve every lock anew; LOCK_ARGS="--keep project" after a change in pyproject.toml
	$(PYTHON) -m tools.locks $(LOCK_ARGS)

image-check: setup  ## build the Dockerfile for real and run what it made; needs root and Debian, and says what else it lacks
	$(BIN)/python -m tools.image_check $(IMAGE_ARGS)

installs:  ## install the locks with the pip that the oldest releases brought, and with the one that this Python brings
	$(PYTHON) -m tools.installs

dist:  ## wheel, sdist and SBOM in dist/, made reproducibly and checked
	@$(MAKE_ENVIRONMENT) $(RELEASE) tools/requirements/release.txt
	$(RELEASE)/bin/python -m tools.release dist

release:  ## date the changelog, commit, tag, and make what is released
	@$(MAKE_ENVIRONMENT) $(RELEASE) tools/requirements/release.txt
	$(RELEASE)/bin/python -m tools.release release

clean:  ## remove everything that make and the tools have made
	rm -rf .venv .venvs .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist
	rm -rf bench/node/node_modules tests/interop/node/node_modules tests/interop/node/conformance/node_modules
	rm -rf tests/interop/rust/target tests/interop/go/target
	find mcp_sidecar tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} +
