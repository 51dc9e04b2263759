# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both go through `make setup`, which makes ./.venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types clean

help: ## show these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## make ./.venv with everything in it

# torch first and alone: an open version elsewhere would pull gigabytes of GPU libraries.
$(STAMP): pyproject.toml constraints.txt .ci/setup
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash .ci/setup
	@touch $@

demo: setup ## train a small policy on the built-in day, compare it, write demo/report.html
	@$(BIN)/python -m experiments.demo --out demo

test: setup ## lint, types, import contracts and all tests
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

clean: ## remove ./.venv and what the commands made
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
