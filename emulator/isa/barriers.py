"""bar.sync and its kin, barrier.cluster, and fences (PTX ISA: bar, barrier, membar, fence).

Each barrier hands what the arriving have observed to those that wait; see shadow.py.
"""

from collections.abc import Mapping
from typing import Any

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.program import (
    BLOCKED,
    Decoder,
    Modifiers,
    Program,
    Step,
)
from nvfp4.emulator.lanes import pick


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


def _decode_bar(instruction: ptx.Instruction, program: Program) -> Step:
    """bar / barrier.cta .sync and .arrive; barrier.cluster."""
    modifiers = Modifiers(instruction)
    if modifiers.take("warp"):
        modifiers.need("sync")
        modifiers.done()
        return _whole_warp
    if modifiers.take("cluster"):
        return _decode_cluster(instruction, modifiers)
    modifiers.take("cta")
    waits = modifiers.need("sync", "arrive") == "sync"
    modifiers.take("aligned")
    modifiers.done()
    number = program.source(instruction.operands[0], 32)
    threads = None
    if len(instruction.operands) > 1:
        threads = program.source(instruction.operands[1], 32)
    waiting = object()  # the key of a warp's note that it has arrived here

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        which = pick(warp.registers[number], warp.mask)
        if which > 15:
            raise Hazard(Kind.BARRIER, f"there is no barrier {which}")
        barrier = warp.cta.named.setdefault(which, NamedBarrier(which))
        phase = warp.state.pop(waiting, None)
        if phase is None:
            everyone = (warp.cta.threads + 31) // 32 * 32
            count = everyone if threads is None else pick(warp.registers[threads], warp.mask)
            phase = barrier.arrive(warp, count)
            if not waits:
                return None
        if len(barrier.done) > phase:
            warp.acquire(*barrier.done[phase])
            return None
        warp.state[waiting] = phase
        barrier.waiting.append(warp)
        return BLOCKED

    return step


def _whole_warp(warp: Any) -> int | None:
    return warp.converge()


def _decode_cluster(instruction: ptx.Instruction, modifiers: Modifiers) -> Step:
    operation = modifiers.need("arrive", "wait")
    relaxed = modifiers.take("release", "relaxed", "acquire") == "relaxed"
    modifiers.take("aligned")
    modifiers.done()

    def arrive(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        barrier = warp.cluster.barrier
        if "cluster" in warp.state:
            raise Hazard(Kind.BARRIER, "barrier.cluster.arrive twice without a wait between")
        warp.state["cluster"] = len(barrier.done)
        barrier.arrive(warp, *((warp.released, warp.fenced) if relaxed else warp.release()))
        return None

    def wait(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        barrier = warp.cluster.barrier
        if "cluster" not in warp.state:
            raise Hazard(Kind.BARRIER, "barrier.cluster.wait without an arrive")
        phase = warp.state["cluster"]
        if phase == len(barrier.done):
            barrier.waiting.append(warp)
            return BLOCKED
        del warp.state["cluster"]
        warp.acquire(*barrier.done[phase])
        return None

    return arrive if operation == "arrive" else wait


def _decode_fence(instruction: ptx.Instruction, program: Program) -> Step:
    modifiers = Modifiers(instruction)
    if modifiers.take("mbarrier_init"):
        modifiers.need("release")
        modifiers.need("cluster")
        modifiers.done()

        def mbarrier_init(warp: Any) -> None:
            warp.released |= warp.inits
            warp.init_span = 0

        return mbarrier_init
    if modifiers.take("proxy"):
        kind = modifiers.need("async", "alias")
        modifiers.take("global", "shared::cta", "shared::cluster")
        modifiers.done()

        def proxy(warp: Any) -> None:
            if kind == "async":
                warp.release()
                warp.fenced |= warp.seen

        return proxy
    modifiers.take("acq_rel", "sc", "acquire", "release")
    wide = modifiers.take("cta", "cluster", "gpu", "sys", "gl") not in ("cta", "cluster")
    modifiers.done()

    def fence(warp: Any) -> None:
        seen, _ = warp.release()
        warp.released |= seen
        if wide:
            warp.release_to_gpu()
            warp.acquire_from_gpu()

    return fence


DECODERS: Mapping[str, Decoder] = {
    "bar": _decode_bar,
    "barrier": _decode_bar,
    "fence": _decode_fence,
    "membar": _decode_fence,
}
