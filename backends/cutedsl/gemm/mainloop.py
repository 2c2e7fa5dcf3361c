"""The two warps that feed the tensor cores: one loads by TMA, one issues the MMAs.

They pass stages of K = 256 through shared memory: `full` when all bytes of a stage are there,
`empty` when the MMAs that read it, of every CTA that it was loaded for, are done. Accumulators go
to the epilogue by `acc_full` and come back by `acc_empty`.

Of a pair of CTAs the even one leads: it issues the MMAs of both, and its `full` counts the bytes of
both.

Legend: place: where the tile is (groups.Place); stage, phase: a place in the ring and the parity of
its barriers' next phase; turn: tiles this cluster has begun.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, const_expr

from nvfp4.backends.cutedsl.gemm import ptx
from nvfp4.backends.cutedsl.gemm.config import CTA_ROWS, GLU_COLUMNS
from nvfp4.backends.cutedsl.gemm.layouts import (
    K_BLOCKS,
    MMA_K,
    OPERAND_DESCRIPTOR,
    ROW_BYTES,
    SCALE_DESCRIPTOR,
    SCALE_ROWS,
    SCALE_TILE,
    SCALE_WORDS,
    Layout,
    instruction_descriptor,
)
from nvfp4.backends.cutedsl.gemm.schedule import next_tile, place_of, remains, start

STAGE_WORDS = K_BLOCKS * SCALE_WORDS
HALF_SCALES = K_BLOCKS * SCALE_TILE

LEADER = 0xFEFFFFFF
"""Clears the peer bit of a shared::cluster address: the same place in the pair's even CTA."""

SHARED_OFFSET = 0x3FFFF
"""A shared address within its CTA: what descriptors hold."""


@cute.jit
def advance(layout: cutlass.Constexpr[Layout], stage: Int32, phase: Int32):
    stage = stage + 1
    if stage == layout.stages:
        stage = Int32(0)
        phase = phase ^ 1
    return stage, phase


@cute.jit
def k_range(layout: cutlass.Constexpr[Layout], k_stages: Int32, rank: Int32):
    """The stages of K that this CTA sums: all, or with split-K an even part of them."""
    if const_expr(layout.tile.split_k == 1):
        return Int32(0), k_stages
    split = layout.tile.split_k
    return rank * k_stages // split, (rank + 1) * k_stages // split


