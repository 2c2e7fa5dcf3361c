"""Residual add, RMSNorm and quantization of the result, in one pass.

A program holds whole rows, so x is read once. Rows that are too long are read several times.
"""

import triton
import triton.language as tl

from nvfp4.backends.target import target_of
from nvfp4.backends.triton.device.floats import BLOCK, from_f32, to_f32
from nvfp4.backends.triton.device.tile_config import Tile, choose_row_tile
from nvfp4.backends.triton.device.tiles import (
    global_scale_of,
    largest_of_row,
    load_blocks,
    reciprocal,
    row_global_scale,
    store_padding,
    store_quantized,
)
from nvfp4.backends.triton.runtime.launch import Launch, cdiv, next_power_of_2
from nvfp4.backends.triton.runtime.program import run
from nvfp4.calls import Normalized, RmsnormQuantize, takes
from nvfp4.spec.format import DATA_DTYPE, SWIZZLED

LONGEST_HELD_ROW = 32768
"""The longest row that a program holds: 32 float32 a thread, beside as many of the weight."""

CHUNK = 8192
"""Elements of a longer row that a program holds at a time."""


@triton.jit
def _tree_sum(x, R: tl.constexpr, LEVELS: tl.constexpr):
    """Sum float32 [R, 2^LEVELS] over each row, neighbours first: [R].

    A sum of two numbers has the same bits in either order, so no layout changes the result.
    """
    for _ in tl.static_range(LEVELS):
        x = tl.sum(x.reshape(R, x.shape[1] // 2, 2), axis=2)
    return x.reshape(R)


@triton.jit
def _residual_sum(
    x, residual, rows, row_mask, column, K, x_stride, residual_stride,
    ADD: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Load h = x + residual, rounded to x's dtype, as float32 [R, C/16, 16]; zeros outside."""
    h = load_blocks(x, rows, row_mask, column, K, x_stride, R, C)
    if ADD:
        h += load_blocks(residual, rows, row_mask, column, K, residual_stride, R, C)
        h = to_f32(from_f32(h, x.dtype.element_ty))
    return h


@triton.jit
def _inverse_rms(sum_of_squares, K, eps):
    """Compute 1 / sqrt(mean + eps), each operation correctly rounded."""
    k = tl.full(sum_of_squares.shape, 0.0, tl.float32) + K.to(tl.float32)
    return reciprocal(tl.sqrt_rn(tl.div_rn(sum_of_squares, k) + eps))


@triton.jit
def _columns(column, C: tl.constexpr):
    """The columns of a tile, [C/16, 16]."""
    return column + tl.arange(0, C // BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]


@triton.jit
def _normalize(h, inverse, weight, row_mask, column, K, C: tl.constexpr):
    """Compute (h * inverse) * weight; zeros outside, also where a row's `inverse` is NaN."""
    row = tl.arange(0, 1)
    factors = load_blocks(weight, row, row >= 0, column, K, 0, 1, C)
    inside = row_mask[:, None, None] & (_columns(column, C) < K)[None, :, :]
    return tl.where(inside, h * inverse[:, None, None] * factors, 0.0)


@triton.jit
def _store_sum(h, total, rows, row_mask, column, K, C: tl.constexpr):
    """Store the tile h [R, C/16, 16] to total [M, K] in its dtype; the blocks' axis comes first."""
    columns = _columns(column, C)[:, None, :]
    at = total + rows.to(tl.int64)[None, :, None] * K + columns
    inside = row_mask[None, :, None] & (columns < K)
    tl.store(at, from_f32(h, total.dtype.element_ty).permute(1, 0, 2), mask=inside)


@triton.jit(do_not_specialize=["M", "p_stride", "scale_rows"])
def _rmsnorm_quantize_kernel(
    x, residual, weight, global_scale, eps, data, scales, row_scales, total, M, K, x_stride,
    residual_stride, p_stride, scale_rows, scale_columns,
    ADD: tl.constexpr, FIND: tl.constexpr, SWIZZLED: tl.constexpr, SCALE_RULE: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr, SM: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * R + tl.arange(0, R)
    if tl.program_id(0) * R >= M:
        store_padding(scales, rows, 0, scale_columns, SWIZZLED, R, C)
        return
    row_mask = rows < M
    h = _residual_sum(x, residual, rows, row_mask, 0, K, x_stride, residual_stride, ADD, R, C)
    if ADD:
        _store_sum(h, total, rows, row_mask, 0, K, C)
    inverse = _inverse_rms(_tree_sum((h * h).reshape(R, C), R, LEVELS), K, eps)
    values = _normalize(h, inverse, weight, row_mask, 0, K, C)
    if FIND:
        p = row_global_scale(values, SCALE_RULE)
    else:
        p = tl.load(global_scale + rows * p_stride, mask=row_mask, other=1.0)
    tl.store(row_scales + rows, p, mask=row_mask)
    store_quantized(
        values, p, data, scales, rows, 0, M, K, scale_rows, scale_columns,
        SWIZZLED, SCALE_RULE, C, SM,
    )  # fmt: skip


@triton.jit(do_not_specialize=["M", "p_stride", "scale_rows"])
def _rmsnorm_quantize_long_rows_kernel(
    x, residual, weight, global_scale, eps, data, scales, row_scales, total, M, K, x_stride,
    residual_stride, p_stride, scale_rows, scale_columns,
    ADD: tl.constexpr, FIND: tl.constexpr, SWIZZLED: tl.constexpr, SCALE_RULE: tl.constexpr,
    C: tl.constexpr, LEVELS: tl.constexpr, CHUNKS: tl.constexpr, CHUNK_LEVELS: tl.constexpr,
    SM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) + tl.arange(0, 1)
    if tl.program_id(0) >= M:
        for start in range(0, K, C):
            store_padding(scales, row, start, scale_columns, SWIZZLED, 1, C)
        return
    row_mask = row < M
    chunk = tl.arange(0, CHUNKS)[None, :]
    sums = tl.zeros((1, CHUNKS), tl.float32)
    for start in range(0, K, C):
        h = _residual_sum(
            x, residual, row, row_mask, start, K, x_stride, residual_stride, ADD, 1, C
        )
        if ADD:
            _store_sum(h, total, row, row_mask, start, K, C)
        found = _tree_sum((h * h).reshape(1, C), 1, LEVELS)
        sums = tl.where(chunk == start // C, found[:, None], sums)
    inverse = _inverse_rms(_tree_sum(sums, 1, CHUNK_LEVELS), K, eps)

    if FIND:
        amax = tl.zeros((1,), tl.float32)
        for start in range(0, K, C):
            h = _residual_sum(
                x, residual, row, row_mask, start, K, x_stride, residual_stride, ADD, 1, C
            )
            values = _normalize(h, inverse, weight, row_mask, start, K, C)
            amax = tl.maximum(amax, largest_of_row(values))
        p = global_scale_of(amax, SCALE_RULE)
    else:
        p = tl.load(global_scale + row * p_stride, mask=row_mask, other=1.0)
    tl.store(row_scales + row, p, mask=row_mask)

    for start in range(0, K, C):
        h = _residual_sum(
            x, residual, row, row_mask, start, K, x_stride, residual_stride, ADD, 1, C
        )
        values = _normalize(h, inverse, weight, row_mask, start, K, C)
        store_quantized(
            values, p, data, scales, row, start, M, K, scale_rows, scale_columns,
            SWIZZLED, SCALE_RULE, C, SM,
        )  # fmt: skip


def plan(
    call: RmsnormQuantize,
    out: Normalized,
    sm: int,
    tile: Tile | None = None,
    longest_held: int = LONGEST_HELD_ROW,
) -> Launch:
    """The launch for a prepared call on architecture sm_<sm>.

    tile: default the one chosen; for rows longer than `longest_held`, the part of one held.
    """
    x, residual, p, scales = call.x, call.residual, call.global_scale, out.scales.view(DATA_DTYPE)
    (m, k), (scale_rows, scale_columns) = x.shape, scales.shape
    held = k <= longest_held
    if tile is None:
        tile = choose_row_tile(m, k if held else CHUNK)
    strides = x.stride(0), 0 if residual is None else residual.stride(0)
    sizes = m, k, *strides, int(p is not None and p.numel() > 1), scale_rows, scale_columns
    constants = {
        "ADD": residual is not None,
        "FIND": p is None,
        "SWIZZLED": call.scale_layout == SWIZZLED,
        "SCALE_RULE": call.scale_rule,
        "C": tile.columns,
        "LEVELS": _levels(tile.columns),
        "SM": sm,
    }
    chunks = next_power_of_2(cdiv(k, tile.columns))
    more = {"CHUNKS": chunks, "CHUNK_LEVELS": _levels(chunks)}
    return Launch(
        _rmsnorm_quantize_kernel if held else _rmsnorm_quantize_long_rows_kernel,
        (cdiv(scale_rows, tile.rows) if held else scale_rows,),
        (x, residual, call.weight, p, call.eps, out.data, scales, out.row_scale, out.residual)
        + sizes,
        constants | ({"R": tile.rows} if held else more),
        num_warps=tile.num_warps,
    )


def _levels(power_of_two: int) -> int:
    """The levels of the tree over so many numbers."""
    return power_of_two.bit_length() - 1


@takes(RmsnormQuantize.prepared)
def rmsnorm_quantize(call: RmsnormQuantize, out: Normalized) -> None:
    run(plan(call, out, target_of(call.x.device).sm))
