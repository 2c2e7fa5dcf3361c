"""Matrices in shared memory as wgmma reads them (PTX ISA: Matrix-descriptor Format, wgmma).

A descriptor names 16-byte chunks. In a K-major matrix, a chunk is a part of one row along K. In an
MN-major one (only of 16-bit elements), it is a part of one column along M or N.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from nvfp4.emulator.hazards import Unsupported
from nvfp4.emulator.memory.swizzle import swizzled

_SWIZZLE_BITS = (0, 3, 2, 1)
"""The address bits that each swizzle mode (bits 62 and 63) exchanges: no, 128, 64, 32 bytes."""


class Descriptor(NamedTuple):
    start: int  # bytes
    leading: int
    stride: int
    swizzle: int  # address bits exchanged


def descriptor(bits: int) -> Descriptor:
    if bits >> 49 & 7:
        raise Unsupported(f"matrix descriptor {bits:#018x}: a base offset")
    start, leading, stride = ((bits >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    return Descriptor(start, leading, stride, _SWIZZLE_BITS[bits >> 62])


@lru_cache(maxsize=1024)
def _k_major(
    phase: int, leading: int, stride: int, swizzle: int, rows: int, columns: int
) -> np.ndarray:
    """Give [rows, columns] chunk numbers; a row's chunks lie side by side in a swizzled row."""
    row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
    linear = row // 8 * stride + row % 8 * (16 << swizzle)
    linear = linear + column * (16 if swizzle else leading) + phase
    return np.asarray(swizzled(linear, swizzle)) // 16


@lru_cache(maxsize=1024)
def _mn_major(
    phase: int, leading: int, stride: int, swizzle: int, chunks: int, depth: int
) -> np.ndarray:
    """Give [depth, chunks] chunk numbers of a matrix that is contiguous along M or N."""
    k, chunk = np.arange(depth)[:, None], np.arange(chunks)[None, :]
    if swizzle:  # 2^swizzle chunks side by side, then one block further
        linear = chunk // (1 << swizzle) * leading + chunk % (1 << swizzle) * 16 + k // 8 * stride
    else:
        linear = chunk * stride + k // 8 * leading
    return np.asarray(swizzled(linear + k % 8 * (16 << swizzle) + phase, swizzle)) // 16


def chunks(matrix: Descriptor, rows: int, row_bytes: int, mn_major: bool) -> np.ndarray:
    """Give the numbers of a matrix's 16-byte chunks in shared memory.

    They are [rows, chunks along K], or [K, chunks along M or N] of an MN-major matrix, whose
    elements have 2 bytes.
    """
    phase = matrix.start % 1024
    layout = (phase, matrix.leading, matrix.stride, matrix.swizzle)
    if mn_major:
        offsets = _mn_major(*layout, rows // 8, row_bytes // 2)
    else:
        offsets = _k_major(*layout, rows, row_bytes // 16)
    return offsets + (matrix.start - phase) // 16


def codes(data: np.ndarray, bits: int, mn_major: bool) -> np.ndarray:
    """Give the [rows, K] codes of the 16-byte chunks that `chunks` names."""
    elements = np.ascontiguousarray(data).view(f"u{bits // 8}").reshape(len(data), -1)
    return np.ascontiguousarray(elements.T) if mn_major else elements
