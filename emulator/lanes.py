"""A warp's 32 lanes: register values and sets of lanes.

A value is a numpy array of 32 or, where all lanes have the same, an int. Both are unsigned bit
patterns, and instructions give them a type. A predicate is an int with a bit for each lane, as any
set of lanes is.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

LANES = 32
ALL = (1 << LANES) - 1

Value = int | np.ndarray


DTYPES: Mapping[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED: Mapping[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOATS: Mapping[int, Any] = {16: np.float16, 32: np.float32, 64: np.float64}


@lru_cache(maxsize=1 << 14)
def flags(lanes: int) -> np.ndarray:
    """Give a set of lanes as 32 booleans."""
    array = np.array([lanes >> lane & 1 for lane in range(LANES)], dtype=bool)
    array.flags.writeable = False
    return array


@lru_cache(maxsize=1 << 14)
def members(lanes: int) -> np.ndarray:
    """Give the numbers of the lanes in a set."""
    array = np.flatnonzero(flags(lanes))
    array.flags.writeable = False
    return array


def lane_set(booleans: np.ndarray) -> int:
    return int.from_bytes(np.packbits(booleans, bitorder="little").tobytes(), "little")


def lowest(lanes: int) -> int:
    return (lanes & -lanes).bit_length() - 1


def spread(value: Value, bits: int) -> np.ndarray:
    """Give one element of `bits` bits a lane, truncated or zero-extended."""
    if isinstance(value, int):
        return np.full(LANES, value & ((1 << bits) - 1), DTYPES[bits])
    return value.astype(DTYPES[bits], copy=False)


def pick(value: Value, lanes: int) -> int:
    """Give the value in the lowest of some lanes."""
    return value if isinstance(value, int) else int(value[lowest(lanes)])


def uniform(value: Value, lanes: int) -> int | None:
    """Give the value in some lanes if it is equal in all of them."""
    if isinstance(value, int):
        return value
    chosen = value if lanes == ALL else value[members(lanes)]
    bits, size = chosen.tobytes(), chosen.itemsize  # numpy's comparison takes longer
    return int(chosen[0]) if bits == bits[:size] * len(chosen) else None


def undefined(bits: int) -> int:
    """Give the bits that stand for an undefined value: a NaN of every format."""
    return (1 << bits) - 1


def signed(value: int, bits: int) -> int:
    """Read a bit pattern as two's complement."""
    sign = 1 << (bits - 1)
    return (value ^ sign) - sign
