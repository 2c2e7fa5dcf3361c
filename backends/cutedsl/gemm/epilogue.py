"""The four warps that empty the accumulators: out = acc * factor (+ bias).

Warp w reads tensor memory's lanes 32 w .. 32 w + 31: a thread has one row of D. It moves `subtile`
columns at a time, through shared memory and out by TMA, each warp its own 32 rows, or element by
element to global memory. What a tile's columns share (factors, bias) is staged in shared memory as
float32, once per tile.

Legend: row, column: the tile's first in D, `r` the thread's row in the tile; turn: tiles begun.
"""

import cutlass
import cutlass.cute as cute
import torch
from cutlass import Float32, Int32, Int64, const_expr

from nvfp4.backends.cutedsl.gemm import ptx
from nvfp4.backends.cutedsl.gemm.layouts import (
    EPILOGUE_WARPS,
    STORE_BYTES,
    WARP_ROWS,
    Layout,
)
from nvfp4.backends.cutedsl.gemm.schedule import first_tile, next_tile, remains, row_of, step_of

DTYPES = {
    torch.bfloat16: cutlass.BFloat16,
    torch.float16: cutlass.Float16,
    torch.float32: cutlass.Float32,
}
PACKED = {torch.bfloat16: "bf16", torch.float16: "f16"}
BARRIER = 1
"""The named barrier of the epilogue's warps."""


@cute.jit
def element(pointer: cute.Pointer, index, limit: Int32, at: Int32) -> Float32:
    """pointer[index] as float32; 0 where `at` is not below `limit`."""
    value = Float32(0.0)
    if at < limit:
        value = Float32((pointer + index).load())
    return value


