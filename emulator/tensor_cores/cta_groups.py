"""The one CTA or the pair of CTAs that a tcgen05 instruction works in (.cta_group)."""

from typing import Any

from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.modifiers import Modifiers


def group_of(modifiers: Modifiers) -> int:
    return int(modifiers.need("cta_group::1", "cta_group::2")[-1])


def same_group(warp: Any, group: int) -> None:
    """Check that all tcgen05 instructions of a kernel have one .cta_group."""
    if warp.cluster.cta_group not in (0, group):
        raise Hazard(Kind.CTA_GROUP, f"cta_group::{group} after ::{warp.cluster.cta_group}")
    warp.cluster.cta_group = group


def pair_of(warp: Any, group: int) -> list[Any]:
    """Give the CTAs that an instruction works in, the even rank first."""
    same_group(warp, group)
    if group == 1:
        return [warp.cta]
    first = warp.cta.rank & ~1
    if first + 2 > len(warp.cluster.ctas):
        raise Hazard(Kind.CTA_GROUP, "cta_group::2 without a second CTA in the cluster")
    pair = warp.cluster.ctas[first : first + 2]
    for cta in pair:
        if not warp.seen >> cta.started & 1:
            raise Hazard(
                Kind.NOT_STARTED,
                f"cta_group::2 with CTA {cta.index}, which is not known to run: a barrier of the"
                " cluster has to come first",
            )
        if cta.exited:
            raise Hazard(Kind.EXITED, f"cta_group::2 with CTA {cta.index}, which has exited")
    return pair
