"""The interpreter in C, loaded."""

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nvfp4.emulator.c_library import loadable

_SOURCE = Path(__file__).with_name("engine.c")
_HEADERS = tuple(
    _SOURCE.with_name(name) for name in ("memory.h", "numbers.h", "operations.h", "tensors.h")
)
_FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=off",  # a product and a sum round twice, whatever the CPU has
    "-fno-strict-aliasing",  # the register file holds lanes of every type
    "-fno-math-errno",
)


def address(array: np.ndarray) -> int:
    """Give the address of an array's first element."""
    where: int = array.__array_interface__["data"][0]
    return where


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
def _distinct() -> Any:
    function = library().engine_distinct
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    return function


def distinct(cells: np.ndarray) -> list[int]:
    """Give the distinct values of an int32 array, ascending; few of them are quick."""
    cells = np.ascontiguousarray(cells)
    found = np.empty(_MOST_DISTINCT, np.int32)
    count = _distinct()(address(cells), cells.size, address(found))
    values: list[int] = (found[:count] if count >= 0 else np.unique(cells)).tolist()
    return values


_MOST_DISTINCT = 64
"""The values that tensors.h lists."""


@cache
def _scaled_mma() -> Any:
    function = library().engine_scaled_mma
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [
        pointer, pointer, integer, pointer, pointer, integer, ctypes.c_double, ctypes.c_int,
        pointer, integer,
    ]  # fmt: skip
    return function


def scaled_mma(
    a: np.ndarray,
    factors_a: np.ndarray,
    b: np.ndarray,
    factors_b: np.ndarray,
    sign: int,
    accumulate: bool,
    sums: np.ndarray,
) -> None:
    """Multiply E2M1 matrices of [rows, 32] bytes under [rows, 4] factors, into [rows, n] words.

    `sums` may be columns of a wider array. A has at most 128 rows.
    """
    _scaled_mma()(
        address(a), address(factors_a), len(a), address(b), address(factors_b), len(b),
        sign, accumulate, address(sums), sums.strides[0] // 4,
    )  # fmt: skip


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
    places = (ctypes.c_void_p * 4)(*map(address, sources))
    library().engine_apply(operations()[name], ctypes.c_void_p(address(result)), places)
    return result
