"""Tokens quantized into the rows of their experts.

A token is read and quantized once and written to each of its rows. The grid's last programs clear
the scales' padding, one program for each scale tile that the experts' rows take.
"""

import triton
import triton.language as tl

from nvfp4.backends.target import target_of
from nvfp4.backends.triton import route
from nvfp4.backends.triton.device.groups import (
    experts_vector,
    max_tiles,
    scale_rows,
    tile_of_expert,
)
from nvfp4.backends.triton.device.tile_config import LONGEST_ROW, Tile, choose_row_tile, choose_tile
from nvfp4.backends.triton.device.tiles import (
    SCALE_ROW_GROUPS,
    SCALE_ROW_STEP,
    TILE_BLOCKS,
    TILE_ROWS,
    load_blocks,
    quantize_tile,
    row_global_scale,
    store_scales,
    store_words,
)
from nvfp4.backends.triton.quantize_dynamic import plan_row_scales
from nvfp4.backends.triton.route import local_expert
from nvfp4.backends.triton.runtime.launch import Launch, cdiv
from nvfp4.backends.triton.runtime.program import run
from nvfp4.calls import Dispatched, MoeDispatch, takes
from nvfp4.spec import swizzle
from nvfp4.spec.format import BLOCK, DATA_DTYPE

TILE_WORDS = tl.constexpr(swizzle.TILE_ROWS)
"""int32 words of a scale tile: one a row, rows SCALE_ROW_STEP apart side by side."""


@triton.jit(do_not_specialize=["M", "p_stride", "expert_offset", "token_programs"])
def _quantize_tokens_kernel(
    x, global_scale, ids, offsets, positions, data, scales, row_scale, M, E, K, x_stride,
    p_stride, top_k, expert_offset, scale_columns, token_programs,
    DYNAMIC: tl.constexpr, SCALE_RULE: tl.constexpr, EXPERTS: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr, SM: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.program_id(1) * C
    if program >= token_programs:
        if column == 0:
            _clear_padding(scales, offsets, program - token_programs, E, scale_columns, EXPERTS)
    else:
        tokens = program * R + tl.arange(0, R)
        values = load_blocks(x, tokens, tokens < M, column, K, x_stride, R, C)
        if DYNAMIC:
            p = row_global_scale(values, SCALE_RULE)
        else:
            p = tl.load(global_scale + tokens * p_stride, mask=tokens < M, other=1.0)
        words, sf = quantize_tile(values, p, SCALE_RULE, SM)
        for j in range(top_k):
            choice = tokens * top_k + j
            rows = tl.load(positions + choice, mask=tokens < M, other=-1)
            row_mask = rows >= 0
            expert = local_expert(ids, choice, row_mask, expert_offset, E)
            begin = tl.load(offsets + expert)
            if column == 0:
                tl.store(row_scale + rows, p, mask=row_mask)
            store_words(words, data, rows, row_mask, column, K, C)
            scale_row = scale_rows(rows, begin, expert)
            store_scales(sf, scales, scale_row, row_mask, column, scale_columns, True, C)


@triton.jit
def _clear_padding(scales, offsets, index, E, scale_columns, EXPERTS: tl.constexpr):
    """Zero the scales after the last row of the index-th scale tile that the experts' rows take."""
    expert, begin, row, end = tile_of_expert(offsets, index, E, TILE_ROWS, EXPERTS)
    word = tl.arange(0, TILE_WORDS)
    beyond = row + (word % SCALE_ROW_GROUPS) * SCALE_ROW_STEP + word // SCALE_ROW_GROUPS >= end
    if (row < end) & (row + TILE_ROWS > end):
        across = scale_columns // TILE_BLOCKS
        tile = scale_rows(row, begin, expert) // TILE_ROWS
        at = scales.to(tl.pointer_type(tl.int32), bitcast=True)
        at += tile.to(tl.int64) * across * TILE_WORDS + word
        for k in range(across):
            tl.store(at + k * TILE_WORDS, tl.zeros_like(word), mask=beyond)


def plan(call: MoeDispatch, out: Dispatched, sm: int, tile: Tile | None = None) -> Launch:
    """The launch that quantizes a prepared call's tokens, once out.offsets and out.positions are
    written (route.py), on architecture sm_<sm>; tile: default the one chosen.

    With x_global_scale None, each token finds its own: H is at most LONGEST_ROW.
    """
    x, p, scales = call.x, call.x_global_scale, out.scales.view(DATA_DTYPE)
    (m, k), experts = x.shape, out.offsets.numel() - 1
    if tile is None:
        tile = choose_row_tile(m, k) if p is None else choose_tile(k, 2048, 1024, num_warps=2)
    token_programs = cdiv(m, tile.rows)
    padded = max_tiles(out.data.shape[0], experts, swizzle.TILE_ROWS)
    return Launch(
        _quantize_tokens_kernel,
        (token_programs + padded, cdiv(scales.shape[1] * BLOCK, tile.columns)),
        (
            x, p, call.topk_ids, out.offsets, out.positions, out.data, scales, out.row_scale, m,
            experts, k, x.stride(0), int(p is not None and p.numel() > 1), call.topk_ids.shape[1],
            call.expert_offset, scales.shape[1], token_programs,
        ),
        {
            "DYNAMIC": p is None,
            "SCALE_RULE": call.scale_rule,
            "EXPERTS": experts_vector(experts),
            "R": tile.rows,
            "C": tile.columns,
            "SM": sm,
        },
        num_warps=tile.num_warps,
    )  # fmt: skip


@takes(MoeDispatch.prepared)
def moe_dispatch(call: MoeDispatch, out: Dispatched) -> None:
    x = call.x
    run(*route.plan(call.topk_ids, call.expert_offset, out.offsets, out.positions))
    if call.x_global_scale is None and x.shape[1] > LONGEST_ROW:
        row_scale = x.new_empty(x.shape[0], dtype=out.row_scale.dtype)
        run(plan_row_scales(x, row_scale, call.scale_rule))
        call = call._replace(x_global_scale=row_scale)
    run(plan(call, out, target_of(x.device).sm))
