"""A tile's way out element by element: for outputs that TMA cannot write, for transposed ones
(swapped operands), and for split-K, whose sums are first added across the cluster.

tcgen05.ld.32x32b gives a thread one row of D: of swapped operands, threads of a warp are neighbours
in the output.
"""

import cutlass
import cutlass.cute as cute
import torch
from cutlass import Float32, Int32, Int64, const_expr

from nvfp4.backends.cutedsl.gemm import floats, ptx
from nvfp4.backends.cutedsl.gemm.config import CTA_ROWS, Alpha
from nvfp4.backends.cutedsl.gemm.factors import Factors, of_element
from nvfp4.backends.cutedsl.gemm.layouts import Layout

DTYPES = {
    torch.bfloat16: cutlass.BFloat16,
    torch.float16: cutlass.Float16,
    torch.float32: cutlass.Float32,
}


@cute.jit
def store(
    layout: cutlass.Constexpr[Layout], sums, vectors: Int32, row_factor: Float32,
    row_bias: Float32, factors: Factors, out: cute.Pointer, out_stride: Int64, row: Int32,
    column: Int32, rows: Int32, columns: Int32,
):  # fmt: skip
    """A thread's sums, of row `row` of D from `column` on; `vectors`: what is staged for them."""
    dtype, swapped = DTYPES[layout.epilogue.out_dtype], layout.tile.swapped
    for i in cutlass.range_constexpr(len(sums)):
        if row < rows and column + i < columns:
            token, n = (column + i, row) if const_expr(swapped) else (row, column + i)
            factor = row_factor
            if const_expr(layout.stages_factors):
                factor = factor * ptx.load_shared(vectors, 1, Float32, 4 * i)[0]
            if const_expr(layout.epilogue.alpha is Alpha.MATRIX):
                factor = factor * of_element(factors, token, n)
            bias = row_bias
            if const_expr(layout.stages_bias):
                bias = ptx.load_shared(vectors, 1, Float32, layout.bias_offset + 4 * i)[0]
            if const_expr(layout.epilogue.bias):
                value = floats.fma(sums[i], factor, bias)
            else:
                value = sums[i] * factor
            (out + (Int64(token) * out_stride + n)).store(dtype(value))


@cute.jit
def keep_partials(
    layout: cutlass.Constexpr[Layout], sums, smem: Int32, r: Int32, first: cutlass.Constexpr[int]
):
    """Split-K: a thread's sums of columns from `first` on, to `partials`."""
    for i in cutlass.range_constexpr(len(sums)):
        ptx.store_shared(smem + layout.partials + 4 * r, [sums[i]], (first + i) * (4 * CTA_ROWS))


@cute.jit
def add_partials(
    layout: cutlass.Constexpr[Layout], smem: Int32, r: Int32, rank: Int32, turn: Int32
):
    """Split-K: this CTA's share of the tile's columns, added in the order of the CTAs' ranks."""
    split = layout.tile.split_k
    share = layout.tile.columns // split
    arrive_at_all(layout, smem + layout.partial_full)
    ptx.mbarrier_wait_cluster(smem + layout.partial_full, turn & 1)
    at = smem + layout.partials + (rank * share * CTA_ROWS + r) * 4
    sums = [ptx.load_cluster(ptx.map_to_cta(at, Int32(0)), 4 * CTA_ROWS * i) for i in range(share)]
    for q in cutlass.range_constexpr(1, split):
        remote = ptx.map_to_cta(at, Int32(q))
        sums = [sums[i] + ptx.load_cluster(remote, 4 * CTA_ROWS * i) for i in range(share)]
    arrive_at_all(layout, smem + layout.partial_empty)
    return sums


@cute.jit
def arrive_at_all(layout: cutlass.Constexpr[Layout], barrier: Int32):
    """The warp arrives at this barrier of each CTA of the cluster."""
    cute.arch.sync_warp()
    for q in cutlass.range_constexpr(layout.tile.split_k):
        ptx.mbarrier_arrive_cluster(ptx.map_to_cta(barrier, Int32(q)))
