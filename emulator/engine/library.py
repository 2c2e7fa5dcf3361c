"""The interpreter in C, loaded."""

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nvfp4.emulator.c_library import loadable

_SOURCE = Path(__file__).with_name("engine.c")
_HEADERS = tuple(_SOURCE.with_name(name) for name in ("memory.h", "numbers.h", "operations.h"))
_FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=off",  # a product and a sum round twice, whatever the CPU has
    "-fno-strict-aliasing",  # the register file holds lanes of every type
    "-fno-math-errno",
)


@cache
def library() -> ctypes.PyDLL:
    """Compile and load it. Nothing in it runs Python, but a call is shorter than a lock's."""
    loaded = ctypes.PyDLL(loadable(_SOURCE, *_FLAGS, headers=_HEADERS))
    loaded.engine_operation.restype = ctypes.c_char_p
    return loaded


@cache
def run() -> Any:
    """Give engine_run of engine.c."""
    function = library().engine_run
    function.restype = ctypes.c_int64
    function.argtypes = [
        ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint32, ctypes.c_int64,
        ctypes.c_int32, ctypes.c_int32,
    ]  # fmt: skip
    return function


@cache
def get_rows() -> Any:
    """Give engine_get_rows of engine.c."""
    return _rows(library().engine_get_rows)


@cache
def set_rows() -> Any:
    """Give engine_set_rows of engine.c."""
    return _rows(library().engine_set_rows)


def _rows(function: Any) -> Any:
    function.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int32, ctypes.c_void_p]
    return function


@cache
def operations() -> Mapping[str, int]:
    """Give the number of each operation in operations.h, by its name."""
    names: dict[str, int] = {}
    while name := library().engine_operation(len(names)):
        names[name.decode()] = len(names)
    return names


def apply(name: str, *sources: np.ndarray) -> np.ndarray:
    """Give an operation's result for 32 lanes, which has the sources' type."""
    result = np.empty_like(sources[0])
    places = (ctypes.c_void_p * 4)(*(source.ctypes.data for source in sources))
    library().engine_apply(operations()[name], ctypes.c_void_p(result.ctypes.data), places)
    return result
