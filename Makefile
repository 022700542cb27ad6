# Everything a person does with the platform. `make up` and `make test` are the two that a newcomer needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
export CHURN_HOME ?= $(CURDIR)/.churn

.DEFAULT_GOAL := help
.PHONY: help up down next-month status test test-slow fuzz crash gates bench-data bench-training bench-scoring bench-serving image test-container manifests lint format clean lock check

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

up: $(VENV)/.installed ## land the history, play it, start Dagster and the endpoint
	@$(BIN)/churn up

down: $(VENV)/.installed ## stop Dagster and the endpoint; data and models stay
	@$(BIN)/churn down

next-month: $(VENV)/.installed ## land the next month's raw data, and nothing else
	@$(BIN)/churn land

status: $(VENV)/.installed ## what runs, which windows are done, who is champion
	@$(BIN)/churn status

check: $(VENV)/.installed ## read contract.yaml back in words, or say what is wrong with it
	@$(BIN)/churn contract check

test: $(VENV)/.installed ## the tests, but for those that take minutes each
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(VENV)/.installed ## the loop on real data in real processes, bad models, kills, and the search for secrets
	@$(BIN)/python -m pytest -m slow --numprocesses auto --dist loadfile

fuzz: $(VENV)/.installed ## spoil the input in every way that we know, many times over
	@CHURN_FUZZ=200 $(BIN)/python -m pytest churn_platform_tests/test_corruptions.py

crash: $(VENV)/.installed ## kill the platform at 100 random moments, and compare with an undisturbed run
	@CHURN_CRASH_KILLS=100 $(BIN)/python -m pytest -m slow --timeout 3600 churn_platform_tests/test_crashes.py

gates: $(VENV)/.installed ## bring bad models before the gates, and good ones; write the table in docs/gates.md
	@$(BIN)/python -m churn_platform_tests.gates

# BENCH=--short for a quick look, or other options of benchmarks/data.py
BENCH ?= --with-1e8
bench-data: $(VENV)/.installed ## the data plane against the specification's own way, up to 1e8 purchases
	@$(BIN)/python -m benchmarks.data $(BENCH)

# BENCH_TRAINING=--short for a quick look, or other options of benchmarks/training.py
bench-training: $(VENV)/.installed ## time and memory of training at 1e5 and 1e6 rows
	@$(BIN)/python -m benchmarks.training $(BENCH_TRAINING)

# BENCH_SERVING=--short for a quick look, or other options of benchmarks/serving; needs scripts/install_bench_tools.sh
bench-serving: $(VENV)/.installed ## the endpoint against three other ways of serving the same model
	@$(BIN)/python -m benchmarks.serving $(BENCH_SERVING)

# TAG=name:version to call it otherwise; scripts/build_image.sh says what else can be set
image: $(VENV)/.installed ## the endpoint's container image (needs Docker)
	@PYTHON=$(CURDIR)/$(BIN)/python scripts/build_image.sh $(TAG)

test-container: $(VENV)/.installed ## build the image for real, with a Docker daemon of the test's own (Debian, root)
	@scripts/install_container_tools.sh
	@CHURN_TEST_CONTAINER=1 $(BIN)/python -m pytest --timeout 3600 -rs churn_platform_tests/serving/test_container.py

manifests: ## what Kubernetes is to run, rendered by kubectl's Kustomize
	@kubectl kustomize --load-restrictor LoadRestrictionsNone k8s/base

# BENCH_SCORING=--short for a quick look, or other options of benchmarks/scoring.py
BENCH_SCORING ?= --with-1e7
bench-scoring: $(VENV)/.installed ## batch scoring from Parquet to Parquet, against scikit-learn
	@$(BIN)/python -m benchmarks.scoring $(BENCH_SCORING)

lint: $(VENV)/.installed ## style, types and definitions
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.installed ## put the code in shape
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## stop everything; remove the environment, all data and all models
	@if [ -x $(BIN)/churn ]; then $(BIN)/churn down; fi
	rm -rf $(VENV) $(CHURN_HOME) build dist .mypy_cache .ruff_cache .hypothesis

# Bytecode is compiled at install: without it every cold start of Dagster is several times slower.
$(VENV)/.installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11, or make PYTHON=/path/to/it"; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@echo "installing the locked packages into $(VENV)"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --require-hashes --compile-bytecode -r requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lock: ## resolve the newest versions that pyproject.toml allows into the two lock files
	$(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-annotate --python-version 3.11 \
		--custom-compile-command "make lock" --all-extras --group dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-annotate --python-version 3.11 \
		--custom-compile-command "make lock" --extra serving -c requirements.lock pyproject.toml -o serving/requirements.lock
