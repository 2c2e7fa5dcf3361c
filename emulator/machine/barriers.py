"""The barriers of a CTA and of a cluster."""

from typing import Any

from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.machine.passed import NOTHING, Passed


class NamedBarrier:
    """One of the 16 hardware barriers of a CTA."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.threads = 0  # expected in this phase; 0 before the first arrival
        self.arrived = 0
        self.passed = NOTHING
        self.done: list[Passed] = []  # for each phase, what its arrivals pass on
        self.waiting: list[Any] = []

    def arrive(self, warp: Any, threads: int) -> int:
        """Count a warp in, and return the phase to wait for."""
        if threads % 32 or not threads:
            raise Hazard(Kind.BARRIER, f"barrier {self.number} for {threads} threads")
        if self.arrived and threads != self.threads:
            raise Hazard(
                Kind.BARRIER,
                f"barrier {self.number} for {threads} threads; others meet there as {self.threads}",
            )
        self.threads = threads
        self.passed |= warp.arrival(releases=True, wide=False, here=True)
        self.arrived += 32  # a barrier counts whole warps
        phase = len(self.done)
        if self.arrived >= threads:
            self.arrived = 0
            self.done.append(self.passed)
            self.passed = NOTHING
            waiting, self.waiting = self.waiting, []
            for waiter in waiting:
                waiter.wake()
        return phase


class ClusterBarrier:
    """The barrier of all threads of a cluster that have not exited."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.arrived: dict[Any, int] = {}  # the lanes of each warp that have arrived
        self.passed = NOTHING
        self.done: list[Passed] = []  # as in NamedBarrier
        self.waiting: list[Any] = []

    def arrive(self, warp: Any, passed: Passed) -> None:
        self.arrived[warp] = self.arrived.get(warp, 0) | warp.mask
        self.passed |= passed
        self.check()

    def check(self) -> None:
        """Complete the phase if all live threads have arrived."""
        for cta in self._cluster.ctas:
            for warp in cta.warps:
                if warp.live & ~self.arrived.get(warp, 0):
                    return
        if not self.arrived:
            return
        self.arrived = {}
        self.done.append(self.passed)
        self.passed = NOTHING
        waiting, self.waiting = self.waiting, []
        for warp in waiting:
            warp.wake()
