"""The four warps that empty the accumulators: out = acc * factor (+ bias).

Warp w reads lanes 32 w .. 32 w + 31 of tensor memory, that is rows of D, a subtile of columns at a
time. How a tile is stored is one of three files: by TMA (store_tma.py), element by element, with
split-K's reduction (store_elements.py), or quantized after a gated linear unit
(store_quantized.py).

Legend: r: the thread's row in the CTA's tile.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, const_expr

from nvfp4.backends.cutedsl.gemm import factors as factor
from nvfp4.backends.cutedsl.gemm import store_elements, store_quantized, store_tma
from nvfp4.backends.cutedsl.gemm.accumulators import Accumulator
from nvfp4.backends.cutedsl.gemm.config import CTA_ROWS
from nvfp4.backends.cutedsl.gemm.factors import Factors
from nvfp4.backends.cutedsl.gemm.layouts import Layout
from nvfp4.backends.cutedsl.gemm.output import EpilogueWarp, Output
from nvfp4.backends.cutedsl.gemm.schedule import next_tile, remains, start, tile_coord
from nvfp4.backends.cutedsl.gemm.sizes import WARP_ROWS, WARPS_OF_ROWS
from nvfp4.backends.cutedsl.gemm.store_quantized import Quantized


@cute.jit
def drain(
    layout: cutlass.Constexpr[Layout], output: Output, all_factors: Factors,
    quantized: Quantized | None, smem: Int32, tmem: Int32, warp: Int32, rank: Int32, grid,
):  # fmt: skip
    """Move every tile of the cluster from its accumulator to the output."""
    config, epilogue = layout.tile, layout.epilogue
    lane = cute.arch.lane_idx()
    x, y = layout.place_in_cluster(rank)
    part = 0
    if const_expr(layout.column_parts > 1):
        warp, part = warp % WARPS_OF_ROWS, warp // WARPS_OF_ROWS
    r = warp * WARP_ROWS + lane
    own = EpilogueWarp(smem, rank, warp, lane, r, part)
    vector_slot, staging = r, None
    if const_expr(epilogue.tma_store):
        vector_slot, staging = store_tma.slot_of(r), store_tma.staging_of(layout, own)
    # What alternates between the two accumulators: tensor memory, and their blocks.
    acc = tmem + (warp * WARP_ROWS << 16)
    accs = acc + acc + layout.tmem.second_acc
    block = smem + layout.acc_block
    blocks = block + block + layout.acc_pitch
    second, parity = Int32(0), Int32(0)
    tile, schedule = start(layout, grid, (x * CTA_ROWS + warp * WARP_ROWS, y * config.columns))
    cute.arch.griddepcontrol_wait()
    same = Float32(1.0)
    if const_expr(layout.same_factor and not layout.grouped):
        same = factor.element(all_factors.alpha, 0)

    while remains(layout, tile, schedule):
        coord = tile_coord(layout, tile, schedule)
        accumulator = Accumulator(acc, block, second, parity)
        factors = all_factors
        if const_expr(layout.grouped):
            factors = factor.of_expert(all_factors, coord.expert)
            if const_expr(layout.same_factor and not layout.glu):
                same = factor.element(factors.alpha, 0)
        if const_expr(layout.vectors > 0):
            factor.prefetch(layout, factors, block, vector_slot, r, coord)
        if const_expr(layout.glu):
            store_quantized.drain(layout, own, accumulator, quantized, factors, coord, schedule)
        elif const_expr(epilogue.tma_store):
            store_tma.drain(layout, own, accumulator, output, staging, factors, same, coord)
        elif const_expr(config.split_k > 1):
            store_elements.drain_split_k(layout, own, accumulator, output, factors, same, coord)
        else:
            store_elements.drain(layout, own, accumulator, output, factors, same, coord)
        tile = next_tile(layout, tile, schedule)
        acc, block = accs - acc, blocks - block
        parity, second = parity ^ second, second ^ 1
    if const_expr(epilogue.tma_store):
        cute.arch.cp_async_bulk_wait_group(0, read=True)
