"""The warp that loads by TMA: it keeps the ring of stages in shared memory full.

Legend: x, y: the CTA's row and column in its cluster; place: where the tile is (groups.Place);
stage, phase: a stage of the ring, and the parity of its `empty` barrier's next phase.
"""

from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Int32, const_expr

from nvfp4.backends.cutedsl.gemm import ptx
from nvfp4.backends.cutedsl.gemm.config import CTA_ROWS, GLU_COLUMNS
from nvfp4.backends.cutedsl.gemm.layouts import Layout
from nvfp4.backends.cutedsl.gemm.schedule import next_tile, remains, start, tile_coord
from nvfp4.backends.cutedsl.gemm.sizes import (
    K_BLOCKS,
    ROW_BYTES,
    SCALE_ROWS,
    SCALE_TILE,
    SCALE_WORDS,
)
from nvfp4.backends.cutedsl.gemm.stages import advance, k_range

STAGE_WORDS = K_BLOCKS * SCALE_WORDS
HALF_SCALES = K_BLOCKS * SCALE_TILE

LEADER = 0xFEFFFFFF
"""Clears the peer bit of a shared::cluster address: the same place in the pair's even CTA."""


class Target(NamedTuple):
    """Where a CTA's loads of an operand, or of its scales, go.

    to: shared address in stage 0; mask: the CTAs that it loads for, None if for itself alone.
    """

    to: Int32
    mask: Any


class Targets(NamedTuple):
    """What a CTA loads in each stage of A, B and their scales.

    y: its column in the cluster, which is its part of A; b_row, b_scale_tile: its first row and
    scale tile of B from the tile's on; b_word: its first word of B's scales along K; half_rows,
    half_scales: rows and scale tiles from gate to up.
    """

    a: Target
    b: Target
    a_scales: Target
    b_scales: Target
    y: Int32 | int
    b_row: Int32 | int
    b_scale_tile: Int32 | int
    b_word: Int32 | int
    half_rows: Int32 | int
    half_scales: Int32 | int


@cute.jit
def load(layout: cutlass.Constexpr[Layout], maps, smem: Int32, rank: Int32, k_stages: Int32, grid):
    """The TMA warp: keep the ring of stages full, tile after tile."""
    operands = tuple(ptx.tensor_map(atom) for atom in maps)
    x, y = layout.place_in_cluster(rank)
    targets = targets_of(layout, smem, x, y, grid)
    leads = True if const_expr(layout.tile.ctas == 1) else x % 2 == 0
    k_begin, k_end = k_range(layout, k_stages, rank)
    tile, schedule = start(layout, grid, (x * CTA_ROWS, y * layout.tile.columns))
    stage, phase, k_next = Int32(0), Int32(1), k_begin
    if const_expr(layout.constant_weights):
        first, swapped = tile_coord(layout, tile, schedule), layout.tile.swapped
        k_next = cutlass.min(k_end, k_begin + layout.stages)
        # A cluster that is launched has a tile, and all stages of the ring are empty.
        for k in cutlass.range(k_begin, k_next, unroll=1):
            full = announce(layout, smem, k - k_begin, leads)
            load_boxes(
                layout, operands, targets, first, k, k - k_begin, full, swapped, not swapped
            )  # fmt: skip
        cute.arch.griddepcontrol_wait()
        for k in cutlass.range(k_begin, k_next, unroll=1):
            full = full_barrier(layout, smem, stage)
            load_boxes(layout, operands, targets, first, k, stage, full, not swapped, swapped)
            stage, phase = advance(layout, stage, phase)
    else:
        if const_expr(not layout.grouped):
            first = tile_coord(layout, tile, schedule)
            prefetch_weights(layout, operands, targets, first, k_begin, k_end)
        cute.arch.griddepcontrol_wait()

    while remains(layout, tile, schedule):
        coord = tile_coord(layout, tile, schedule)
        for k in cutlass.range(k_next, k_end, unroll=1):
            load_stage(layout, operands, targets, coord, smem, k, stage, phase, leads)
            stage, phase = advance(layout, stage, phase)
        k_next = k_begin
        tile = next_tile(layout, tile, schedule)
    cute.arch.griddepcontrol_launch_dependents()
    # The last stages are given back by commits that may come from another CTA. Each has to arrive
    # before this CTA leaves its shared memory to the next.
    for _ in cutlass.range_constexpr(layout.stages):
        ptx.mbarrier_wait(smem + layout.empty + stage * 8, phase)
        stage, phase = advance(layout, stage, phase)


