"""Swizzled layouts of shared memory, as TMA writes them and tcgen05 reads them."""

from functools import lru_cache

import numpy as np


def swizzled(address: np.ndarray | int, bits: int) -> np.ndarray | int:
    """Give the swizzled place of a linear shared address: bits 4.. are xored with bits 7.. .

    The 128-byte swizzle takes 3 bits. The number of the 16-byte chunk within 128 bytes is xored
    with the number of the 128-byte row within 1 KB. The 64-byte and 32-byte swizzles take 2 bits
    and 1.
    """
    return address ^ (address >> 7 & (1 << bits) - 1) << 4


@lru_cache(maxsize=256)
def _permutation(phase: int, chunks: int, bits: int) -> np.ndarray:
    """Give the places of a box's 16-byte chunks from its start, `phase` chunks into 1 KB."""
    linear = (np.arange(chunks) + phase) * 16
    places = swizzled(linear, bits)
    assert isinstance(places, np.ndarray)
    return places // 16 - phase


def places(address: int, size: int, bits: int) -> np.ndarray:
    """Give the place of each 16-byte chunk of a box, in chunks from its shared address."""
    return _permutation(address // 16 % 64, size // 16, bits)
