# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both go through `make setup`, which makes ./.venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup engine browser demo example test peers proof-calibrate proof-calibration proof-ray proof-rules proof-triton clean

help: ## show these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## make ./.venv with everything in it

# torch first and alone: an open version elsewhere would pull gigabytes of GPU libraries.
$(STAMP): pyproject.toml constraints.txt .ci/setup .ci/system.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash .ci/setup
	@touch $@

# One generated day to train on, another to compare on: what is learned by heart does not count.
DEMO_PROFILE := deepseek-r1-8xh200-sglang
DEMO_STEPS ?= 400000
demo: setup ## train a small policy on the built-in day, compare it, write demo/report.html
	@rm -rf demo && mkdir demo
	$(BIN)/tuner trace generate --workload deepseek-r1-day --hours 24 --seed 1 --out demo/train.parquet
	$(BIN)/tuner trace generate --workload deepseek-r1-day --hours 24 --seed 2 --out demo/day.parquet
	$(BIN)/tuner train --trace demo/train.parquet --profile $(DEMO_PROFILE) --steps $(DEMO_STEPS) --seed 1 --out demo/policy-1.0.0
	$(BIN)/tuner compare --trace demo/day.parquet --train-trace demo/train.parquet --profile $(DEMO_PROFILE) --policies static,hpa,demo/policy-1.0.0 --seeds 3 --no-oracle --out demo
	@echo; echo "Open demo/report.html in a browser."

# What is committed of it: report.html, report.md, summary.json, run.json.
EXAMPLE := experiments/reports/deepseek-r1-day
TUNER := $(CURDIR)/$(BIN)/tuner
example: setup ## make the comparison in experiments/reports/deepseek-r1-day again (half an hour)
	cd $(EXAMPLE) && $(TUNER) trace generate --workload deepseek-r1-day --hours 24 --seed 1 --out train.parquet
	cd $(EXAMPLE) && $(TUNER) trace generate --workload deepseek-r1-day --hours 24 --seed 2 --out day.parquet
	cd $(EXAMPLE) && rm -rf day-1.0.0* && $(TUNER) train --trace train.parquet --profile $(DEMO_PROFILE) --steps 600000 --seed 1 --out day-1.0.0
	cd $(EXAMPLE) && $(TUNER) compare --trace day.parquet --train-trace train.parquet --profile $(DEMO_PROFILE) --config compare.yaml --policies $(EXAMPLE_POLICIES),day-1.0.0 --set schedule.file=timetable.csv --out report
EXAMPLE_POLICIES := static,static-best,hpa,keda,kpa,ray-serve,schedule,aibrix-apa,aibrix-kpa,wva-v1,wva-v2,dynamo-easy,dynamo-sla,planner

# The tests make it themselves when they need it; this does it ahead, or says why it cannot.
engine: setup ## install vLLM for the CPU into ./.venv-engine (2.5 GB, about 4 minutes)
	$(BIN)/python -m tests.real.vllm_env

# Only the tests need it: they look at the reports as a reader does.
browser:
	@bash .ci/browser

test: setup browser ## lint, types, import contracts and all tests
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/python -m mypy
	@bash .ci/tests $(BIN)/python $(PYTEST_ARGS)

proof-calibrate: setup ## what calibration predicts that it has not seen, against its bars (needs TUNER_DATA)
	@test -n "$(TUNER_DATA)" || { echo "set TUNER_DATA to the folder of the measurements"; exit 2; }
	$(BIN)/python -m experiments.calibration_proof --data $(TUNER_DATA)

peers: ## install what `python -m experiments.bench peers` compares with into ./.venv-peers (0.3 GB)
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/pip install --quiet --disable-pip-version-check ai-dynamo-runtime==1.6.1

proof-rules: setup ## rule-set vllm-v1 against vLLM's own scheduler, 1,500 random loads (a few minutes)
	@TUNER_RULES_CASES=1500 $(BIN)/python -m pytest tests/real/test_vllm_rules.py $(PYTEST_ARGS)

proof-calibration: setup ## a profile out of a recording of the real vLLM, against what it did not see (12 min)
	$(BIN)/python -m tests.real.calibration_proof

# Beside the environment, not in it: nothing else needs Ray.
.venv-ray/.installed: pyproject.toml constraints.txt $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --constraint constraints.txt --target .venv-ray 'ray>=2.60,<3'
	@touch $@

proof-ray: setup .venv-ray/.installed ## a comparison on a Ray cluster of two workers, the same bits as here (0.3 GB in ./.venv-ray)
	@PYTHONPATH="$(CURDIR):$(CURDIR)/.venv-ray" $(BIN)/python -m pytest tests/experiments/test_executors.py $(PYTEST_ARGS)

proof-triton: setup ## the Triton adapter against a real server (optional; 0.4 GB in ./.venv-triton)
	@bash .ci/triton
	@TUNER_TRITON=1 $(BIN)/python -m pytest tests/real/test_triton.py $(PYTEST_ARGS)

clean: ## remove ./.venv and what the commands made
	rm -rf $(VENV) .venv-engine .venv-engine.lock .venv-triton .venv-peers .venv-ray demo proof-calibration .mypy_cache .ruff_cache .pytest_cache .hypothesis
