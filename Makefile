.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
RUN ?= runs/tiny
FAST ?=

help: ## list what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q $(TORCH) $(TORCH_INDEX)
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@

venv: $(VENV)/.ready ## create the environment

demo: $(VENV)/.ready ## train a small parent, compress, heal, tune, reinforce, report (FAST=1: shorter)
	$(BIN)/fretsaw run tiny --out $(RUN)$(if $(FAST),-fast --fast)

test: $(VENV)/.ready ## the quick checks, under 8 minutes on 2 cores
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest

$(VENV)-oracles/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-oracles
	$(VENV)-oracles/bin/python -m pip install -q $(TORCH) $(TORCH_INDEX)
	$(VENV)-oracles/bin/python -m pip install -q -e ".[oracles]"
	touch $@

oracles: $(VENV)/.ready $(VENV)-oracles/.ready ## the long checks; their figures go to docs/LOG.md
	$(BIN)/python benchmarks/replay.py
	$(BIN)/python benchmarks/kill.py
	$(VENV)-oracles/bin/python benchmarks/grpo_trl.py

gpu-site: ## the pure-Python packages a bare accelerator machine may lack, to carry along
	$(PYTHON) -m pip install -q --target .gpu-site --no-deps jaxtyping wadler-lindig

gpu: ## what needs an accelerator, under 9 minutes, on generated data
	PYTHONPATH=.:.gpu-site $(PYTHON) benchmarks/gpu.py

clean: ## remove what was built
	rm -rf $(VENV) $(VENV)-oracles .pytest_cache .ruff_cache

.PHONY: help venv demo test oracles gpu gpu-site clean
