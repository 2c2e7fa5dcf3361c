"""Regions of a shadow whose cells are all alike, which C finds and fills at once."""

import ctypes
from functools import cache
from typing import Any

import numpy as np

from nvfp4.emulator.engine.library import address, library


class Region:
    """Some cells of a shadow, as tensors.h names them."""

    __slots__ = ("_keep", "_words", "pointer")

    def __init__(self, index: np.ndarray | None, start: int, rows: int, cells: int, stride: int):
        self._keep = None if index is None else np.ascontiguousarray(index, np.int64)
        where = 0 if self._keep is None else address(self._keep)
        self._words = np.array([where, start, rows, cells, stride], np.int64)
        self.pointer = address(self._words)


def region(index: Any, shape: tuple[int, ...]) -> Region | None:
    """Give the region that an index names in a shadow of this shape, if it is of a known form.

    That is a slice of all cells, an array of the numbers of cells or of rows of cells, or a slice
    of the columns in one row or in all rows.
    """
    width = shape[1] if len(shape) == 2 else 1
    if isinstance(index, slice) and len(shape) == 1:
        return Region(None, index.start, 1, index.stop - index.start, 0)
    if isinstance(index, np.ndarray) and index.size and index.dtype != bool:
        return Region(index, 0, index.size, width, 0)
    if isinstance(index, tuple) and len(shape) == 2:
        row, columns = index
        count = columns.stop - columns.start
        if isinstance(row, int):
            return Region(None, row * width + columns.start, 1, count, 0)
        if row == slice(None):
            return Region(None, columns.start, shape[0], count, width)
    return None


@cache
def _alike() -> Any:
    function = library().engine_alike
    function.argtypes = [ctypes.c_void_p] * 4
    return function


@cache
def _fill() -> Any:
    function = library().engine_fill
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
    return function


def alike(writers: np.ndarray, readers: np.ndarray, where: Region) -> tuple[int, int] | None:
    """Give the writer and the group of readers of cells that are all alike; None if they differ."""
    found = np.empty(2, np.int32)
    if not _alike()(address(writers), address(readers), where.pointer, address(found)):
        return None
    writer, group = found.tolist()
    return writer, group


def fill(cells: np.ndarray, where: Region, value: int) -> None:
    _fill()(address(cells), where.pointer, value)
