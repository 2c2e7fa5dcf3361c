"""The CTA and the mbarrier that a shared address names, for a warp that may use them."""

from typing import Any

from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.machine.mbarrier import Mbarrier
from nvfp4.emulator.memory.addresses import OFFSET_MASK, RANK_SHIFT


def cta_at(warp: Any, address: int) -> tuple[Any, int]:
    """Give the CTA and the offset of a shared address."""
    rank = address >> RANK_SHIFT
    ctas = warp.cluster.ctas
    if rank >= len(ctas):
        raise Hazard(Kind.OUT_OF_BOUNDS, f"shared address {address:#x}: no CTA {rank} here")
    cta = ctas[rank]
    if cta is not warp.cta and not warp.seen >> cta.started & 1:
        raise Hazard(
            Kind.NOT_STARTED,
            f"shared address {address:#x}: CTA {cta.index} is not known to run",
        )
    if cta.exited:
        raise Hazard(Kind.EXITED, f"shared address {address:#x}: CTA {cta.index} has exited")
    return cta, address & OFFSET_MASK


def mbarrier_at(warp: Any, address: int) -> Mbarrier:
    """Give the mbarrier at a shared address; the warp must know that it is initialised."""
    cta, offset = cta_at(warp, address)
    barrier = cta.mbarriers.get(offset)
    if barrier is None:
        raise Hazard(Kind.MBARRIER, f"no mbarrier was initialised at {address:#x}")
    if not warp.seen >> barrier.init & 1:
        event = warp.cluster.events[barrier.init]
        raise Hazard(Kind.MBARRIER, f"{barrier.where} is used without waiting for its {event}")
    return barrier
