"""The epilogue that stores element by element.

It serves outputs that TMA cannot write, transposed ones (swapped operands), and split-K, whose
partial sums are first added across the cluster.

tcgen05.ld.32x32b gives a thread one row of D: of swapped operands, threads of a warp are neighbours
in the output.
"""

import cutlass
import cutlass.cute as cute
import torch
from cutlass import Float32, Int32, Int64, const_expr

from nvfp4.backends.cutedsl.gemm import floats, ptx
from nvfp4.backends.cutedsl.gemm.accumulators import (
    Accumulator,
    release,
    subtile_offset,
    wait_full,
)
from nvfp4.backends.cutedsl.gemm.config import CTA_ROWS, Alpha
from nvfp4.backends.cutedsl.gemm.factors import Factors, element, of_element, of_rows
from nvfp4.backends.cutedsl.gemm.layouts import Layout
from nvfp4.backends.cutedsl.gemm.output import EpilogueWarp, Output

LOADS_AT_ONCE = 64
"""Partial sums that a thread loads before it stores their totals: each takes a register."""

DTYPES = {
    torch.bfloat16: cutlass.BFloat16,
    torch.float16: cutlass.Float16,
    torch.float32: cutlass.Float32,
}


@cute.jit
def drain(
    layout: cutlass.Constexpr[Layout], own: EpilogueWarp, accumulator: Accumulator, output: Output,
    factors: Factors, same: Float32, coord,
):  # fmt: skip
    """A tile, subtile by subtile, from its accumulator to D."""
    terms = terms_of(layout, own, factors, same, coord)
    wait_full(layout, accumulator)
    for s in cutlass.range_constexpr(layout.subtiles):
        offset = subtile_offset(layout, accumulator, s)
        sums = ptx.tmem_load(accumulator.tmem + offset, layout.subtile)
        ptx.tmem_wait()
        if const_expr(s == layout.release_after):
            release(layout, accumulator, own.smem, own.rank)
        store(layout, own, accumulator, output, factors, terms, coord, sums, offset)


@cute.jit
def drain_split_k(
    layout: cutlass.Constexpr[Layout], own: EpilogueWarp, accumulator: Accumulator, output: Output,
    factors: Factors, same: Float32, coord,
):  # fmt: skip
    """Split-K: a tile's partial sums to shared memory, then this CTA's share of all CTAs' to D.

    A cluster has one tile, so `partials` is written once.
    """
    terms = terms_of(layout, own, factors, same, coord)
    wait_full(layout, accumulator)
    for s in cutlass.range_constexpr(layout.subtiles):
        offset = subtile_offset(layout, accumulator, s)
        sums = ptx.tmem_load(accumulator.tmem + offset, layout.subtile)
        ptx.tmem_wait()
        if const_expr(s == layout.release_after):
            release(layout, accumulator, own.smem, own.rank)
        store_partial(layout, sums, own.smem, own.r, s * layout.subtile)
    exchange(layout, own.smem)
    share = layout.tile.columns // layout.tile.split_k
    count = min(share, LOADS_AT_ONCE // layout.tile.split_k)
    for i in cutlass.range_constexpr(0, share, count):
        first = own.rank * share + i
        sums = reduce_partials(layout, own.smem, own.r, first, count)
        store(layout, own, accumulator, output, factors, terms, coord, sums, first)


@cute.jit
def terms_of(
    layout: cutlass.Constexpr[Layout], own: EpilogueWarp, factors: Factors, same: Float32, coord
):
    """The factor and the bias of the thread's row; 1.0 and 0.0 where rows have none."""
    row = coord.row + own.lane
    factor = of_rows(layout, factors, same, coord, [own.lane])[0]
    bias = Float32(0.0)
    if const_expr(layout.epilogue.bias and layout.tile.swapped):
        bias = element(factors.bias, cutlass.min(row, coord.row_end - 1))
    return factor, bias


@cute.jit
def store(
    layout: cutlass.Constexpr[Layout], own: EpilogueWarp, accumulator: Accumulator, output: Output,
    factors: Factors, terms, coord, sums, offset: Int32,
):  # fmt: skip
    """Scale a thread's sums, of the tile's columns from `offset` on, and store them."""
    vectors = accumulator.block + 4 * offset
    row, column = coord.row + own.lane, coord.column + offset
    row_factor, row_bias = terms
    dtype, swapped = DTYPES[layout.epilogue.out_dtype], layout.tile.swapped
    for i in cutlass.range_constexpr(len(sums)):
        if row < coord.row_end and column + i < coord.column_end:
            token, n = (column + i, row) if const_expr(swapped) else (row, column + i)
            factor = row_factor
            if const_expr(layout.prefetches_factors):
                factor = factor * ptx.load_shared(vectors, 1, Float32, 4 * i)[0]
            if const_expr(layout.epilogue.alpha is Alpha.MATRIX):
                factor = factor * of_element(factors, token, n)
            bias = row_bias
            if const_expr(layout.prefetches_bias):
                bias = ptx.load_shared(vectors, 1, Float32, layout.bias_offset + 4 * i)[0]
            if const_expr(layout.epilogue.bias):
                value = floats.fma(sums[i], factor, bias)
            else:
                value = sums[i] * factor
            (output.pointer + (Int64(token) * output.stride + n)).store(dtype(value))


@cute.jit
def store_partial(
    layout: cutlass.Constexpr[Layout], sums, smem: Int32, r: Int32, first: cutlass.Constexpr[int]
):
    """Split-K: a thread's sums of columns from `first` on, to `partials`."""
    for i in cutlass.range_constexpr(len(sums)):
        ptx.store_shared(smem + layout.partials + 4 * r, [sums[i]], (first + i) * (4 * CTA_ROWS))


@cute.jit
def exchange(layout: cutlass.Constexpr[Layout], smem: Int32):
    """Split-K: tell that this CTA's partial sums are there, and wait for all CTAs'."""
    arrive_at_all(layout, smem + layout.partial_full)
    ptx.mbarrier_wait_relaxed(smem + layout.partial_full, Int32(0))
    ptx.acquire_shared()


@cute.jit
def reduce_partials(
    layout: cutlass.Constexpr[Layout], smem: Int32, r: Int32, first: Int32,
    count: cutlass.Constexpr[int],
):  # fmt: skip
    """Split-K: `count` columns of the tile, added in the order of the CTAs' ranks."""
    at = smem + layout.partials + (first * CTA_ROWS + r) * 4
    sums = [ptx.load_cluster(ptx.map_to_cta(at, Int32(0)), 4 * CTA_ROWS * i) for i in range(count)]
    for q in cutlass.range_constexpr(1, layout.tile.split_k):
        remote = ptx.map_to_cta(at, Int32(q))
        sums = [sums[i] + ptx.load_cluster(remote, 4 * CTA_ROWS * i) for i in range(count)]
    return sums


@cute.jit
def arrive_at_all(layout: cutlass.Constexpr[Layout], barrier: Int32):
    """The warp arrives at this barrier of each CTA of the cluster, which releases its partials."""
    cute.arch.sync_warp()
    ptx.release_own_shared()
    for q in cutlass.range_constexpr(layout.tile.split_k):
        ptx.mbarrier_arrive_cluster(ptx.map_to_cta(barrier, Int32(q)))
