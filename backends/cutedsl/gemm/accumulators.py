"""The two accumulators in tensor memory, between which a cluster's tiles alternate (ping-pong)."""

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Int32, const_expr

from nvfp4.backends.cutedsl.gemm import ptx
from nvfp4.backends.cutedsl.gemm.layouts import Layout


class Accumulator(NamedTuple):
    """A tile's accumulator, as a warp of the epilogue reads it.

    tmem: address of the warp's lanes; block: shared address of the prefetched vectors and barriers;
    second: 1 for the second accumulator; phase: parity of its full barrier.
    """

    tmem: Int32
    block: Int32
    second: Int32
    phase: Int32


@cute.jit
def wait_full(layout: cutlass.Constexpr[Layout], accumulator: Accumulator):
    """Wait until the MMAs of the tile are done."""
    ptx.mbarrier_wait(accumulator.block + layout.acc_full, accumulator.phase)
    ptx.tmem_fence_after()


@cute.jit
def subtile_offset(layout: cutlass.Constexpr[Layout], accumulator: Accumulator, s) -> Int32:
    """The first column of subtile `s`, in the order that the epilogue empties them."""
    offset = Int32(s * layout.subtile)
    if const_expr(layout.tmem.overlap > 0):
        # The columns that the next tile's accumulator overlaps are emptied first.
        last = layout.drained - layout.subtile
        offset = offset + (1 - accumulator.second) * (last - 2 * offset)
    return offset


@cute.jit
def release(layout: cutlass.Constexpr[Layout], accumulator: Accumulator, smem: Int32, rank: Int32):
    """Give the accumulator back to the MMA warp: of a pair of CTAs, to the leader's.

    tcgen05.fence orders the loads from tensor memory before the arrival, which needs no release.
    """
    barrier = accumulator.block + layout.acc_empty
    if const_expr(layout.tmem.overlap > 0):
        barrier = smem + (layout.acc_block + layout.acc_empty)
    ptx.tmem_fence_before()
    if const_expr(layout.tile.ctas == 1):
        ptx.mbarrier_arrive(barrier)
    else:
        ptx.mbarrier_arrive_cluster(ptx.map_to_cta(barrier, rank & ~1))
