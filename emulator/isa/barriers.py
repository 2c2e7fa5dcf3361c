"""Barriers of CTAs and clusters, and fences (PTX ISA: bar, barrier, membar, fence).

A barrier passes what the arriving warps have observed on to the waiting ones (memory/shadow.py).
"""

from collections.abc import Mapping
from typing import Any

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder, Decoder
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import pick
from nvfp4.emulator.machine.barriers import NamedBarrier
from nvfp4.emulator.machine.outcomes import BLOCKED
from nvfp4.emulator.machine.passed import to_all
from nvfp4.emulator.machine.program import Step


def _decode_bar(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode bar.warp, bar and barrier.cta with .sync and .arrive, and barrier.cluster."""
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
    number = builder.source(instruction.operands[0], 32)
    threads = None
    if len(instruction.operands) > 1:
        threads = builder.source(instruction.operands[1], 32)
    waiting = object()  # the key in warp.state that says it has arrived here

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
            warp.acquire(barrier.done[phase])
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
        barrier.arrive(warp, warp.arrival(not relaxed, wide=True, here=False))
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
        warp.acquire(barrier.done[phase], wide=True)
        return None

    return arrive if operation == "arrive" else wait


def _decode_fence(instruction: ptx.Instruction, builder: Builder) -> Step:
    modifiers = Modifiers(instruction)
    if modifiers.take("mbarrier_init"):
        modifiers.need("release")
        modifiers.need("cluster")
        modifiers.done()

        def mbarrier_init(warp: Any) -> None:
            warp.released |= to_all(warp.inits)
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
    order = modifiers.take("acq_rel", "sc", "acquire", "release") or "sc"
    restricted = modifiers.take("sync_restrict::shared::cta", "sync_restrict::shared::cluster")
    scope = modifiers.take("cta", "cluster", "gpu", "sys", "gl") or "sys"
    modifiers.done()
    releases, acquires = order != "acquire", order != "release"
    if restricted:
        _check_restricted(instruction, order, restricted, scope)

    def fence(warp: Any) -> None:
        if releases:
            warp.fence_release(scope != "cta", bool(restricted))
        if acquires:
            warp.fence_acquire(scope != "cta", bool(restricted))
        if scope not in ("cta", "cluster"):
            warp.release_to_gpu()
            warp.acquire_from_gpu()

    return fence


def _check_restricted(ins: ptx.Instruction, order: str, restricted: str, scope: str) -> None:
    """Refuse what PTX ISA does not have: a release is of shared::cta, an acquire of ::cluster."""
    wanted = {"release": "sync_restrict::shared::cta", "acquire": "sync_restrict::shared::cluster"}
    if wanted.get(order) != restricted or scope != "cluster":
        raise ins.unsupported(
            "only fence.release.sync_restrict::shared::cta.cluster and"
            " fence.acquire.sync_restrict::shared::cluster.cluster"
        )


DECODERS: Mapping[str, Decoder] = {
    "bar": _decode_bar,
    "barrier": _decode_bar,
    "fence": _decode_fence,
    "membar": _decode_fence,
}
