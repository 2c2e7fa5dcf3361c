"""The warp that issues the MMAs.

The TMA warp (load.py) passes it stages of K = 256 through shared memory: `full` when all bytes of a
stage are there, `empty` when the MMAs that read it, of every CTA that it was loaded for, are done.
Accumulators go to the epilogue by `acc_full` and come back by `acc_empty`.

Of a pair of CTAs the even one leads: it issues the MMAs of both, and its `full` counts the bytes of
both.

Legend: stage, phase: a stage of the ring, and the parity of its `full` barrier's next phase;
tiles_begun: tiles that this cluster has begun.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, const_expr

from nvfp4.backends.cutedsl.gemm import ptx
from nvfp4.backends.cutedsl.gemm.descriptors import (
    OPERAND_DESCRIPTOR,
    SCALE_DESCRIPTOR,
    instruction_descriptor,
)
from nvfp4.backends.cutedsl.gemm.layouts import Layout
from nvfp4.backends.cutedsl.gemm.schedule import next_tile, remains, start, tile_coord
from nvfp4.backends.cutedsl.gemm.sizes import K_BLOCKS, MMA_K
from nvfp4.backends.cutedsl.gemm.stages import advance, k_range

SHARED_OFFSET = 0x3FFFF
"""A shared address within its CTA: what descriptors hold."""


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
    tile, schedule = start(layout, grid, (0, y * config.columns))
    base = (smem & SHARED_OFFSET) >> 4
    stage, phase, tiles_begun = Int32(0), Int32(0), Int32(0)
    while remains(layout, tile, schedule):
        second = tiles_begun & 1
        acc = tmem + second * layout.tmem.second_acc
        b_scales = tmem + layout.tmem.b_scales
        if const_expr(layout.starts_within_scale_tile):
            b_scales = b_scales + tile_coord(layout, tile, schedule).b_group
        block = smem + layout.acc_block
        if const_expr(layout.tmem.overlap > 0):
            ptx.mbarrier_wait(block + layout.acc_empty, second ^ 1)
        else:
            block = block + second * layout.acc_pitch
            ptx.mbarrier_wait(block + layout.acc_empty, tiles_begun >> 1 & 1 ^ 1)
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
                    tmem + layout.tmem.a_scales + 4 * k_block,
                    b_scales + layout.tmem.b_scale_columns * k_block,
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
        tiles_begun = tiles_begun + 1
        tile = next_tile(layout, tile, schedule)


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
