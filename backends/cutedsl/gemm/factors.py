"""Factors and bias of the epilogue: from global memory to registers.

What all rows of a tile share (factors by segment of N, the bias) is prefetched to shared memory, as
float32, once per tile. What a row has is read by the threads that have the row.
"""

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, const_expr

from nvfp4.backends.cutedsl.gemm import ptx
from nvfp4.backends.cutedsl.gemm.config import Alpha
from nvfp4.backends.cutedsl.gemm.layouts import Layout

BARRIER = 1
"""The named barrier of the epilogue's warps."""


class Factors(NamedTuple):
    """Where the factors and the bias are.

    alpha: float32 (see config.Alpha), with its rows' stride, and `segment` columns of N each;
    row_scale: float32, with a stride of 0 or 1. Grouped, alpha's rows are experts, and their biases
    are bias_stride apart.
    """

    alpha: cute.Pointer
    alpha_stride: Int64
    segment: Int32
    row_scale: cute.Pointer
    row_scale_stride: Int32
    bias: cute.Pointer
    bias_stride: Int32 | None = None


@cute.jit
def element(pointer: cute.Pointer, index) -> Float32:
    """pointer[index] as float32."""
    return Float32((pointer + index).load())


@cute.jit
def of_expert(factors: Factors, expert: Int32) -> Factors:
    """The factors and bias of one expert."""
    alpha = factors.alpha + Int64(expert) * factors.alpha_stride
    bias = factors.bias + Int64(expert) * factors.bias_stride
    return factors._replace(alpha=alpha, bias=bias)


@cute.jit
def of_column(layout: cutlass.Constexpr[Layout], factors: Factors, column: Int32) -> Float32:
    """What column `column` of D multiplies by, whatever the row."""
    if const_expr(not layout.tile.swapped):
        return element(factors.alpha, column // factors.segment)
    return of_token(layout, factors, column)


@cute.jit
def of_row(layout: cutlass.Constexpr[Layout], factors: Factors, row: Int32) -> Float32:
    """What row `row` of D multiplies by, whatever the column."""
    value = Float32(1.0)
    if const_expr(not layout.tile.swapped):
        value = of_token(layout, factors, row)
    elif const_expr(layout.epilogue.alpha is Alpha.SEGMENTS):
        value = element(factors.alpha, row // factors.segment)
    return value


@cute.jit
def of_token(layout: cutlass.Constexpr[Layout], factors: Factors, token: Int32) -> Float32:
    """The factors that a token has, on whichever side of D tokens are."""
    value = Float32(1.0)
    if const_expr(layout.epilogue.alpha is Alpha.ONE):
        value = element(factors.alpha, 0)
    if const_expr(layout.epilogue.alpha is Alpha.ROWS):
        value = element(factors.alpha, token)
    if const_expr(layout.epilogue.row_scale):
        value = value * element(factors.row_scale, token * factors.row_scale_stride)
    return value


@cute.jit
def of_element(factors: Factors, token: Int32, n: Int32) -> Float32:
    """alpha [M, S] of an element."""
    return element(factors.alpha, Int64(token) * factors.alpha_stride + n // factors.segment)


@cute.jit
def of_rows(layout: cutlass.Constexpr[Layout], factors: Factors, same: Float32, coord, rows):
    """The factor of each of a thread's rows, `rows` from the tile's first of its warp on.

    It is `same` where one number multiplies everything.
    """
    if const_expr(layout.same_factor):
        return [same] * len(rows)
    # Rows beyond the last read it again; what they compute is not stored.
    return [of_row(layout, factors, cutlass.min(coord.row + i, coord.row_end - 1)) for i in rows]


@cute.jit
def prefetch(
    layout: cutlass.Constexpr[Layout], factors: Factors, vectors: Int32, slot: Int32, r: Int32,
    coord,
):  # fmt: skip
    """Write the factors, then the bias, of a tile's columns to shared memory at `vectors`.

    Thread r writes those of columns r and r + 128, at `slot` (of 4 bytes) and 128 beyond it.
    """
    width, threads = layout.tile.columns, 32 * layout.epilogue_warps
    for part in cutlass.range_constexpr(0, width, threads):
        if const_expr(part + threads <= width) or r < width - part:
            # Columns beyond the last read it again; what they compute is not stored.
            index = cutlass.min(coord.column + r + part, coord.column_end - 1)
            to = vectors + 4 * slot
            if const_expr(layout.prefetches_factors):
                ptx.store_shared(to, [of_column(layout, factors, index)], 4 * part)
            if const_expr(layout.prefetches_bias):
                bias = element(factors.bias, index)
                ptx.store_shared(to, [bias], layout.bias_offset + 4 * part)
    cute.arch.barrier(barrier_id=BARRIER, number_of_threads=threads)
