# Each target does all of its own set-up; on a fresh Debian 12, as root, `make demo` and `make test` need nothing before.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export ENTREPOT_CACHE ?= $(HOME)/.cache/entrepot
PYTHON := $(ENTREPOT_CACHE)/venv/bin/python
export PATH := $(ENTREPOT_CACHE)/venv/bin:$(ENTREPOT_CACHE)/bin:$(PATH):/usr/local/sbin:/usr/sbin:/sbin
export PYTHONPATH := $(CURDIR):$(CURDIR)/core:$(CURDIR)/operator:$(CURDIR)/services/setup:$(CURDIR)/services/registry:$(CURDIR)/services/token:$(CURDIR)/services/syncer:$(CURDIR)/services/keeper
export PYTHONDONTWRITEBYTECODE := 1
OWN_KUBECONFIG := /var/lib/entrepot-cluster/admin.kubeconfig

.PHONY: help setup cluster-up cluster-down images check test test-unit test-integration test-cluster bench soak demo demo-down fmt lock schema

help: ## what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## packages, Python environment, Go-built tools; a second when all is there
	@hack/setup

cluster-up: setup ## the project's own single-node cluster
	@hack/cluster/up $(ENTREPOT_CACHE)/bin

cluster-down: ## stop it and remove every trace
	@hack/cluster/down

images: cluster-up ## build the images and load them into the node
	@CLUSTER_KIND=own hack/images

check: setup ## the fast gate: format, lint, types, layers, unit tests
	ruff format --check .
	ruff check .
	mypy
	lint-imports --config pyproject.toml
	hack/values-docs --check
	$(PYTHON) -m pytest -q tests/unit

test: check test-integration test-cluster ## every test, those in the cluster included

test-integration: setup ## real PostgreSQL, real S3, real registries
	$(PYTHON) -m pytest -q -n auto --maxprocesses 4 --dist loadfile tests/integration

test-cluster: setup ## a real cluster: the project's own node, or the one that ENTREPOT_TEST_KUBECONFIG names
	if [ -z "$${ENTREPOT_TEST_KUBECONFIG:-}" ]; then hack/cluster/up $(ENTREPOT_CACHE)/bin; CLUSTER_KIND=own hack/images; fi
	KUBECONFIG="$${ENTREPOT_TEST_KUBECONFIG:-$(OWN_KUBECONFIG)}" hack/remove-release
	$(PYTHON) -m pytest -q tests/cluster

bench: setup ## side by side with peers; prints tables
	$(PYTHON) -m bench.commit
	$(PYTHON) -m bench.sync
	$(PYTHON) -m bench.registry

soak: setup ## memory of the registry under 32 uploads of 1 GB at once, with up to 64 GB of disk for a while; then ten minutes of fuzzing
	$(PYTHON) -m bench.soak
	$(PYTHON) -m tests.fuzz --seconds 60

demo: ## from nothing to a pod that runs from a mirrored image
	@hack/demo

demo-down: ## remove every trace of it
	@hack/demo-down

fmt: setup ## format and mend what can be mended by itself
	ruff format .
	ruff check --fix .

schema: setup ## write core/entrepot/db/schema.sql from the migrations
	$(PYTHON) -m tests.schema

lock: setup ## pin all Python dependencies anew, with hashes
	uv pip compile -q pyproject.toml --extra all --universal --python-version 3.11 --generate-hashes --no-header -o requirements/runtime.txt
	uv pip compile -q pyproject.toml --extra all --group dev --universal --python-version 3.11 --generate-hashes --no-header -o requirements/dev.txt
	echo "hatchling>=1.27" | uv pip compile -q - --universal --python-version 3.11 --generate-hashes --no-header -o requirements/build.txt
