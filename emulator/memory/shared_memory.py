"""A CTA's shared memory, and where its variables stand in it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.memory.addresses import DYNAMIC_SHARED_BASE
from nvfp4.emulator.memory.bytes import Bytes
from nvfp4.emulator.memory.shadow import Events, Index, Shadow
from nvfp4.emulator.memory.swizzle import places

CHUNK = 16
"""The bytes of a row of `chunk_shadow`."""


class SharedMemory:
    """The shared memory of a CTA and its shadow, indexed by the offset in its window."""

    def __init__(self, size: int, events: Events, owner: str) -> None:
        self.size = size
        padded = -(-size // CHUNK) * CHUNK
        self.bytes = Bytes(np.zeros(padded, np.uint8), True)
        self.shadow = Shadow(
            (padded,), events, lambda index, n: f"{owner}: shared byte {_nth(index, n):#x}"
        )
        self.chunk_shadow = self.shadow.reshaped(
            (-1, CHUNK),
            lambda index, n: (
                f"{owner}: shared byte {_nth(index, n // CHUNK) * CHUNK + n % CHUNK:#x}"
            ),
        )

    def write_swizzled(self, offset: int, data: np.ndarray, swizzle: int) -> None:
        """Write bytes from an offset on, each 16-byte chunk to its swizzled place."""
        if swizzle:
            order = places(offset, len(data), swizzle) + offset // 16
            self.bytes.chunks[order] = data.view(np.uint64).reshape(-1, 2)
        else:
            self.bytes.data[offset : offset + len(data)] = data

    def read_swizzled(self, offset: int, size: int, swizzle: int) -> np.ndarray:
        """Read bytes that write_swizzled has written."""
        if swizzle:
            order = places(offset, size, swizzle) + offset // 16
            return self.bytes.chunks[order].view(np.uint8).reshape(-1)
        return self.bytes.data[offset : offset + size]

    def bound(self, low: int, high: int) -> None:
        if low < DYNAMIC_SHARED_BASE or high > self.size:
            raise Hazard(
                Kind.OUT_OF_BOUNDS,
                f"shared bytes {low:#x}..{high - 1:#x}; the CTA has {DYNAMIC_SHARED_BASE:#x}.."
                f"{self.size - 1:#x}",
            )


def _nth(index: Index, n: int) -> int:
    """Give the n-th cell that an index names."""
    if isinstance(index, slice):
        return (index.start or 0) + n
    assert isinstance(index, np.ndarray)
    return int(index.ravel()[n])


class SharedLayout(NamedTuple):
    offsets: dict[str, int]
    size: int


def shared_layout(variables: Sequence[ptx.Variable], dynamic: int) -> SharedLayout:
    """Place the shared variables: static ones first, then the dynamic ones, which overlap."""
    offsets, end = {}, DYNAMIC_SHARED_BASE
    for variable in variables:
        if variable.size:
            offsets[variable.name] = start = -(-end // variable.align) * variable.align
            end = start + variable.size
    size = end
    for variable in variables:
        if not variable.size:
            offsets[variable.name] = start = -(-end // variable.align) * variable.align
            size = max(size, start + dynamic)
    return SharedLayout(offsets, size)
