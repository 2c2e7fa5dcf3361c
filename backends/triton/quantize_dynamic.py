"""Quantization with one global scale per row; a program holds whole rows, so x is read once."""

import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.target import target_of
from nvfp4.backends.triton.device.tile_config import LONGEST_ROW, Tile, choose_row_tile
from nvfp4.backends.triton.device.tiles import (
    global_scale_of,
    largest_of_row,
    load_blocks,
    row_global_scale,
    store_quantized,
)
from nvfp4.backends.triton.quantize import quantize
from nvfp4.backends.triton.runtime.launch import Launch, cdiv
from nvfp4.backends.triton.runtime.program import run
from nvfp4.calls import Packed, Quantize, Quantized, QuantizeDynamic, takes
from nvfp4.spec.format import DATA_DTYPE, SWIZZLED


@triton.jit(do_not_specialize=["M", "scale_rows"])
def _quantize_rows_kernel(
    x, data, scales, global_scale, M, K, x_stride, scale_rows, scale_columns,
    SWIZZLED: tl.constexpr, SCALE_RULE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    SM: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * R + tl.arange(0, R)
    values = load_blocks(x, rows, rows < M, 0, K, x_stride, R, C)
    p = row_global_scale(values, SCALE_RULE)
    tl.store(global_scale + rows, p, mask=rows < M)
    store_quantized(
        values, p, data, scales, rows, 0, M, K, scale_rows, scale_columns,
        SWIZZLED, SCALE_RULE, C, SM,
    )  # fmt: skip


@triton.jit
def _row_scales_kernel(x, global_scale, K, x_stride, SCALE_RULE: tl.constexpr, C: tl.constexpr):
    row = tl.program_id(0) + tl.arange(0, 1)
    amax = tl.zeros((1,), tl.float32)
    for start in range(0, K, C):
        values = load_blocks(x, row, row >= 0, start, K, x_stride, 1, C)
        amax = tl.maximum(amax, largest_of_row(values))
    tl.store(global_scale + row, global_scale_of(amax, SCALE_RULE))


def plan(call: QuantizeDynamic, out: Quantized, sm: int, tile: Tile | None = None) -> Launch:
    """The launch for a prepared call with K up to LONGEST_ROW, on architecture sm_<sm>; tile:
    default the one chosen.
    """
    x, scales = call.x, out.scales.view(DATA_DTYPE)
    (m, k), (scale_rows, scale_columns) = x.shape, scales.shape
    tile = tile or choose_row_tile(m, k)
    return Launch(
        _quantize_rows_kernel,
        (cdiv(scale_rows, tile.rows),),
        (x, out.data, scales, out.row_scale, m, k, x.stride(0), scale_rows, scale_columns),
        {
            "SWIZZLED": call.scale_layout == SWIZZLED,
            "SCALE_RULE": call.scale_rule,
            "R": tile.rows,
            "C": tile.columns,
            "SM": sm,
        },
        num_warps=tile.num_warps,
    )


def plan_row_scales(x: Tensor, row_scale: Tensor, scale_rule: str) -> Launch:
    """The launch that computes row_scale [M] alone, for rows too long to hold."""
    args = (x, row_scale, x.shape[1], x.stride(0))
    constants = {"SCALE_RULE": scale_rule, "C": 8192}
    return Launch(_row_scales_kernel, (x.shape[0],), args, constants, num_warps=8)


@takes(QuantizeDynamic.prepared)
def quantize_dynamic(call: QuantizeDynamic, out: Quantized) -> None:
    if call.x.shape[1] > LONGEST_ROW:
        run(plan_row_scales(call.x, out.row_scale, call.scale_rule))
        static = Quantize(call.x, out.row_scale, call.scale_layout, call.scale_rule)
        quantize(static, Packed(out.data, out.scales))
    else:
        run(plan(call, out, target_of(call.x.device).sm))
