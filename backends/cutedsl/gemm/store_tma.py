"""The epilogue that stores by TMA.

A tile goes from tensor memory through registers and swizzled shared memory to global memory.

tcgen05.ld.16x256b gives a thread columns 8 j + 2 q and the next, q = lane % 4, of rows lane / 4 and
8 more: a thread has few columns of many rows, so that a bias is loaded once for four rows, and
stmatrix takes the pairs as they are.
"""

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
import torch
from cutlass import Float32, Int32, Int64, const_expr

from nvfp4.backends.cutedsl.gemm import floats, ptx
from nvfp4.backends.cutedsl.gemm.accumulators import (
    Accumulator,
    release,
    subtile_offset,
    wait_full,
)
from nvfp4.backends.cutedsl.gemm.factors import Factors, of_rows
from nvfp4.backends.cutedsl.gemm.layouts import Layout
from nvfp4.backends.cutedsl.gemm.output import EpilogueWarp, Output
from nvfp4.backends.cutedsl.gemm.sizes import STORE_BYTES, WARP_ROWS

PACKED = {torch.bfloat16: "bf16", torch.float16: "f16"}
HALF = 16
"""Rows of a warp's 32 that one tcgen05.ld reads."""
ROWS = (0, 8, 16, 24)
"""A thread's rows, from its first on."""


class Staging(NamedTuple):
    """A thread's rows, from its warp's first on, where its prefetched vectors start, and its warp's
    output buffers.

    places: the addresses in the buffer that the thread stores to.
    """

    rows: list[Int32]
    vectors: Int32
    buffer: Int32
    places: list[Int32]


def slot_of(column: Int32) -> Int32:
    """Where a column's prefetched factor and bias are, in words.

    The 16 columns of a group lie as four threads read them, each two pairs at a time.
    """
    group, pair, quad = column // 16, column // 8 % 2, column % 8 // 2
    return group * 16 + quad * 4 + pair * 2 + column % 2


