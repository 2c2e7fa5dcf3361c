"""What an MLP does between its two GEMMs, and the quantization of its result, in one pass.

With experts, the programs go by the scale tiles that the experts' rows take, padding included, so
these tiles are written whole. The grouped buffer's other tiles are never written and never read.
"""

from enum import Enum

import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.target import target_of
from nvfp4.backends.triton.device.groups import (
    experts_vector,
    max_tiles,
    scale_rows,
    tile_of_expert,
)
from nvfp4.backends.triton.device.tile_config import (
    LONGEST_ROW,
    RESIDENT_ROWS,
    Tile,
    choose_row_tile,
    choose_tile,
)
from nvfp4.backends.triton.device.tiles import (
    TILE_ROWS,
    global_scale_of,
    glu,
    largest_of_row,
    load_blocks,
    quantize_tile,
    relu2,
    row_global_scale,
    store_padding,
    store_scales,
    store_words,
)
from nvfp4.backends.triton.runtime.launch import Launch, cdiv
from nvfp4.backends.triton.runtime.program import run
from nvfp4.calls import GluQuantize, Packed, Quantized, takes
from nvfp4.spec import glu as spec_glu
from nvfp4.spec import swizzle
from nvfp4.spec.format import BLOCK, DATA_DTYPE, SWIZZLED


class ScaleOf(Enum):
    """What a global scale of the product belongs to."""

    ROW_FOUND = "row_found"
    """Each row, and the kernel finds it."""
    ROW = "row"
    EXPERT = "expert"
    ALL = "all"


ROW_FOUND = tl.constexpr(ScaleOf.ROW_FOUND.value)
ROW = tl.constexpr(ScaleOf.ROW.value)
EXPERT = tl.constexpr(ScaleOf.EXPERT.value)

RELU2 = tl.constexpr(spec_glu.RELU2)


