"""A gated linear unit's activation and product, and the quantization of its result, in one pass.

With experts, the programs go by the scale tiles that the experts' rows take, padding included, so
these tiles are written whole. The grouped buffer's other tiles are never written and never read.
"""

import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.contract import target_of
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
    row_global_scale,
    store_padding,
    store_scales,
    store_words,
)
from nvfp4.backends.triton.runtime.launch import Launch, cdiv
from nvfp4.backends.triton.runtime.program import run
from nvfp4.spec import swizzle
from nvfp4.spec.format import BLOCK, DATA_DTYPE, SWIZZLED


@triton.jit
def _values(
    gate_up, rows, row_mask, column, K, stride, limit, ACTIVATION: tl.constexpr,
    LIMITED: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Compute act(gate) * up, float32 [R, C/16, 16]; zeros where masked and beyond K."""
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
    ACTIVATION: tl.constexpr, LIMITED: tl.constexpr, SWIZZLED: tl.constexpr, P: tl.constexpr,
    KEEP_P: tl.constexpr, EXPERTS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    SM: tl.constexpr,
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
    values = _values(gate_up, rows, row_mask, column, K, stride, limit, ACTIVATION, LIMITED, R, C)
    if P == "own":
        p = row_global_scale(values)
    elif P == "row":
        p = tl.load(global_scale + rows, mask=row_mask, other=1.0)
    else:
        p = tl.load(global_scale + tl.zeros_like(rows) + (expert if P == "expert" else 0))
    if KEEP_P and column == 0:
        tl.store(row_scales + rows, p, mask=row_mask)
    words, sf = quantize_tile(values, p, R, C, SM)
    store_words(words, data, rows, row_mask, column, K, C)
    store_scales(sf, scales, scale_row, in_scales, column, scale_columns, SWIZZLED, C)


@triton.jit
def _glu_row_scales_kernel(
    gate_up, limit, row_scales, K, stride, ACTIVATION: tl.constexpr, LIMITED: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) + tl.arange(0, 1)
    amax = tl.zeros((1,), tl.float32)
    for start in range(0, K, C):
        values = _values(
            gate_up, rows, rows >= 0, start, K, stride, limit, ACTIVATION, LIMITED, 1, C
        )
        amax = tl.maximum(amax, largest_of_row(values))
    tl.store(row_scales + rows, global_scale_of(amax))


def plan(
    gate_up: Tensor,
    p: Tensor | None,
    offsets: Tensor | None,
    limit: float | None,
    activation: str,
    scale_layout: str,
    data: Tensor,
    scales: Tensor,
    row_scales: Tensor | None,
    sm: int,
    tile: Tile | None = None,
    p_of: str = "",
) -> Launch:
    """Plan gate_up [M, 2I] to data and scales uint8; sm: the architecture.

    p: float32 [1], [M], with offsets [E]; None: each row's own, for I up to LONGEST_ROW. p_of says
    what has a p: "one" for all, each "row" or each "expert"; by default its size tells.
    """
    (m, both), (scale_rows, scale_columns) = gate_up.shape, scales.shape
    k, experts = both // 2, 0 if offsets is None else offsets.numel() - 1
    if tile is None and p is None:
        tile = choose_row_tile(m, k)
    elif tile is None:
        elements = 512 if m <= RESIDENT_ROWS else 1024
        tile = choose_tile(k, elements, widest=elements, num_warps=2)
    rows = scale_rows
    if experts:
        rows = swizzle.TILE_ROWS * max_tiles(m, experts, swizzle.TILE_ROWS)
    return Launch(
        _glu_quantize_kernel,
        (cdiv(rows, tile.rows), cdiv(scale_columns * BLOCK, tile.columns)),
        (
            gate_up, p, offsets, limit or 0.0, data, scales, row_scales, m, experts, k,
            gate_up.stride(0), scale_rows, scale_columns,
        ),
        {
            "ACTIVATION": activation,
            "LIMITED": limit is not None,
            "SWIZZLED": scale_layout == SWIZZLED,
            "P": p_of or _owner_of(p, experts),
            "KEEP_P": row_scales is not None,
            "EXPERTS": experts_vector(experts) if experts else 0,
            "R": tile.rows,
            "C": tile.columns,
            "SM": sm,
        },
        num_warps=tile.num_warps,
    )  # fmt: skip


def _owner_of(p: Tensor | None, experts: int) -> str:
    if p is None:
        return "own"
    if p.numel() == 1:
        return "one"
    return "expert" if experts else "row"


def plan_row_scales(
    gate_up: Tensor, limit: float | None, activation: str, row_scales: Tensor
) -> Launch:
    """Plan finding the rows' global scales [M] alone, for rows longer than LONGEST_ROW."""
    args = (gate_up, limit or 0.0, row_scales, gate_up.shape[1] // 2, gate_up.stride(0))
    constants = {"ACTIVATION": activation, "LIMITED": limit is not None, "C": 4096}
    return Launch(_glu_row_scales_kernel, (gate_up.shape[0],), args, constants, num_warps=8)


def glu_quantize(
    gate_up: Tensor,
    p: Tensor | None,
    offsets: Tensor | None,
    limit: float | None,
    activation: str,
    scale_layout: str,
    data: Tensor,
    scales: Tensor,
    row_scales: Tensor | None,
) -> None:
    p_of = ""
    if p is None and gate_up.shape[1] // 2 > LONGEST_ROW:
        assert row_scales is not None
        run(plan_row_scales(gate_up, limit, activation, row_scales))
        p, row_scales, p_of = row_scales, None, "row"
    args = (gate_up, p, offsets, limit, activation, scale_layout, data, scales.view(DATA_DTYPE))
    run(plan(*args, row_scales, target_of(gate_up.device).sm, p_of=p_of))