@cute.jit
def staging_of(layout: cutlass.Constexpr[Layout], own: EpilogueWarp) -> Staging:
    """The warp's output buffers, and where in them this thread stores."""
    vectors = own.lane % 4 * 16
    rows = [own.lane // 4 + i for i in ROWS]
    buffer = own.smem + layout.outputs + own.warp * (WARP_ROWS * STORE_BYTES)
    return Staging(rows, vectors, buffer, places_of(layout, buffer, own.lane))


@cute.jit
def drain(
    layout: cutlass.Constexpr[Layout], own: EpilogueWarp, accumulator: Accumulator, output: Output,
    staging: Staging, factors: Factors, same: Float32, coord,
):  # fmt: skip
    """A tile, subtile by subtile: from its accumulator through an output buffer to D."""
    row_factors: tuple = ()
    if const_expr(layout.stages_row_factors):
        put_row_factor(layout, own, factors, same, coord)
    else:
        row_factors = of_rows(layout, factors, same, coord, staging.rows)
    wait_full(layout, accumulator)
    for s in cutlass.range_constexpr(layout.subtiles):
        offset = subtile_offset(layout, accumulator, s)
        vectors = accumulator.block + 4 * offset + staging.vectors
        halves = [
            ptx.tmem_load_16x256b(accumulator.tmem + offset + (half * HALF << 16), layout.subtile)
            for half in range(2)
        ]
        ptx.tmem_wait()
        if const_expr(s == layout.release_after):
            # Before anything is converted: the next tile's MMAs wait for it.
            release(layout, accumulator, own.smem, own.rank)
        if const_expr(layout.stages_row_factors):
            row_factors = row_factors_of(layout, own)
        buffers, pending = layout.output_buffer(s)
        cute.arch.cp_async_bulk_wait_group(pending, read=True)
        cute.arch.sync_warp()
        stage(layout, halves, vectors, row_factors, staging.places, buffers)
        cute.arch.fence_proxy("async.shared", space="cta")
        cute.arch.sync_warp()
        corner = [coord.column + offset, coord.row]
        if const_expr(not layout.grouped) or coord.row + WARP_ROWS <= coord.row_end:
            ptx.tma_store(ptx.tensor_map(output.atom), corner, staging.buffer + buffers)
        elif coord.row < coord.row_end:  # the rest of the box is the next expert's
            store_rows(layout, staging.buffer + buffers, output, corner, coord, own.lane)
        cute.arch.cp_async_bulk_commit_group()


@cute.jit
def put_row_factor(
    layout: cutlass.Constexpr[Layout], own: EpilogueWarp, factors: Factors, same: Float32, coord
):
    """Write the factor of row r of the CTA's tile to shared memory, for row_factors_of.

    ptxas moves products before the accumulator's release, and before the second load from tensor
    memory, unless a factor is loaded after these.
    """
    factor = of_rows(layout, factors, same, coord, [own.lane])[0]
    cute.arch.sync_warp()  # the tile before has been multiplied
    ptx.store_shared(own.smem + layout.row_factors + 4 * own.r, [factor])
    cute.arch.sync_warp()


@cute.jit
def row_factors_of(layout: cutlass.Constexpr[Layout], own: EpilogueWarp):
    """The factors of a thread's rows, from shared memory."""
    at = own.smem + layout.row_factors + own.warp * (4 * WARP_ROWS)
    if const_expr(layout.same_factor):
        return ptx.load_shared(at, 1) * len(ROWS)
    return [ptx.load_shared(at + own.lane // 4 * 4, 1, Float32, 4 * i)[0] for i in ROWS]


@cute.jit
def places_of(layout: cutlass.Constexpr[Layout], buffer: Int32, lane: Int32):
    """The addresses in a warp's output buffer that a thread stores to, each 16 rows apart.

    TMA's 128-byte swizzle: 16-byte chunk c of row r is at c ^ (r % 8).
    """
    if const_expr(layout.epilogue.out_dtype == torch.float32):
        # The thread's own pairs: chunk 2 j + q / 2 of row lane / 4, and of the one 8 below it.
        row, chunk = lane // 4, lane % 4 // 2
        at = buffer + row * STORE_BYTES + lane % 2 * 8
        return [at + ((chunk + 2 * j ^ row) << 4) for j in range(STORE_BYTES // 32)]
    # stmatrix: lanes 0-7 give the rows of 8x8 matrix 0 (rows 0-7, columns 0-7), then rows 8-15,
    # then both for columns 8-15.
    row, chunk = lane % 16, lane // 16
    at = buffer + row * STORE_BYTES
    return [at + ((chunk + 2 * j ^ row % 8) << 4) for j in range(STORE_BYTES // 32)]


@cute.jit
def pairs_of(layout: cutlass.Constexpr[Layout], vectors: Int32, offset: cutlass.Constexpr[int]):
    """The thread's pairs of a prefetched vector of a subtile: one pair for every 8 columns."""
    pairs = []
    for i in cutlass.range_constexpr(layout.subtile // 16):
        a, b, c, d = ptx.load_shared(vectors, 4, Float32, offset + 64 * i)
        pairs += [(a, b), (c, d)]
    return pairs


@cute.jit
def stage(
    layout: cutlass.Constexpr[Layout], halves, vectors: Int32, row_factors, places,
    buffers: cutlass.Constexpr[int],
):  # fmt: skip
    """Scale a subtile's sums, add the bias, and write them to the output buffer.

    halves: the thread's sums of the warp's first 16 rows, then of the others; vectors: where its
    first prefetched factor is; buffers: where the subtile's output buffers start.
    """
    out_dtype = layout.epilogue.out_dtype
    factors: list = []
    biases: list = []
    if const_expr(layout.prefetches_factors):
        factors = pairs_of(layout, vectors, 0)
    if const_expr(layout.prefetches_bias):
        biases = pairs_of(layout, vectors, layout.bias_offset)
    for half in cutlass.range_constexpr(2):
        values, pairs = halves[half], []
        for i in cutlass.range_constexpr(layout.subtile // 4):
            j, low = i // 2, i % 2  # the i-th pair: columns 8 j.., rows 0.. or 8..
            row_factor = row_factors[2 * half + low]
            factor = (row_factor, row_factor)
            if const_expr(layout.prefetches_factors):
                factor = floats.multiply2(factors[j], factor)
            pair = (values[2 * i], values[2 * i + 1])
            if const_expr(layout.prefetches_bias):
                pair = floats.fma2(pair, factor, biases[j])
            else:
                pair = floats.multiply2(pair, factor)
            pairs.append(pair)
        to = buffers + half * HALF * STORE_BYTES
        if const_expr(out_dtype == torch.float32):
            for i in cutlass.range_constexpr(len(pairs)):
                ptx.store_shared(places[i // 2], pairs[i], to + i % 2 * 8 * STORE_BYTES)
        else:
            for i in cutlass.range_constexpr(0, len(pairs), 4):
                words = [floats.pack2(pair, PACKED[out_dtype]) for pair in pairs[i : i + 4]]
                ptx.store_matrices(places[i // 4], words, to)


@cute.jit
def store_rows(
    layout: cutlass.Constexpr[Layout], buffer: Int32, output: Output, corner, coord, lane: Int32,
):  # fmt: skip
    """Store a warp's output buffer as TMA would at `corner`, (column, row), up to the expert's end.

    The warp stores four rows at a time, 16 bytes a thread.
    """
    (column, row), out, out_stride = corner, output.pointer, output.stride
    chunk, r = lane % 8, lane // 8
    column = column + chunk * (128 // out.value_type.width)
    at = buffer + r * STORE_BYTES
    to = (out + (Int64(row + r) * out_stride + column)).toint()
    pitch = out_stride * (4 * out.value_type.width // 8)
    if column < coord.column_end:
        for i in cutlass.range_constexpr(WARP_ROWS // 4):
            if row + r + 4 * i < coord.row_end:
                # Rows 4 further swap the swizzle's upper half.
                source = at + ((chunk ^ r ^ (4 * i % 8)) << 4)
                words = ptx.load_shared(source, 4, Int32, 4 * i * STORE_BYTES)
                ptx.store_global(to + i * pitch, words)
