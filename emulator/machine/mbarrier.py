"""The mbarrier object: arrivals, transactions and phases."""

from typing import Any

from nvfp4.emulator.hazards import Hazard, Kind

TX_LIMIT = (1 << 20) - 1
"""The range of an mbarrier's tx-count (PTX ISA: Contents of the mbarrier object)."""


class Mbarrier:
    """An mbarrier object: its phase completes when no arrival and no transaction is pending."""

    __slots__ = (
        "count", "pending", "tx", "phase", "seen", "fenced", "done", "waiting", "init", "where",
    )  # fmt: skip

    def __init__(self, count: int, init: int, where: str) -> None:
        self.count = self.pending = count
        self.tx = 0
        self.phase = 0
        self.seen = self.fenced = 0  # what this phase's arrivals had observed
        self.done = (0, 0)  # what the completed phases' arrivals had observed
        self.waiting: list[Any] = []
        self.init = init  # the event of its initialisation
        self.where = where

    def arrive(self, arrivals: int, tx: int, seen: int, fenced: int) -> None:
        """Count arrivals, and bytes that are expected (`tx` above 0) or have come (below 0)."""
        if arrivals > self.pending:
            raise Hazard(
                Kind.MBARRIER,
                f"{arrivals} arrivals at {self.where}, where {self.pending} of {self.count} are"
                " pending in this phase",
            )
        self.seen |= seen
        self.fenced |= fenced
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
            self.done = (self.done[0] | self.seen, self.done[1] | self.fenced)
            self.seen = self.fenced = 0
            waiting, self.waiting = self.waiting, []
            for warp in waiting:
                warp.wake()
