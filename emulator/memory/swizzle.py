"""Swizzled layouts of shared memory, as TMA writes them and tcgen05 reads them."""

from functools import lru_cache

import numpy as np


def swizzled(address: np.ndarray | int, bits: int) -> np.ndarray | int:
    """Where the byte of a linear shared address stands: address bits 4.. exchanged by bits 7.. .

    128-byte swizzle (3 bits): the 16-byte chunk's number within 128 bytes, xor the number of the
    128-byte row within 1 KB. 64 and 32 bytes: the same with two bits and one.
    """
    return address ^ (address >> 7 & (1 << bits) - 1) << 4


@lru_cache(maxsize=256)
def _permutation(phase: int, chunks: int, bits: int) -> np.ndarray:
    """The places of a box's 16-byte chunks, relative to its start, `phase` chunks into 1 KB."""
    linear = (np.arange(chunks) + phase) * 16
    places = swizzled(linear, bits)
    assert isinstance(places, np.ndarray)
    return places // 16 - phase


def places(address: int, size: int, bits: int) -> np.ndarray:
    """The chunk, relative to `address` / 16, of each 16-byte chunk of a box at a shared address."""
    return _permutation(address // 16 % 64, size // 16, bits)
