"""The mbarrier object: arrivals, transactions and phases."""

from typing import Any

from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.machine.passed import NOTHING, Passed

TX_LIMIT = (1 << 20) - 1
"""The range of an mbarrier's tx-count (PTX ISA: Contents of the mbarrier object)."""


class Mbarrier:
    """An mbarrier object: its phase completes when no arrival and no transaction is pending."""

    __slots__ = (
        "count", "pending", "tx", "phase", "passed", "done", "waiting", "waits", "init", "where",
    )  # fmt: skip

    def __init__(self, count: int, init: int, where: str) -> None:
        self.count = self.pending = count
        self.tx = 0
        self.phase = 0
        self.passed = NOTHING  # what this phase's arrivals pass on
        self.done = NOTHING  # what those of the completed phases pass on
        self.waiting: list[Any] = []
        # For each warp the last phase that it has waited for, from 0 on, and the event of that.
        self.waits: dict[Any, tuple[int, int]] = {}
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
            self._check_waits()
            self.pending = self.count
            self.phase += 1
            self.done |= self.passed
            self.passed = NOTHING
            waiting, self.waiting = self.waiting, []
            for warp in waiting:
                warp.wake()

    def _check_waits(self) -> None:
        """Refuse to end a phase if a wait for the one before may still be on.

        The wait tells phases apart by parity alone, and would go on for another phase. So arrivals
        have to follow each wait for the phase before, not only come after it in time.
        """
        for warp, (phase, event) in self.waits.items():
            if phase == self.phase - 1 and not self.passed.always >> event & 1:
                raise Hazard(
                    Kind.MBARRIER,
                    f"{self.where} ends a phase, which nothing keeps from coming before"
                    f" {warp.where} has waited for the phase before: the wait would miss it",
                )

    def check_missed(self, warp: Any) -> None:
        """Refuse a wait for a phase that is no longer the last one."""
        last = self.waits.get(warp)
        if last is not None and self.phase > last[0] + 2:
            raise Hazard(
                Kind.MBARRIER,
                f"a phase of {self.where} was missed: it has ended {self.phase - 1 - last[0]} since"
                " this warp's last wait",
            )
