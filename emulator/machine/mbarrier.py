"""The mbarrier object: arrivals, transactions and phases."""

from typing import Any

from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.machine.passed import NOTHING, Passed

TX_LIMIT = (1 << 20) - 1
"""The range of an mbarrier's tx-count (PTX ISA: Contents of the mbarrier object)."""


class Mbarrier:
    """An mbarrier object: its phase completes when no arrival and no transaction is pending."""

    __slots__ = (
        "count", "pending", "tx", "phase", "passed", "done", "waiting", "init", "where",
    )  # fmt: skip

    def __init__(self, count: int, init: int, where: str) -> None:
        self.count = self.pending = count
        self.tx = 0
        self.phase = 0
        self.passed = NOTHING  # what this phase's arrivals pass on
        self.done = NOTHING  # what those of the completed phases pass on
        self.waiting: list[Any] = []
        self.init = init  # the event of its initialisation
        self.where = where

    def arrive(self, arrivals: int, tx: int, passed: Passed) -> None:
        """Count arrivals, and bytes that are expected (`tx` above 0) or have come (below 0)."""
        if arrivals > self.pending:
            raise Hazard(
                Kind.MBARRIER,
                f"{arrivals} arrivals at {self.where}, where {self.pending} of {self.count} are"
                " pending in this phase",
            )
        self.passed |= passed
        self.pending -= arrivals
        self.tx += tx
        if not -TX_LIMIT <= self.tx <= TX_LIMIT:
            raise Hazard(Kind.MBARRIER, f"tx-count {self.tx} at {self.where} is out of range")
        if self.pending:
            return
        if self.tx < 0:
            raise Hazard(
                Kind.MBARRIER,
                f"{-self.tx} bytes more than expected have come at {self.where} in this phase",
            )
        if self.tx == 0:
            self.pending = self.count
            self.phase += 1
            self.done |= self.passed
            self.passed = NOTHING
            waiting, self.waiting = self.waiting, []
            for warp in waiting:
                warp.wake()
