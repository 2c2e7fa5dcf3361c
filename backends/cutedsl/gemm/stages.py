"""The ring of stages that operands pass through shared memory in: K = 256 a stage."""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, const_expr

from nvfp4.backends.cutedsl.gemm.layouts import Layout


@cute.jit
def advance(layout: cutlass.Constexpr[Layout], stage: Int32, phase: Int32):
    """The next stage of the ring, and the phase of its barriers."""
    stage = stage + 1
    if stage == layout.stages:
        stage = Int32(0)
        phase = phase ^ 1
    return stage, phase


@cute.jit
def k_range(layout: cutlass.Constexpr[Layout], k_stages: Int32, rank: Int32):
    """The stages of K that this CTA sums: all, or with split-K an even part of them."""
    if const_expr(layout.tile.split_k == 1):
        return Int32(0), k_stages
    split = layout.tile.split_k
    return rank * k_stages // split, (rank + 1) * k_stages // split
