"""The variables of the environment that configure this package (NVFP4_*): all are read here."""

import os
from collections.abc import Callable
from pathlib import Path

BACKEND = "NVFP4_BACKEND"
"""Names the backend of every call that does not name one itself."""

BATCH_INVARIANT = "NVFP4_BATCH_INVARIANT"
"""With 1, GEMMs never split the sum over K, so a token's bits do not depend on its batch."""

TUNED = "NVFP4_TUNED"
"""Names a file of tiles that `python -m nvfp4 tune` measured on this machine."""

VLLM_PLUGIN = "NVFP4_VLLM"
"""With 0, the vLLM plugin adds nothing."""

CACHE_DIR = "NVFP4_CACHE_DIR"
"""Names the folder that keeps compiled sm_100 kernels."""


def backend() -> str:
    """The backend that the environment names; "" if it names none."""
    return os.environ.get(BACKEND, "")


def may_split_k() -> bool:
    """Whether a GEMM may split the sum over K."""
    return os.environ.get(BATCH_INVARIANT, "") in ("", "0")


def tuned_file() -> str:
    """The file of measured tiles; "" if there is none."""
    return os.environ.get(TUNED, "")


def vllm_plugin() -> bool:
    """Whether the vLLM plugin is on."""
    return os.environ.get(VLLM_PLUGIN, "") != "0"


def cache_folder() -> Path:
    """The configured cache folder; RuntimeError where none is and the user has no home."""
    if named := os.environ.get(CACHE_DIR):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvfp4"


def call_settings() -> tuple[bytes | None, ...]:
    """All that changes how a call runs: a recorded call is replayed only under equal settings.

    It is asked at each call. os.environ raises and catches an exception for what is not set, which
    takes 2 us a variable. So this looks into the dictionary behind it (CPython 3.10 to 3.14).
    """
    return _CALL_SETTINGS()


def _reader(*names: str) -> Callable[[], tuple[bytes | None, ...]]:
    variables: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
    keys = tuple(map(os.fsencode, names))
    return lambda: tuple(map(variables.get, keys))


_CALL_SETTINGS = _reader(BACKEND, BATCH_INVARIANT, TUNED)
"""Reads the variables that call_settings names."""


def prefer_batch_invariance() -> None:
    """Turn NVFP4_BATCH_INVARIANT on for this process, unless the user has set it."""
    os.environ.setdefault(BATCH_INVARIANT, "1")
