"""A CTA's tensor memory: 128 lanes x 512 columns of 32 bits, and its allocations.

PTX ISA: Tensor Memory Addressing, Tensor Memory Allocation. An address is lane << 16 | column.
"""

from typing import Any

import numpy as np

from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.memory.shadow import Index, Shadow

LANES, COLUMNS, QUARTERS = 128, 512, 4


class TensorMemory:
    """The words of a tensor memory, their shadow, and the columns that are allocated."""

    def __init__(self, cta: Any) -> None:
        self._cta = cta
        self.words = np.zeros((LANES, COLUMNS), np.uint32)
        self.shadow = Shadow((QUARTERS, COLUMNS), cta.cluster.events, self._name)
        self.allocations: dict[int, int] = {}  # the number of columns, by the first
        # The two CTAs of a pair allocate together. So each request of this CTA is kept: the number
        # of columns, and once it is granted, the first column.
        self.requests: list[int] = []
        self.granted: dict[int, int] = {}
        self.relinquished = False
        self.waiting: list[Any] = []

    def _name(self, index: Index, n: int) -> str:
        assert isinstance(index, tuple)
        quarters, columns = index
        assert isinstance(columns, slice)
        width = columns.stop - columns.start
        column = columns.start + n % width
        quarter = quarters if isinstance(quarters, int) else n // width
        return f"CTA {self._cta.index}: tensor memory column {column}, lanes {32 * quarter}.."

    def request(self, columns: int) -> int:
        """Ask for columns, and return the number of the request."""
        if columns not in (32, 64, 128, 256, 512):
            raise Hazard(Kind.TMEM, f"{columns} columns: allocations are 32, 64, ... 512")
        if self.relinquished:
            raise Hazard(Kind.TMEM, "an allocation after relinquish_alloc_permit")
        self.requests.append(columns)
        return len(self.requests) - 1

    def room(self, columns: int) -> int | None:
        """Find the first of that many free columns, if there are any."""
        for first in range(0, COLUMNS - columns + 1, columns):
            taken = self.allocations.items()
            if all(first + columns <= at or at + n <= first for at, n in taken):
                return first
        return None

    def wake(self) -> None:
        """Let warps that wait for an allocation try again."""
        waiting, self.waiting = self.waiting, []
        for warp in waiting:
            warp.wake()

    def free(self, address: int, columns: int, seen: int) -> None:
        if self.allocations.get(address) != columns:
            held = ", ".join(f"{n} from {at}" for at, n in self.allocations.items()) or "none"
            raise Hazard(
                Kind.TMEM, f"{columns} columns from {address:#x} are freed; allocated are: {held}"
            )
        region = (slice(None), slice(address, address + columns))
        self.shadow.check(region, seen)
        self.shadow.writer[region] = 0
        self.shadow.readers[region] = 0
        del self.allocations[address]
        self.wake()

    def region(self, address: int, columns: int) -> slice:
        """Give the columns from an address on, which must be within one allocation."""
        first = address & 0xFFFF
        for at, n in self.allocations.items():
            if at <= first and first + columns <= at + n:
                return slice(first, first + columns)
        raise Hazard(
            Kind.TMEM, f"columns {first}..{first + columns - 1} are not within an allocation"
        )

    def cta_exits(self) -> None:
        if self.allocations:
            raise Hazard(Kind.UNFINISHED, f"the CTA exits with {self.allocations} still allocated")