@cute.jit
def load(layout: cutlass.Constexpr[Layout], maps, smem: Int32, rank: Int32, k_stages: Int32, grid):
    """The TMA warp: keep the ring of stages full, tile after tile."""
    config = layout.tile
    ctas = config.ctas
    a_map, b_map, a_scale_map, b_scale_map = (ptx.tensor_map(atom) for atom in maps)

    # Where this CTA is in its cluster, and which part of the shared operands it loads for others.
    x, y = layout.place_in_cluster(rank)
    a_part = CTA_ROWS // layout.a_sharers
    b_part = layout.b_rows // layout.b_sharers
    a_k_blocks = K_BLOCKS // layout.a_sharers
    b_k_blocks = K_BLOCKS // layout.b_scale_sharers
    column_mask, row_mask, pair_mask = masks(layout, x, y)
    b_row = (x % ctas) * layout.b_rows + (x // ctas) * b_part

    a_at = smem + y * a_part * ROW_BYTES
    b_at = smem + layout.b + (x // ctas) * b_part * ROW_BYTES
    a_scales_at = smem + layout.a_scales + y * a_k_blocks * SCALE_TILE
    b_scales_at = smem + layout.b_scales + x * (b_k_blocks * layout.b_scale_tiles * SCALE_TILE)
    b_k_word = x * b_k_blocks * SCALE_WORDS
    half_rows, half_scales, b_scale_part = 0, 0, 0
    if const_expr(layout.glu):
        # Gate's rows and scales, and up's: by one CTA, or the one half by each of a pair.
        half_rows, half_scales = grid.weight_rows // 2, grid.weight_scale_tiles // 2
        b_row, b_scale_part = x * half_rows, x * half_scales
        b_scales_at = smem + layout.b_scales + x * HALF_SCALES
        b_k_word = 0

    leads = True if const_expr(ctas == 1) else x % 2 == 0
    k_begin, k_end = k_range(layout, k_stages, rank)
    part = (x * CTA_ROWS, y * config.columns)
    tile, walk = start(layout, grid, part)

    if const_expr(not layout.grouped):
        # Weights do not wait for the kernel before this one; which expert's, it says.
        weights, weight_scales = (
            (a_map, a_scale_map) if const_expr(config.swapped) else (b_map, b_scale_map)
        )
        weight_row = tile[1] + b_row
        if const_expr(config.swapped):
            weight_row = tile[0]
        for k in cutlass.range(k_begin, cutlass.min(k_end, k_begin + layout.stages), unroll=1):
            ptx.tma_prefetch(weights, [k * ROW_BYTES, weight_row])
            ptx.tma_prefetch(weight_scales, [k * STAGE_WORDS, weight_row // SCALE_ROWS])
    cute.arch.griddepcontrol_wait()

    stage, phase = Int32(0), Int32(1)
    while remains(layout, tile, walk):
        place = place_of(layout, tile, walk)
        for k in cutlass.range(k_begin, k_end, unroll=1):
            at = stage * layout.stage_pitch
            empty = smem + layout.empty + stage * 8
            full = smem + layout.full + stage * 8
            ptx.mbarrier_wait(empty, phase)
            if leads:
                ptx.mbarrier_expect_tx(full, layout.stage_bytes * ctas)
            if const_expr(ctas == 2):
                full = full & LEADER
            ptx.tma_load(
                a_at + at, a_map, [k * ROW_BYTES, place.a_row + y * a_part], full, ctas, column_mask
            )
            for half in cutlass.range_constexpr(layout.b_boxes):
                ptx.tma_load(
                    b_at + at + half * GLU_COLUMNS * ROW_BYTES,
                    b_map,
                    [k * ROW_BYTES, place.b_row + b_row + half * half_rows],
                    full,
                    ctas,
                    row_mask,
                )
            ptx.tma_load(
                a_scales_at + at,
                a_scale_map,
                [k * STAGE_WORDS + y * a_k_blocks * SCALE_WORDS, place.a_scale_tile],
                full,
                ctas,
                column_mask,
            )
            for half in cutlass.range_constexpr(layout.b_boxes):
                ptx.tma_load(
                    b_scales_at + at + half * HALF_SCALES,
                    b_scale_map,
                    [
                        k * STAGE_WORDS + b_k_word,
                        place.b_scale_tile + b_scale_part + half * half_scales,
                    ],
                    full,
                    ctas,
                    pair_mask,
                )
            stage, phase = advance(layout, stage, phase)
        tile = next_tile(layout, tile, walk)
    cute.arch.griddepcontrol_launch_dependents()
    # The last stages are given back by commits that may come from another CTA. Each has to arrive
    # before this CTA leaves its shared memory to the next.
    for _ in cutlass.range_constexpr(layout.stages):
        ptx.mbarrier_wait(smem + layout.empty + stage * 8, phase)
        stage, phase = advance(layout, stage, phase)


@cute.jit
def masks(layout: cutlass.Constexpr[Layout], x: Int32, y: Int32):
    """The CTAs (bits by rank = x + y * cluster_rows) that share A's rows, B's rows, B's scales with
    CTA (x, y); None where it loads for itself alone.
    """
    rows, columns, ctas = layout.tile.cluster_rows, layout.tile.cluster_columns, layout.tile.ctas
    same_row = sum(1 << (rows * i) for i in range(columns)) << x
    same_column = sum(1 << (ctas * i) for i in range(rows // ctas)) << (x % ctas + y * rows)
    all_of_column = ((1 << rows) - 1) << (y * rows)
    return (
        same_row if const_expr(layout.a_sharers > 1) else None,
        same_column if const_expr(layout.b_sharers > 1) else None,
        all_of_column if const_expr(rows > 1) else None,
    )


@cute.jit
def multiply(
    layout: cutlass.Constexpr[Layout],
    smem: Int32,
    tmem: Int32,
    rank: Int32,
    k_stages: Int32,
    grid,
):
    """The MMA warp (of the leading CTA): for each stage, scales to tensor memory, then the MMAs."""
    config = layout.tile
    ctas = config.ctas
    x, y = layout.place_in_cluster(rank)
    release, pair = commit_masks(layout, x, y)
    instruction = instruction_descriptor(config)
    k_begin, k_end = k_range(layout, k_stages, rank)
    tile, walk = start(layout, grid, (0, y * config.columns))
    base = (smem & SHARED_OFFSET) >> 4
    stage, phase, turn = Int32(0), Int32(0), Int32(0)
    while remains(layout, tile, walk):
        second = turn & 1
        acc = tmem + second * layout.second_acc
        b_scales = tmem + layout.b_scale_tmem
        if const_expr(layout.starts_within_scale_tile):
            b_scales = b_scales + place_of(layout, tile, walk).b_group
        block = smem + layout.acc_block
        if const_expr(layout.overlap > 0):
            ptx.mbarrier_wait(block + layout.acc_empty, second ^ 1)
        else:
            block = block + second * layout.acc_pitch
            ptx.mbarrier_wait(block + layout.acc_empty, turn >> 1 & 1 ^ 1)
        ptx.tmem_fence_after()
        # Waiting at the end of the loop, rather than where it begins, leaves ptxas one block from
        # the stage's addresses to the instructions that use them.
        ptx.mbarrier_wait(smem + layout.full + stage * 8, phase)
        left, accumulate = k_end - k_begin, Int32(0)
        while left > 0:
            ptx.tmem_fence_after()
            at = base + stage * (layout.stage_pitch >> 4)
            for offset, column in layout.scale_copies:
                ptx.copy_scales(tmem + column, at + (offset >> 4), SCALE_DESCRIPTOR, ctas)
            for k_block in cutlass.range_constexpr(K_BLOCKS):
                offset = k_block * MMA_K // 2 >> 4
                ptx.mma(
                    acc,
                    at + offset,
                    at + (layout.b >> 4) + offset,
                    OPERAND_DESCRIPTOR,
                    instruction,
                    tmem + layout.a_scale_tmem + 4 * k_block,
                    b_scales + layout.b_scale_columns * k_block,
                    Int32(1) if const_expr(k_block > 0) else accumulate,
                    ctas,
                )
            ptx.commit(smem + layout.empty + stage * 8, ctas, release)
            stage, phase = advance(layout, stage, phase)
            left, accumulate = left - 1, Int32(1)
            if left > 0:
                ptx.mbarrier_wait(smem + layout.full + stage * 8, phase)
        ptx.commit(
            smem + layout.acc_block + layout.acc_full + second * layout.acc_pitch, ctas, pair
        )
        turn = turn + 1
        tile = next_tile(layout, tile, walk)


@cute.jit
def commit_masks(layout: cutlass.Constexpr[Layout], x: Int32, y: Int32):
    """The CTAs whose loads filled this MMA's stage, and those whose accumulator it wrote."""
    rows, columns, ctas = layout.tile.cluster_rows, layout.tile.cluster_columns, layout.tile.ctas
    if const_expr(rows * columns == 1):
        return None, None
    row_mates = sum(((1 << ctas) - 1) << (rows * i) for i in range(columns)) << x
    column_mates = ((1 << rows) - 1) << (y * rows)
    pair = ((1 << ctas) - 1) << (x + y * rows) if const_expr(ctas == 2) else None
    return row_mates | column_mates, pair
