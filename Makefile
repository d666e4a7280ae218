# Every command that people and CI use. `make` alone explains them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
PORT ?= 8000
STAGES ?= 2
MODELS ?= 1000
SCHEDULES ?= 10000
ROUNDS ?= 5
OUT ?= build/peers

.PHONY: help setup run check format lint types imports unit test families serve-test integration \
	simulation e2e images bench bench-operator bench-peers bench-kill bench-recovery golden map clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv with everything in it (once)
	@scripts/setup

run: setup ## Get the demo model and serve it in 2 stages on 127.0.0.1:8000
	@model=$$($(BIN)/lamella demo-model) && exec $(BIN)/lamella serve "$$model" --stages $(STAGES) --port $(PORT)

check: setup format lint types imports unit ## What CI checks first: style, types, imports, unit tests

format:
	$(BIN)/ruff format --check .

lint:
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

imports:
	$(BIN)/lint-imports

unit:
	$(BIN)/pytest -q -m 'not families and not serve and not apiserver and not e2e'

test: setup unit families serve-test integration ## Every test that needs no cluster

families: setup ## The law of the split, for every family of the installed transformers
	$(BIN)/pytest -q -m families --timeout 1800

serve-test: setup ## Real processes, real sockets, the real demo model
	$(BIN)/pytest -q -m serve --timeout 900

integration: setup ## The operator on a real kube-apiserver (scripts/control-plane finds or builds one)
	scripts/control-plane >/dev/null
	LAMELLA_REQUIRE_CONTROL_PLANE=1 $(BIN)/pytest -q -m apiserver --timeout 600

simulation: setup ## Pipelines in simulated time, SCHEDULES times at random: every fault, nothing lost
	$(BIN)/python -m tests.simulation.run --schedules $(SCHEDULES)

images: ## Build the operator's and the worker's image with docker
	scripts/images

e2e: setup ## Real pods: chart, sample and every fault, on the cluster of KUBECONFIG or on one of its own
	scripts/e2e

bench-operator: setup ## A thousand models on a real API server: memory, time to converge, time to replace
	$(BIN)/python -m benchmarks.operator_bench --models $(MODELS)

bench-recovery: setup ## Break a running pipeline at random moments: what is lost, and how long it takes
	$(BIN)/python -m benchmarks.recovery --publish

golden: setup ## Write the golden manifests anew; the diff is for reviewers
	$(BIN)/pytest -q tests/operator_/desired tests/chart --update-golden

bench: setup ## Measure the figures that docs/performance.md states
	$(BIN)/python -m benchmarks

bench-peers: setup ## Beside vLLM, llama.cpp and transformers on the same two cores: table and plot (ROUNDS, OUT)
	$(BIN)/python -m benchmarks.peers --rounds $(ROUNDS) --into $(OUT)

bench-kill: setup ## Kill a stage of each of them in mid-answer: what clients see (OUT)
	$(BIN)/python -m benchmarks.peers --kill --into $(OUT)

map: ## Write README's file map and docs/manifest.md anew
	python3 scripts/file_map
	$(BIN)/python scripts/manifest_doc

clean: ## Remove what setup and the tools made
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
