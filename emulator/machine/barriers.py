"""The barriers of a CTA and of a cluster."""

from typing import Any

from nvfp4.emulator.hazards import Hazard, Kind


class NamedBarrier:
    """One of a CTA's 16 hardware barriers."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.threads = 0  # of the phase under way; 0: nobody has arrived
        self.arrived = 0
        self.seen = self.fenced = 0
        self.done: list[tuple[int, int]] = []  # of each phase, what its arrivals had observed
        self.waiting: list[Any] = []

    def arrive(self, warp: Any, threads: int) -> int:
        """Counts a warp in; the phase to wait for."""
        if threads % 32 or not threads:
            raise Hazard(Kind.BARRIER, f"barrier {self.number} for {threads} threads")
        if self.arrived and threads != self.threads:
            raise Hazard(
                Kind.BARRIER,
                f"barrier {self.number} for {threads} threads; others meet there as {self.threads}",
            )
        self.threads = threads
        seen, fenced = warp.release()
        self.seen |= seen
        self.fenced |= fenced
        self.arrived += 32  # a barrier counts whole warps
        phase = len(self.done)
        if self.arrived >= threads:
            self.arrived = 0
            self.done.append((self.seen, self.fenced))
            self.seen = self.fenced = 0
            waiting, self.waiting = self.waiting, []
            for waiter in waiting:
                waiter.wake()
        return phase


class ClusterBarrier:
    """barrier.cluster: all threads of the cluster that have not exited."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.arrived: dict[Any, int] = {}  # warp: its lanes that have arrived
        self.seen = self.fenced = 0
        self.done: list[tuple[int, int]] = []  # as in NamedBarrier
        self.waiting: list[Any] = []

    def arrive(self, warp: Any, seen: int, fenced: int) -> None:
        self.arrived[warp] = self.arrived.get(warp, 0) | warp.mask
        self.seen |= seen
        self.fenced |= fenced
        self.check()

    def check(self) -> None:
        """Completes the phase if all that live have arrived."""
        for cta in self._cluster.ctas:
            for warp in cta.warps:
                if warp.live & ~self.arrived.get(warp, 0):
                    return
        if not self.arrived:
            return
        self.arrived = {}
        self.done.append((self.seen, self.fenced))
        self.seen = self.fenced = 0
        waiting, self.waiting = self.waiting, []
        for warp in waiting:
            warp.wake()
