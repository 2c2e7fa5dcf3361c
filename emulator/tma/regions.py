"""The side of a bulk copy in global memory: a box of a tensor, or a span of plain bytes."""

from typing import Any, NamedTuple

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder
from nvfp4.emulator.lanes import signed
from nvfp4.emulator.tma.boxes import Box, map_at


class Span:
    """Plain bytes of one tensor, copied in their order."""

    swizzle = 0

    def __init__(self, warp: Any, address: int, size: int) -> None:
        self.size = size
        self._address = address
        self.tensor = warp.machine.memory.find(address, address + size)
        begin = address - self.tensor.base
        self._region = slice(begin, begin + size)

    def check_alignment(self, offset: int) -> None:
        """Refuse a copy to or from this shared offset if it is not in units of 16 bytes."""
        if self.size % 16 or self._address % 16 or offset % 16:
            raise Hazard(Kind.MISALIGNED, "a bulk copy needs multiples of 16")

    def fetch(self, memory: Any, warp: Any) -> np.ndarray:
        """Read the bytes."""
        memory.read_check(self.tensor, self._region, warp)
        return self.tensor.bytes.data[self._region]

    def put(self, memory: Any, data: np.ndarray, warp: Any, event: int) -> None:
        """Write the bytes, as part of an event."""
        memory.write_check(self.tensor, self._region, warp, event)
        self.tensor.bytes.data[self._region] = data


Region = Box | Span


class GlobalOperand(NamedTuple):
    """The slots that name a region: a tensor map and coordinates, or an address and a size."""

    base: int
    offset: int
    coordinates: tuple[int, ...]
    size: int | None
    """None for a tensor map, which gives the size itself."""

    def region(self, warp: Any) -> Region:
        """Find the region for the values that a warp has in the slots."""
        address = warp.uniform(self.base, "global address") + self.offset
        if self.size is not None:
            return Span(warp, address, warp.uniform(self.size, "size"))
        where = [signed(warp.uniform(slot, "coordinates"), 32) for slot in self.coordinates]
        return Box(warp, map_at(warp, address), where)


def global_operand(
    builder: Builder, operand: ptx.Operand, rank: int, rest: list[ptx.Operand]
) -> GlobalOperand:
    """Decode the operand, and take the size of plain bytes (rank 0) from the front of the rest."""
    base, offset = builder.address(operand, 64)
    if not rank:
        return GlobalOperand(base, offset, (), builder.source(rest.pop(0), 32))
    assert isinstance(operand, ptx.Address) and operand.coordinates is not None
    coordinates = tuple(builder.source(item, 32) for item in operand.coordinates.items)
    return GlobalOperand(base, offset, coordinates, None)
