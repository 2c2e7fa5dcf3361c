"""The four warps that empty the accumulators: out = acc * factor (+ bias).

Warp w reads lanes 32 w .. 32 w + 31 of tensor memory, that is rows of D, a subtile of columns at a
time, and sends them out by TMA (store_tma.py) or element by element (store_elements.py).

Legend: row, column: the warp's first in D; r: the thread's row in the CTA's tile, in the layout of
store_elements.py; turn: tiles begun.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32, Int64, const_expr

from nvfp4.backends.cutedsl.gemm import factors as factor
from nvfp4.backends.cutedsl.gemm import ptx, store_elements, store_quantized, store_tma
from nvfp4.backends.cutedsl.gemm.config import CTA_ROWS
from nvfp4.backends.cutedsl.gemm.factors import Factors
from nvfp4.backends.cutedsl.gemm.groups import Place
from nvfp4.backends.cutedsl.gemm.layouts import STORE_BYTES, WARP_ROWS, Layout
from nvfp4.backends.cutedsl.gemm.schedule import next_tile, place_of, remains, start
from nvfp4.backends.cutedsl.gemm.store_quantized import Quantized


@cute.jit
def drain(
    layout: cutlass.Constexpr[Layout], atom, out: cute.Pointer, out_stride: Int64,
    all_factors: Factors, quantized: Quantized | None, smem: Int32, tmem: Int32, warp: Int32,
    rank: Int32, grid,
):  # fmt: skip
    """For each tile, every subtile from tensor memory to the output."""
    config, epilogue = layout.tile, layout.epilogue
    lane = cute.arch.lane_idx()
    x, y = layout.place_in_cluster(rank)
    r = warp * WARP_ROWS + lane
    slot, lane_vectors = r, Int32(0)
    # The thread's rows, from its warp's first on.
    own_rows = [lane]
    if const_expr(epilogue.tma_store):
        slot, lane_vectors = store_tma.slot_of(r), lane % 4 * 16
        own_rows = [lane // 4 + i for i in store_tma.ROWS]
        buffer = smem + layout.outputs + warp * (WARP_ROWS * STORE_BYTES)
        places = store_tma.places_of(layout, buffer, lane)
    # What alternates between the two accumulators: tensor memory, and their blocks.
    acc = tmem + (warp * WARP_ROWS << 16)
    accs = acc + acc + layout.second_acc
    block = smem + layout.acc_block
    blocks = block + block + layout.acc_pitch
    second, parity, turn = Int32(0), Int32(0), Int32(0)
    own = (x * CTA_ROWS + warp * WARP_ROWS, y * config.columns)
    tile, walk = start(layout, grid, own)
    cute.arch.griddepcontrol_wait()
    row_bias = Float32(0.0)
    row_factors = [Float32(1.0) for _ in own_rows]
    if const_expr(layout.same_factor and not layout.grouped):
        row_factors = [factor.element(all_factors.alpha, 0)] * len(own_rows)

    while remains(layout, tile, walk):
        place = place_of(layout, tile, walk)
        row, column, rows, columns = place.row, place.column, place.row_end, place.column_end
        factors = all_factors
        if const_expr(layout.grouped):
            factors = factor.of_expert(all_factors, place.expert)
            if const_expr(layout.same_factor and not layout.glu):
                row_factors = [factor.element(factors.alpha, 0)] * len(own_rows)
        if const_expr(layout.vectors > 0):
            factor.stage(layout, factors, block, slot, r, column, columns)
        if const_expr(layout.glu):
            own_row = cutlass.min(row + lane, rows - 1)
            glu_factors = store_quantized.factors_of(
                factors, own_row, column, walk, epilogue.row_scale
            )
            p = store_quantized.scale_of(quantized, place, row + lane)
        elif const_expr(not layout.same_factor):
            row_factors = [
                factor.of_row(layout, factors, cutlass.min(row + i, rows - 1)) for i in own_rows
            ]
        if const_expr(epilogue.bias and config.swapped):
            row_bias = factor.element(factors.bias, cutlass.min(row + lane, rows - 1))

        ptx.mbarrier_wait(block + layout.acc_full, parity)
        ptx.tmem_fence_after()
        if const_expr(config.split_k > 1):
            ptx.mbarrier_wait_cluster(smem + layout.partial_empty, turn & 1 ^ 1)
        if const_expr(layout.glu):
            in_tile = row - warp * WARP_ROWS < rows  # of the CTA's scale tile the expert has rows
            drain_glu(
                layout, smem, acc, block, second, rank, glu_factors, quantized, p, place, r,
                row + lane, in_tile,
            )  # fmt: skip
        for s in cutlass.range_constexpr(0 if layout.glu else layout.subtiles):
            offset = Int32(s * layout.subtile)
            if const_expr(layout.overlap > 0):
                # The columns that the next tile's accumulator overlaps are emptied first.
                last = config.columns - layout.subtile
                offset = offset + (1 - second) * (last - 2 * s * layout.subtile)
            vectors = block + 4 * offset + lane_vectors
            buffers, pending = layout.output_buffer(s)
            if const_expr(epilogue.tma_store):
                cute.arch.cp_async_bulk_wait_group(pending, read=True)
                cute.arch.sync_warp()
                store_tma.move(layout, acc + offset, vectors, row_factors, places, buffers)
            else:
                sums = ptx.tmem_load(acc + offset, layout.subtile)
                ptx.tmem_wait()
            if const_expr(s == layout.release_after):
                release(layout, smem, block, rank)
            if const_expr(epilogue.tma_store):
                cute.arch.fence_proxy("async.shared", space="cta")
                cute.arch.sync_warp()
                corner = [column + offset, row]
                if const_expr(not layout.grouped) or row + WARP_ROWS <= rows:
                    ptx.tma_store(ptx.tensor_map(atom), corner, buffer + buffers)
                elif row < rows:  # the rest of the box is the next expert's
                    store_tma.store_rows(
                        layout, buffer + buffers, out, out_stride, corner, rows, columns, lane
                    )
                cute.arch.cp_async_bulk_commit_group()
            elif const_expr(config.split_k > 1):
                store_elements.keep_partials(layout, sums, smem, r, s * layout.subtile)
            else:
                store_elements.store(
                    layout, sums, vectors, row_factors[0], row_bias, factors, out, out_stride,
                    row + lane, column + offset, rows, columns,
                )  # fmt: skip
        if const_expr(config.split_k > 1):
            part = rank * (config.columns // config.split_k)
            sums = store_elements.add_partials(layout, smem, r, rank, turn)
            store_elements.store(
                layout, sums, block + 4 * part, row_factors[0], row_bias, factors, out, out_stride,
                row + lane, column + part, rows, columns,
            )  # fmt: skip
        tile = next_tile(layout, tile, walk)
        acc, block, turn = accs - acc, blocks - block, turn + 1
        parity, second = parity ^ second, second ^ 1
    if const_expr(epilogue.tma_store):
        cute.arch.cp_async_bulk_wait_group(0, read=True)


@cute.jit
def drain_glu(
    layout: cutlass.Constexpr[Layout], smem: Int32, acc: Int32, block: Int32, second: Int32,
    rank: Int32, factors, quantized: Quantized, p: Float32, place: Place, r: Int32, row: Int32,
    in_tile: Boolean,
):  # fmt: skip
    """A tile of a gated linear unit: gate and up of the thread's row, `subtile` results at a time.
    The loop is not unrolled: its body is more than a thousand instructions.
    """
    last = layout.drained - layout.subtile
    for s in cutlass.range(layout.subtiles, unroll=1):
        # The columns that the next tile's accumulator overlaps are emptied first.
        offset = s * layout.subtile
        offset = offset + (1 - second) * (last - 2 * offset)
        gates = ptx.tmem_load(acc + offset, layout.subtile)
        ups = ptx.tmem_load(acc + offset + layout.drained, layout.subtile)
        ptx.tmem_wait()
        if s == layout.release_after:
            release(layout, smem, block, rank)
        column = place.column + offset
        if row < place.row_end:
            store_quantized.store(layout, gates, ups, factors, quantized, p, place, row, r, column)
        elif in_tile:
            store_quantized.store_padding(quantized, place, r, column)


@cute.jit
def release(layout: cutlass.Constexpr[Layout], smem: Int32, block: Int32, rank: Int32):
    """Give the accumulator back to the MMA warp, the pair's leader's."""
    barrier = block + layout.acc_empty
    if const_expr(layout.overlap > 0):
        barrier = smem + (layout.acc_block + layout.acc_empty)
    ptx.tmem_fence_before()
    if const_expr(layout.tile.ctas == 1):
        ptx.mbarrier_arrive(barrier)
    else:
        ptx.mbarrier_arrive_cluster(ptx.map_to_cta(barrier, rank & ~1))