@cute.jit
def targets_of(layout: cutlass.Constexpr[Layout], smem: Int32, x: Int32, y: Int32, grid) -> Targets:
    """What CTA (x, y) of the cluster loads: its part of the operands that it shares with others."""
    ctas = layout.tile.ctas
    a_part = CTA_ROWS // layout.a_sharers
    b_part = layout.b_rows // layout.b_sharers
    a_k_blocks = K_BLOCKS // layout.a_sharers
    b_k_blocks = K_BLOCKS // layout.b_scale_sharers
    column_mask, row_mask, pair_mask = masks(layout, x, y)
    b_row = (x % ctas) * layout.b_rows + (x // ctas) * b_part
    a_at = smem + y * a_part * ROW_BYTES
    b_at = smem + layout.b + (x // ctas) * b_part * ROW_BYTES
    a_scales_at = smem + layout.a_scales + y * a_k_blocks * SCALE_TILE
    b_scales_at = smem + layout.b_scales + x * (b_k_blocks * layout.tmem.b_scale_tiles * SCALE_TILE)
    b_word = x * b_k_blocks * SCALE_WORDS
    half_rows, half_scales, b_scale_tile = 0, 0, 0
    if const_expr(layout.glu):
        # Gate's rows and scales, and up's: by one CTA, or the one half by each of a pair.
        half_rows, half_scales = grid.weight_rows // 2, grid.weight_scale_tiles // 2
        b_row, b_scale_tile = x * half_rows, x * half_scales
        b_scales_at = smem + layout.b_scales + x * HALF_SCALES
        b_word = 0
    return Targets(
        Target(a_at, column_mask),
        Target(b_at, row_mask),
        Target(a_scales_at, column_mask),
        Target(b_scales_at, pair_mask),
        y,
        b_row,
        b_scale_tile,
        b_word,
        half_rows,
        half_scales,
    )


@cute.jit
def prefetch_weights(
    layout: cutlass.Constexpr[Layout], operands, targets: Targets, coord, k_begin: Int32,
    k_end: Int32,
):  # fmt: skip
    """Bring the first stages of weights to L2.

    It needs no wait for the kernel before this one (PDL): L2 has what that writes later. A grouped
    kernel cannot, since the kernel before says whose weights a tile needs.
    """
    a_map, b_map, a_scale_map, b_scale_map = operands
    weights, weight_scales, weight_row = b_map, b_scale_map, coord.b_row + targets.b_row
    if const_expr(layout.tile.swapped):
        weights, weight_scales, weight_row = a_map, a_scale_map, coord.a_row
    for k in cutlass.range(k_begin, cutlass.min(k_end, k_begin + layout.stages), unroll=1):
        ptx.tma_prefetch(weights, [k * ROW_BYTES, weight_row])
        ptx.tma_prefetch(weight_scales, [k * STAGE_WORDS, weight_row // SCALE_ROWS])


@cute.jit
def load_stage(
    layout: cutlass.Constexpr[Layout], operands, targets: Targets, coord, smem: Int32, k: Int32,
    stage: Int32, phase: Int32, leads,
):  # fmt: skip
    """Load this CTA's parts of K stage `k`, once the MMAs that read the ring's stage are done."""
    ptx.mbarrier_wait(smem + layout.empty + stage * 8, phase)
    full = announce(layout, smem, stage, leads)
    load_boxes(layout, operands, targets, coord, k, stage, full, True, True)


@cute.jit
def announce(layout: cutlass.Constexpr[Layout], smem: Int32, stage: Int32, leads) -> Int32:
    """Tell the stage's `full` barrier how many bytes will come; returns where they complete."""
    if leads:
        own = smem + layout.full + stage * 8
        ptx.mbarrier_expect_tx(own, layout.stage_bytes * layout.tile.ctas)
    return full_barrier(layout, smem, stage)


@cute.jit
def full_barrier(layout: cutlass.Constexpr[Layout], smem: Int32, stage: Int32) -> Int32:
    """The barrier at which a stage's bytes complete: of a pair of CTAs, the leader's."""
    full = smem + layout.full + stage * 8
    if const_expr(layout.tile.ctas == 2):
        full = full & LEADER
    return full


@cute.jit
def load_boxes(
    layout: cutlass.Constexpr[Layout], operands, targets: Targets, coord, k: Int32, stage: Int32,
    full: Int32, loads_a: cutlass.Constexpr[bool], loads_b: cutlass.Constexpr[bool],
):  # fmt: skip
    """Load this CTA's parts of A, of B, or of both, with their scales, to a stage of the ring."""
    ctas = layout.tile.ctas
    a_map, b_map, a_scale_map, b_scale_map = operands
    a, b, a_scales, b_scales = targets.a, targets.b, targets.a_scales, targets.b_scales
    at = stage * layout.stage_pitch
    a_part = CTA_ROWS // layout.a_sharers
    if const_expr(loads_a):
        to, box = a.to + at, [k * ROW_BYTES, coord.a_row + targets.y * a_part]
        ptx.tma_load(to, a_map, box, full, ctas, a.mask)
    if const_expr(loads_b):
        for half in cutlass.range_constexpr(layout.b_boxes):
            to = b.to + at + half * GLU_COLUMNS * ROW_BYTES
            box = [k * ROW_BYTES, coord.b_row + targets.b_row + half * targets.half_rows]
            ptx.tma_load(to, b_map, box, full, ctas, b.mask)
    if const_expr(loads_a):
        a_k_blocks = K_BLOCKS // layout.a_sharers
        to, word = a_scales.to + at, k * STAGE_WORDS + targets.y * a_k_blocks * SCALE_WORDS
        ptx.tma_load(to, a_scale_map, [word, coord.a_scale_tile], full, ctas, a_scales.mask)
    if const_expr(loads_b):
        for half in cutlass.range_constexpr(layout.b_boxes):
            to = b_scales.to + at + half * HALF_SCALES
            word = k * STAGE_WORDS + targets.b_word
            row = coord.b_scale_tile + targets.b_scale_tile + half * targets.half_scales
            ptx.tma_load(to, b_scale_map, [word, row], full, ctas, b_scales.mask)


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
