"""Fixtures. Without a GPU the Triton kernels are interpreted, so every test runs everywhere."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported, which reads it once

from nvfp4.dispatch import BACKENDS
from nvfp4.dispatch.explain import STAGES, explain

pytest_plugins = ("as_sm",)
"""`--as-sm 89`: the GPU's tests on an older architecture's PTX."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DEVICE == "cpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, got none"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`backend`: every registered backend that has the op of the test's mark, pytest.mark.op, or of
    a composed op a stage.
    """
    if "backend" in metafunc.fixturenames:
        op = metafunc.definition.get_closest_marker("op").args[0]
        names = [b.name for b in BACKENDS if any(stage in b.ops for stage in STAGES[op])]
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """A backend's name; skipped with the backend's own reasons where it cannot run on this
    machine.
    """
    op = request.node.get_closest_marker("op").args[0]
    has = next(b.ops for b in BACKENDS if b.name == request.param)
    for stage in explain(op, DEVICE).stages:
        for verdict in stage.verdicts:
            if verdict.backend == request.param and verdict.reasons and stage.op in has:
                pytest.skip(f"{request.param}: {verdict}")
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Each of checkpoint_files.MODELS, a folder in floats, made when first asked for."""
    from checkpoint_files import save_model

    made: dict[tuple, Path] = {}

    def of(name: str, **options: object) -> Path:
        key = (name, *sorted(options.items()))
        if key not in made:
            torch.manual_seed(0)
            made[key] = save_model(tmp_path_factory.mktemp(name) / "source", name, **options)
        return made[key]

    return of
