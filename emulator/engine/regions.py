"""Regions of a shadow whose cells are all alike, which C finds and fills at once."""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from nvfp4.emulator.engine.library import address, library


class Region(NamedTuple):
    """Some cells of a shadow, as tensors.h names them.

    rows_at: the address of `index` in tensors.h, or 0.
    """

    rows_at: int
    start: int
    rows: int
    cells: int
    stride: int
    keep: np.ndarray | None = None
    """The array at `rows_at`."""


def region(index: Any, shape: tuple[int, ...]) -> Region | None:
    """Give the region that an index names in a shadow of this shape, if it is of a known form.

    That is a slice of all cells, an array of the numbers of cells or of rows of cells, or a slice
    of the columns in one row or in all rows.
    """
    width = shape[1] if len(shape) == 2 else 1
    if isinstance(index, slice) and len(shape) == 1:
        return Region(0, index.start, 1, index.stop - index.start, 0)
    if isinstance(index, np.ndarray) and index.size and index.dtype != bool:
        rows = np.ascontiguousarray(index, np.int64)
        return Region(address(rows), 0, index.size, width, 0, rows)
    if isinstance(index, tuple) and len(shape) == 2:
        row, columns = index
        count = columns.stop - columns.start
        if isinstance(row, int):
            return Region(0, row * width + columns.start, 1, count, 0)
        if row == slice(None):
            return Region(0, columns.start, shape[0], count, width)
    return None


_NOT_ALIKE = -(1 << 63)


@cache
def _alike() -> Any:
    function = library().engine_alike
    function.restype = ctypes.c_int64
    function.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 4]
    return function


@cache
def _fill() -> Any:
    function = library().engine_fill
    function.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, *[ctypes.c_int64] * 4]
    return function


def alike(writers: int, readers: int, where: Region) -> tuple[int, int] | None:
    """Give the writer and the group of readers of cells that are all alike; None if they differ.

    `writers` and `readers` are the addresses of a shadow's arrays.
    """
    found = _alike()(writers, readers, *where[:5])
    return None if found == _NOT_ALIKE else (found >> 32, found & 0xFFFFFFFF)


def fill(cells: int, where: Region, value: int) -> None:
    """Give a region of the array at this address one value."""
    _fill()(cells, value, *where[:5])
