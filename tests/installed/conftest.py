"""Tests of the package as its wheel installs it: make wheel runs them outside the checkout."""

import os
import sysconfig
from pathlib import Path

import pytest

CHECKOUT = "NVFP4_CHECKOUT"
"""What the wheel was built from. Only make wheel sets it: elsewhere these tests are left out."""

if CHECKOUT in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, which reads it once
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def checkout() -> Path:
    return Path(os.environ[CHECKOUT])


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    """Nothing comes from the checkout."""
    import nvfp4

    assert Path(nvfp4.__file__).parent == Path(sysconfig.get_path("purelib")) / "nvfp4"
