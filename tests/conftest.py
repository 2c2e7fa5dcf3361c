"""Fixtures, and the markers that follow from them.

Without a GPU the Triton kernels are interpreted, so every test runs everywhere.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported, which reads it once

from cases import skip_if_it_cannot

from nvfp4.dispatch import BACKENDS
from nvfp4.dispatch.explain import STAGES, explain

pytest_plugins = ("as_sm",)
"""`--as-sm 89`: the GPU's tests on an older architecture's PTX."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

MARKER_ON_CPU = {"cutedsl": "emulated", "triton": "interpreted"}
"""How a backend's kernels run on a CPU, and so the marker of a test that runs them there."""

MARKED_BY_FIXTURE = ("emulated", "compiles", *(["interpreted"] if DEVICE == "cpu" else []))
"""A test that uses one of these fixtures gets the marker of that name."""

MARKER_OF_FOLDER = {"emulator": "emulated", "engine": "engine", "gpu": "gpu"}
"""Every test of these folders has the marker."""


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in MARKED_BY_FIXTURE:
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(name)
        if item.path.parent.name in MARKER_OF_FOLDER:
            item.add_marker(MARKER_OF_FOLDER[item.path.parent.name])
        if DEVICE == "cpu" and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, got none"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`backend`: every registered backend that has the op of the test's mark, pytest.mark.op, or of
    a composed op a stage.
    """
    if "backend" in metafunc.fixturenames:
        op = metafunc.definition.get_closest_marker("op").args[0]
        names = [b.name for b in BACKENDS if any(stage in b.ops for stage in STAGES[op])]
        metafunc.parametrize("backend", [_on_this_device(name) for name in names], indirect=True)


def _on_this_device(backend: str) -> Any:
    marker = MARKER_ON_CPU.get(backend) if DEVICE == "cpu" else None
    return pytest.param(backend, marks=getattr(pytest.mark, marker) if marker else ())


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


@pytest.fixture
def emulated() -> None:
    """The sm_100 kernels run, emulated on a CPU; skipped where they cannot."""
    skip_if_it_cannot("cutedsl")


@pytest.fixture
def interpreted() -> None:
    """The Triton kernels run: on the GPU or, without one, interpreted; skipped if they cannot."""
    skip_if_it_cannot("triton", DEVICE)


@pytest.fixture
def compiles() -> None:
    """The test compiles kernels, or graphs by torch.compile, which takes seconds."""


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