@cute.jit
def factor_of_column(layout: cutlass.Constexpr[Layout], factors, column: Int32, columns: Int32):
    """What column `column` of D multiplies by: the same for all rows."""
    alpha, alpha_stride, segment, row_scale, row_scale_stride = factors
    epilogue = layout.epilogue
    value = Float32(1.0)
    if const_expr(not layout.tile.swapped):
        value = element(alpha, column // segment, columns, column)
    else:
        if const_expr(epilogue.alpha == "one"):
            value = element(alpha, Int64(column) * alpha_stride, columns, column)
        if const_expr(epilogue.row_scale):
            value = value * element(row_scale, column * row_scale_stride, columns, column)
    return value


@cute.jit
def factor_of_row(layout: cutlass.Constexpr[Layout], factors, row: Int32, rows: Int32):
    """What row `row` of D multiplies by: the same for all columns."""
    alpha, alpha_stride, segment, row_scale, row_scale_stride = factors
    epilogue = layout.epilogue
    value = Float32(1.0)
    if const_expr(layout.tile.swapped):
        if const_expr(epilogue.alpha == "segments"):
            value = element(alpha, row // segment, rows, row)
    else:
        if const_expr(epilogue.alpha == "one"):
            value = element(alpha, Int64(row) * alpha_stride, rows, row)
        if const_expr(epilogue.row_scale):
            value = value * element(row_scale, row * row_scale_stride, rows, row)
    return value


@cute.jit
def stage_vectors(
    layout: cutlass.Constexpr[Layout], at: Int32, r: Int32, column: Int32, columns: Int32,
    factors, bias: cute.Pointer,
):  # fmt: skip
    """Write the factors, then the bias, of the tile's columns to shared memory at `at`."""
    has_factors, has_bias = vectors_of(layout)
    for part in cutlass.range_constexpr(0, layout.tile.columns, 128):
        offset = r + part
        if const_expr(layout.tile.columns % 128 == 0) or offset < layout.tile.columns:
            to = at + 4 * offset
            if const_expr(has_factors):
                value = factor_of_column(layout, factors, column + offset, columns)
                ptx.store_shared(to, [value])
            if const_expr(has_bias):
                value = element(bias, column + offset, columns, column + offset)
                ptx.store_shared(to + int(has_factors) * layout.vector_bytes, [value])
    cute.arch.barrier(barrier_id=BARRIER, number_of_threads=32 * EPILOGUE_WARPS)


def vectors_of(layout: Layout) -> tuple[bool, bool]:
    """Whether factors, and the bias, are staged by column."""
    bias = layout.epilogue.bias and not layout.tile.swapped
    return layout.vectors > int(bias), bias


@cute.jit
def finish(
    layout: cutlass.Constexpr[Layout], acc, vectors: Int32, row_factor: Float32, row_bias: Float32,
    lookup,
):  # fmt: skip
    """acc * factor + bias of neighbouring columns, whose staged vectors start at `vectors`.

    lookup: None, or the factor of each.
    """
    has_factors, has_bias = vectors_of(layout)
    bias_at = int(has_factors) * layout.vector_bytes
    row_bias_used = layout.epilogue.bias and layout.tile.swapped
    width = min(4, len(acc))
    factors = biases = None
    values = []
    for i in cutlass.range_constexpr(0, len(acc), 2):
        a, b = i, min(i + 1, len(acc) - 1)
        if const_expr(has_factors and i % 4 == 0):
            factors = ptx.load_shared(vectors, width, offset=4 * i)
        if const_expr(has_bias and i % 4 == 0):
            biases = ptx.load_shared(vectors, width, offset=4 * i + bias_at)
        factor = (row_factor, row_factor)
        if const_expr(has_factors):
            factor = ptx.multiply2((factors[a % 4], factors[b % 4]), factor)
        if const_expr(lookup is not None):
            factor = ptx.multiply2((lookup[a], lookup[b]), factor)
        pair = (acc[a], acc[b])
        if const_expr(has_bias):
            pair = ptx.fma2(pair, factor, (biases[a % 4], biases[b % 4]))
        elif const_expr(row_bias_used):
            pair = ptx.fma2(pair, factor, (row_bias, row_bias))
        else:
            pair = ptx.multiply2(pair, factor)
        values.extend(pair[: b - a + 1])
    return values


@cute.jit
def matrix_factors(
    layout: cutlass.Constexpr[Layout], count: cutlass.Constexpr[int], factors, row: Int32,
    column: Int32, rows: Int32, columns: Int32,
):  # fmt: skip
    """alpha [M, S] of a thread's elements, looked up one by one; None unless it is a matrix."""
    if const_expr(layout.epilogue.alpha != "matrix"):
        return None
    alpha, alpha_stride, segment, row_scale, row_scale_stride = factors
    looked_up = []
    for i in cutlass.range_constexpr(count):
        m, n = (row, column + i)
        if const_expr(layout.tile.swapped):
            m, n = (column + i, row)
        value = Float32(0.0)
        if row < rows and column + i < columns:
            value = (alpha + (Int64(m) * alpha_stride + n // segment)).load()
        looked_up.append(value)
    return looked_up


@cute.jit
def store_by_tma(
    layout: cutlass.Constexpr[Layout], values, buffer: Int32, swizzle: Int32, source: Int32,
    out_map: Int64, row: Int32, column: Int32,
):  # fmt: skip
    """A warp's 32 rows x STORE_BYTES, through its buffer at `source`; one bulk group.

    buffer: the thread's row of it; swizzle: (row % 8) * 16, as TMA's 128-byte swizzle has it.
    """
    if const_expr(layout.epilogue.out_dtype == torch.float32):
        words = values
    else:
        dtype = PACKED[layout.epilogue.out_dtype]
        words = [ptx.pack2(values[i : i + 2], dtype) for i in range(0, len(values), 2)]
    for i in cutlass.range_constexpr(0, len(words), 4):
        ptx.store_shared(buffer + (swizzle ^ (4 * i)), words[i : i + 4])
    cute.arch.fence_proxy("async.shared", space="cta")
    cute.arch.sync_warp()
    ptx.tma_store(out_map, [column, row], source)
    cute.arch.cp_async_bulk_commit_group()


@cute.jit
def store_elements(
    layout: cutlass.Constexpr[Layout], values, out: cute.Pointer, out_stride, row: Int32,
    column: Int32, rows: Int32, columns: Int32,
):  # fmt: skip
    """A thread's row of D from `column` on: of the output's row, or, swapped, of its column."""
    dtype = DTYPES[layout.epilogue.out_dtype]
    if row < rows:
        for i in cutlass.range_constexpr(len(values)):
            if column + i < columns:
                if const_expr(layout.tile.swapped):
                    (out + (Int64(column + i) * out_stride + row)).store(dtype(values[i]))
                else:
                    (out + (Int64(row) * out_stride + (column + i))).store(dtype(values[i]))


@cute.jit
def release(layout: cutlass.Constexpr[Layout], smem: Int32, rank: Int32, second: Int32):
    """Give the accumulator back to the MMA warp, of the pair's leader."""
    barrier = smem + layout.acc_empty
    if const_expr(layout.overlap == 0):
        barrier = barrier + second * 8
    ptx.tmem_fence_before()
    cute.arch.sync_warp()
    if const_expr(layout.tile.ctas == 1):
        ptx.mbarrier_arrive(barrier)
    else:
        ptx.mbarrier_arrive_cluster(ptx.map_to_cta(barrier, rank & ~1))


@cute.jit
def sum_partials(
    layout: cutlass.Constexpr[Layout], smem: Int32, r: Int32, rank: Int32, turn: Int32
):
    """Split-K: this CTA's share of the tile's columns, the partial sums added in order of rank.

    The CTA's own sums are in `partials`; the others read them there.
    """
    split = layout.tile.split_k
    share = layout.tile.columns // split
    cute.arch.sync_warp()
    for q in cutlass.range_constexpr(split):
        ptx.mbarrier_arrive_cluster(ptx.map_to_cta(smem + layout.partial_full, Int32(q)))
    ptx.mbarrier_wait_cluster(smem + layout.partial_full, turn & 1)
    sums = []
    at = smem + layout.partials + (rank * share * 128 + r) * 4
    for q in cutlass.range_constexpr(split):
        remote = ptx.map_to_cta(at, Int32(q))
        parts = [ptx.load_cluster(remote, 512 * i) for i in range(share)]
        sums = parts if q == 0 else [a + b for a, b in zip(sums, parts, strict=True)]
    cute.arch.sync_warp()
    for q in cutlass.range_constexpr(split):
        ptx.mbarrier_arrive_cluster(ptx.map_to_cta(smem + layout.partial_empty, Int32(q)))
    return sums


@cute.jit
def empty(
    layout: cutlass.Constexpr[Layout], atom, out: cute.Pointer, out_stride, factors,
    bias: cute.Pointer, smem: Int32, tmem: Int32, warp: Int32, lane: Int32, rank: Int32,
    rows: Int32, columns: Int32, grid,
):  # fmt: skip
    """The epilogue's warps: for each tile, every subtile from tensor memory to the output."""
    config, epilogue = layout.tile, layout.epilogue
    x, y = Int32(0), Int32(0)
    if const_expr(config.split_k == 1):
        x, y = rank % config.cluster_rows, rank // config.cluster_rows
    r = warp * WARP_ROWS + lane
    source = smem + layout.outputs + warp * (WARP_ROWS * STORE_BYTES)
    buffer, swizzle = source + lane * STORE_BYTES, (lane & 7) * 16
    lanes = tmem + (warp * WARP_ROWS << 16)
    tile, step, turn = first_tile(grid), step_of(grid), Int32(0)
    cute.arch.griddepcontrol_wait()

    while remains(tile, grid):
        tile_index = row_of(tile, grid)
        if tile_index < grid.rows:
            row = (tile_index * config.cluster_rows + x) * 128
            column = (tile[1] * config.cluster_columns + y) * config.columns
            second = turn & 1
            vectors = (
                smem + layout.vector_base + second * (layout.vectors * layout.vector_bytes)
            )
            if const_expr(layout.vectors > 0):
                stage_vectors(layout, vectors, r, column, columns, factors, bias)
            row_factor = factor_of_row(layout, factors, row + r, rows)
            row_bias = Float32(0.0)
            if const_expr(epilogue.bias and config.swapped):
                row_bias = element(bias, row + r, rows, row + r)

            ptx.mbarrier_wait(smem + layout.acc_full + second * 8, turn >> 1 & 1)
            ptx.tmem_fence_after()
            acc = lanes + second * layout.second_acc
            if const_expr(config.split_k > 1):
                ptx.mbarrier_wait_cluster(smem + layout.partial_empty, turn & 1 ^ 1)
            for s in cutlass.range_constexpr(layout.subtiles):
                offset = Int32(s * layout.subtile)
                if const_expr(layout.overlap > 0):
                    # The columns that the next tile's accumulator overlaps are emptied first.
                    last = layout.tile.columns - layout.subtile
                    offset = offset + (1 - second) * (last - 2 * s * layout.subtile)
                values = ptx.tmem_load(acc + offset, layout.subtile)
                ptx.tmem_wait()
                if const_expr(s == layout.last_overlapped):
                    release(layout, smem, rank, second)
                if const_expr(config.split_k > 1):
                    at = smem + layout.partials + r * 4
                    for i in cutlass.range_constexpr(layout.subtile):
                        ptx.store_shared(at, [values[i]], offset=(s * layout.subtile + i) * 512)
                else:
                    lookup = matrix_factors(
                        layout, layout.subtile, factors, row + r, column + offset, rows, columns
                    )
                    values = finish(
                        layout, values, vectors + 4 * offset, row_factor, row_bias, lookup
                    )
                    if const_expr(epilogue.tma_store):
                        first, pending = layout.output_buffer(s)
                        cute.arch.cp_async_bulk_wait_group(pending, read=True)
                        cute.arch.sync_warp()
                        store_by_tma(
                            layout, values, buffer + first, swizzle, source + first,
                            ptx.tensor_map(atom), row + warp * WARP_ROWS, column + offset,
                        )  # fmt: skip
                    else:
                        store_elements(
                            layout, values, out, out_stride, row + r, column + offset, rows, columns
                        )
            if const_expr(config.split_k > 1):
                share = config.columns // config.split_k
                sums = sum_partials(layout, smem, r, rank, turn)
                part = rank * share
                lookup = matrix_factors(
                    layout, share, factors, row + r, column + part, rows, columns
                )
                values = finish(layout, sums, vectors + 4 * part, row_factor, row_bias, lookup)
                store_elements(
                    layout, values, out, out_stride, row + r, column + part, rows, columns
                )
            turn = turn + 1
        tile = next_tile(tile, step, grid)
    if const_expr(epilogue.tma_store):
        cute.arch.cp_async_bulk_wait_group(0, read=True)
