# Every command that people and CI use. `make` alone explains them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
PORT ?= 8000
STAGES ?= 2

.PHONY: help setup run check format lint types imports unit test families serve-test bench map clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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
	$(BIN)/pytest -q -m 'not families and not serve'

test: setup unit families serve-test ## Every test: unit, all model families, the whole thing as a user runs it

families: setup ## The law of the split, for every family of the installed transformers
	$(BIN)/pytest -q -m families --timeout 1800

serve-test: setup ## Real processes, real sockets, the real demo model
	$(BIN)/pytest -q -m serve --timeout 900

bench: setup ## Measure the figures that docs/performance.md states
	$(BIN)/python -m benchmarks

map: ## Write README's file map anew
	python3 scripts/file_map

clean: ## Remove what setup and the tools made
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
