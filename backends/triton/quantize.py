"""Quantization with a known global scale."""

import triton
import triton.language as tl

from nvfp4.backends.target import target_of
from nvfp4.backends.triton.device.tile_config import RESIDENT_ROWS, Tile, choose_tile
from nvfp4.backends.triton.device.tiles import load_blocks, store_quantized
from nvfp4.backends.triton.runtime.launch import Launch, cdiv
from nvfp4.backends.triton.runtime.program import run
from nvfp4.calls import Packed, Quantize, takes
from nvfp4.spec.format import BLOCK, DATA_DTYPE, SWIZZLED


@triton.jit(do_not_specialize=["M", "p_stride", "scale_rows"])
def _quantize_kernel(
    x, global_scale, data, scales, M, K, x_stride, p_stride, scale_rows, scale_columns,
    SWIZZLED: tl.constexpr, SCALE_RULE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    SM: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.program_id(1) * C
    values = load_blocks(x, rows, rows < M, column, K, x_stride, R, C)
    p = tl.load(global_scale + rows * p_stride, mask=rows < M, other=1.0)
    store_quantized(
        values, p, data, scales, rows, column, M, K, scale_rows, scale_columns,
        SWIZZLED, SCALE_RULE, C, SM,
    )  # fmt: skip


def plan(call: Quantize, out: Packed, sm: int, tile: Tile | None = None) -> Launch:
    """The launch for a prepared call on architecture sm_<sm>; tile: default the one chosen."""
    x, p, scales = call.x, call.global_scale, out.scales.view(DATA_DTYPE)
    (m, k), (scale_rows, scale_columns) = x.shape, scales.shape
    warps = 4 if m <= RESIDENT_ROWS else 1
    tile = tile or choose_tile(k, elements=2048, widest=1024, num_warps=warps)
    strides = x.stride(0), int(p.numel() > 1)
    return Launch(
        _quantize_kernel,
        (cdiv(scale_rows, tile.rows), cdiv(scale_columns * BLOCK, tile.columns)),
        (x, p, out.data, scales, m, k, *strides, scale_rows, scale_columns),
        {
            "SWIZZLED": call.scale_layout == SWIZZLED,
            "SCALE_RULE": call.scale_rule,
            "R": tile.rows,
            "C": tile.columns,
            "SM": sm,
        },
        num_warps=tile.num_warps,
    )


@takes(Quantize.prepared)
def quantize(call: Quantize, out: Packed) -> None:
    run(plan(call, out, target_of(call.x.device).sm))