@triton.jit
def activated(
    gate_up, rows, row_mask, column, K, stride, limit, ACTIVATION: tl.constexpr,
    LIMITED: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Compute act(gate) * up, float32 [R, C/16, 16]; zeros where masked and beyond K."""
    if ACTIVATION == RELU2:
        return relu2(load_blocks(gate_up, rows, row_mask, column, K, stride, R, C))
    gate = load_blocks(gate_up, rows, row_mask, column, K, stride, R, C)
    up = load_blocks(gate_up + K, rows, row_mask, column, K, stride, R, C)
    if LIMITED:
        # Comparisons keep a NaN; minimum and maximum would turn it into the limit.
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    return glu(gate, up, ACTIVATION)


@triton.jit(do_not_specialize=["M", "all_scale_rows"])
def _glu_quantize_kernel(
    gate_up, global_scale, group_offsets, limit, data, scales, row_scales, M, E, K, stride,
    all_scale_rows, scale_columns,
    ACTIVATION: tl.constexpr, LIMITED: tl.constexpr, SWIZZLED: tl.constexpr,
    SCALE_RULE: tl.constexpr, SCALE_OF: tl.constexpr, KEEP_ROW_SCALE: tl.constexpr,
    EXPERTS: tl.constexpr, R: tl.constexpr, C: tl.constexpr, SM: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.program_id(1) * C
    if EXPERTS:
        index = tl.program_id(0) * R // TILE_ROWS
        expert, begin, row, end = tile_of_expert(group_offsets, index, E, TILE_ROWS, EXPERTS)
        if row >= end:
            return
        first = row + tl.program_id(0) * R % TILE_ROWS
        rows = first + tl.arange(0, R)
        row_mask = rows < end
        scale_row = scale_rows(rows, begin, expert)
        in_scales = scale_row >= 0
        if first >= end:  # padding only, as most programs have where experts have few rows
            store_padding(scales, scale_row, column, scale_columns, SWIZZLED, R, C)
            return
    else:
        expert = 0
        row_mask = rows < M
        scale_row = rows
        in_scales = rows < all_scale_rows
    values = activated(gate_up, rows, row_mask, column, K, stride, limit, ACTIVATION, LIMITED, R, C)
    if SCALE_OF == ROW_FOUND:
        p = row_global_scale(values, SCALE_RULE)
    elif SCALE_OF == ROW:
        p = tl.load(global_scale + rows, mask=row_mask, other=1.0)
    else:
        p = tl.load(global_scale + tl.zeros_like(rows) + (expert if SCALE_OF == EXPERT else 0))
    if KEEP_ROW_SCALE and column == 0:
        tl.store(row_scales + rows, p, mask=row_mask)
    words, sf = quantize_tile(values, p, SCALE_RULE, SM)
    store_words(words, data, rows, row_mask, column, K, C)
    store_scales(sf, scales, scale_row, in_scales, column, scale_columns, SWIZZLED, C)


@triton.jit
def _glu_row_scales_kernel(
    gate_up, limit, row_scales, K, stride, ACTIVATION: tl.constexpr, LIMITED: tl.constexpr,
    SCALE_RULE: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) + tl.arange(0, 1)
    amax = tl.zeros((1,), tl.float32)
    for start in range(0, K, C):
        values = activated(
            gate_up, rows, rows >= 0, start, K, stride, limit, ACTIVATION, LIMITED, 1, C
        )
        amax = tl.maximum(amax, largest_of_row(values))
    tl.store(row_scales + rows, global_scale_of(amax, SCALE_RULE))


def plan(
    call: GluQuantize,
    out: Packed | Quantized,
    sm: int,
    tile: Tile | None = None,
    scale_per_row: bool = False,
) -> Launch:
    """The launch for a prepared call on architecture sm_<sm>; tile: default the one chosen.

    With global_scale None, each row finds its own: I is at most LONGEST_ROW. scale_per_row:
    global_scale is [M], although there are offsets.
    """
    gate_up, p, offsets = call.gate_up, call.global_scale, call.offsets
    scales = out.scales.view(DATA_DTYPE)
    m, (scale_rows, scale_columns) = gate_up.shape[0], scales.shape
    k, experts = columns_of_result(call), 0 if offsets is None else offsets.numel() - 1
    if tile is None and p is None:
        tile = choose_row_tile(m, k)
    elif tile is None:
        elements = 512 if m <= RESIDENT_ROWS else 1024
        tile = choose_tile(k, elements, widest=elements, num_warps=2)
    rows = scale_rows
    if experts:
        rows = swizzle.TILE_ROWS * max_tiles(m, experts, swizzle.TILE_ROWS)
    row_scale = out.row_scale if isinstance(out, Quantized) else None
    limit = call.swiglu_limit or 0.0
    sizes = m, experts, k, gate_up.stride(0), scale_rows, scale_columns
    return Launch(
        _glu_quantize_kernel,
        (cdiv(rows, tile.rows), cdiv(scale_columns * BLOCK, tile.columns)),
        (gate_up, p, offsets, limit, out.data, scales, row_scale, *sizes),
        {
            "ACTIVATION": call.activation,
            "LIMITED": call.swiglu_limit is not None,
            "SWIZZLED": call.scale_layout == SWIZZLED,
            "SCALE_RULE": call.scale_rule,
            "SCALE_OF": (ScaleOf.ROW if scale_per_row else _scale_of(p, experts)).value,
            "KEEP_ROW_SCALE": row_scale is not None,
            "EXPERTS": experts_vector(experts) if experts else 0,
            "R": tile.rows,
            "C": tile.columns,
            "SM": sm,
        },
        num_warps=tile.num_warps,
    )


def columns_of_result(call: GluQuantize) -> int:
    """I, the columns of act(gate) * up."""
    return call.gate_up.shape[1] // spec_glu.columns_per_output(call.activation)


def _scale_of(p: Tensor | None, experts: int) -> ScaleOf:
    if p is None:
        return ScaleOf.ROW_FOUND
    if p.numel() == 1:
        return ScaleOf.ALL
    return ScaleOf.EXPERT if experts else ScaleOf.ROW


def plan_row_scales(call: GluQuantize, row_scale: Tensor) -> Launch:
    """The launch that computes row_scale [M] alone, for rows too long to hold."""
    gate_up, k = call.gate_up, columns_of_result(call)
    args = (gate_up, call.swiglu_limit or 0.0, row_scale, k, gate_up.stride(0))
    constants = {
        "ACTIVATION": call.activation,
        "LIMITED": call.swiglu_limit is not None,
        "SCALE_RULE": call.scale_rule,
        "C": 4096,
    }
    return Launch(_glu_row_scales_kernel, (gate_up.shape[0],), args, constants, num_warps=8)


@takes(GluQuantize.prepared)
def glu_quantize(call: GluQuantize, out: Packed | Quantized) -> None:
    sm = target_of(call.gate_up.device).sm
    if call.global_scale is None and columns_of_result(call) > LONGEST_ROW:
        assert isinstance(out, Quantized)  # a call without a global scale asks for the rows' own
        run(plan_row_scales(call, out.row_scale))
        call = call._replace(global_scale=out.row_scale)
        run(plan(call, Packed(out.data, out.scales), sm, scale_per_row=True))
    else:
        run(plan(call, out, sm))
