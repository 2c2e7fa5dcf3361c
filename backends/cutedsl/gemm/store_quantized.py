"""The epilogue of a gated linear unit: gate and up from tensor memory -> act(gate) * up, quantized.

tcgen05.ld.32x32b gives a thread one row of gate and the same row of up. Its 32 results are two
blocks, so a block's largest magnitude needs no other thread. A thread stores 16 bytes of codes and
two scales, which lie side by side in the swizzled layout.

The arithmetic is that of spec/glu.py, spec/quantize.py and spec/scale_rules.py to the bit: every
operation is rounded once, by name, and none is contracted (see floats.multiply2_ftz).
"""

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
import torch
from cutlass import Boolean, Float32, Int16, Int32, Int64, const_expr

from nvfp4.backends.cutedsl.gemm import floats, ptx
from nvfp4.backends.cutedsl.gemm.accumulators import (
    Accumulator,
    release,
    subtile_offset,
    wait_full,
)
from nvfp4.backends.cutedsl.gemm.factors import Factors, element
from nvfp4.backends.cutedsl.gemm.groups import Groups, TileCoord
from nvfp4.backends.cutedsl.gemm.layouts import Layout
from nvfp4.backends.cutedsl.gemm.output import EpilogueWarp
from nvfp4.backends.cutedsl.gemm.sizes import MMA_K, SCALE_LANES, SCALE_TILE, WARP_ROWS
from nvfp4.backends.cutedsl.gemm.store_tma import PACKED
from nvfp4.spec.format import BLOCK, FLOAT32_MAX, ONE_SIXTH
from nvfp4.spec.glu import (
    EXP2_COEFFICIENTS,
    EXP2_MAX,
    EXP2_MIN,
    GELU_C0,
    GELU_C1,
    NEG_LOG2_E,
    ROUND_TO_INT,
    SILU,
)
from nvfp4.spec.scale_rules import FOUR_OVER_SIX, ONE_QUARTER
from nvfp4.spec.swizzle import TILE_BLOCKS

WORDS = BLOCK // 8
"""32-bit words that hold a block's codes."""

SIMPLE = 60.0
"""Where |exponent| is not above and |gate| not below 2^-60, nothing overflows, underflows or is to
be clamped: a block's divisions need no case of their own.
"""


class Quantized(NamedTuple):
    """Where a gated linear unit's quantized result goes; strides and pitches are in bytes.

    scales: grouped, their row tiles scale_pitch apart; p: the global scale to quantize with,
    p_stride 1 if each expert has its own; global_scale: where each row's is written; limit: the
    bound of gate and up.
    """

    data: cute.Pointer
    stride: Int64
    scales: cute.Pointer
    scale_pitch: Int64
    p: cute.Pointer
    p_stride: Int32
    global_scale: cute.Pointer
    limit: Float32


@cute.jit
def drain(
    layout: cutlass.Constexpr[Layout], own: EpilogueWarp, accumulator: Accumulator,
    quantized: Quantized, factors: Factors, coord: TileCoord, groups: Groups,
):  # fmt: skip
    """A tile: gate and up of the thread's row, half of a subtile's results at a time. The warp
    that has the same rows has the other half.

    The loop is not unrolled: its body is more than a thousand instructions.
    """
    width = layout.subtile // layout.column_parts
    own_row = cutlass.min(coord.row + own.lane, coord.row_end - 1)
    row_scale = layout.epilogue.row_scale
    gate_up_factors = factors_of(factors, own_row, coord.column, groups, row_scale)
    p = scale_of(quantized, coord, coord.row + own.lane, coord.column + own.part == 0)
    wait_full(layout, accumulator)
    # Of the CTA's scale tile the expert has rows.
    in_tile = coord.row - own.warp * WARP_ROWS < coord.row_end
    row = coord.row + own.lane
    for s in cutlass.range(layout.subtiles, unroll=1):
        offset = subtile_offset(layout, accumulator, s) + own.part * width
        gates = ptx.tmem_load(accumulator.tmem + offset, width)
        ups = ptx.tmem_load(accumulator.tmem + offset + layout.drained, width)
        ptx.tmem_wait()
        if s == layout.release_after:
            release(layout, accumulator, own.smem, own.rank)
        column = coord.column + offset
        if row < coord.row_end:
            store(layout, gates, ups, gate_up_factors, quantized, p, coord, row, own.r, column)
        elif in_tile:
            store_padding(quantized, coord, own.r, column)


@cute.jit
def factors_of(factors: Factors, row: Int32, column: Int32, groups: Groups, row_scale):
    """What gate and up of a row multiply by; of a tile that has gate's columns from `column` on."""
    gate = element(factors.alpha, column // factors.segment)
    up = element(factors.alpha, (column + groups.weight_rows // 2) // factors.segment)
    if const_expr(row_scale):
        own = element(factors.row_scale, row)
        gate, up = gate * own, up * own
    return gate, up


@cute.jit
def scale_of(quantized: Quantized, coord: TileCoord, row: Int32, writes: Boolean) -> Float32:
    """The global scale of row `row`; the warp with the row's first columns writes it out."""
    p = element(quantized.p, coord.expert * quantized.p_stride)
    if writes and row < coord.row_end:
        (quantized.global_scale + row).store(p)
    return p


@cute.jit
def store(
    layout: cutlass.Constexpr[Layout], gates, ups, factors, quantized: Quantized, p: Float32,
    coord: TileCoord, row: Int32, r: Int32, column: Int32,
):  # fmt: skip
    """A thread's 32 results of row `row`, from column `column` of gate on; p: their global scale;
    r: the row in the CTA's tile.
    """
    blocks = [
        activate(layout, gates[j : j + BLOCK], ups[j : j + BLOCK], factors, quantized.limit)
        for j in range(0, len(gates), BLOCK)
    ]
    amax = [floats.largest_magnitude(block) for block in blocks]
    enc = floats.reciprocal(p)
    six = encode(layout, blocks, amax, p, floats.multiply(enc, Float32(ONE_SIXTH)))
    if const_expr(layout.epilogue.glu.scale_rule == FOUR_OVER_SIX):
        four = encode(layout, blocks, amax, p, floats.multiply(enc, Float32(ONE_QUARTER)))
        scales, codes = better_of(six, four)
    else:
        scales, codes, _ = six
    data = (quantized.data + (Int64(row) * quantized.stride + column // 2)).toint()
    ptx.store_global(data, codes)
    ptx.store_global(scales_at(quantized, coord, r, column), [Int16(scales)])


@cute.jit
def encode(layout: cutlass.Constexpr[Layout], blocks, amax, p: Float32, enc: Float32):
    """Encode two blocks by the scales amax * enc.

    Returns the scales' bytes in one word, the words of codes, and with four_over_six each block's
    error.
    """
    scales = floats.to_e4m3x2(*(floats.multiply(each, enc) for each in amax))
    codes: list = []
    errors: list = []
    for block, sf in zip(blocks, floats.from_e4m3x2(scales), strict=True):
        # A NaN scale makes an inverse that is NaN, and codes that are 0x7.
        inverse = floats.min_nan(floats.reciprocal(floats.multiply(sf, p)), Float32(FLOAT32_MAX))
        inverse = floats.zero_if_zero(inverse, sf)
        scaled = [x for pair in pairs(block) for x in floats.multiply2(pair, (inverse, inverse))]
        codes += [floats.to_e2m1x8(scaled[j : j + 8]) for j in range(0, BLOCK, 8)]
        if const_expr(layout.epilogue.glu.scale_rule == FOUR_OVER_SIX):
            errors.append(error(scaled, sf))
    return scales, codes, errors


def error(scaled, sf: Float32) -> Float32:
    """The squared error of a block's scaled values, as spec/scale_rules.py computes it."""
    sums = [floats.squared_distance_to_e2m1(value) for value in scaled]
    while len(sums) > 1:
        sums = [floats.add(*pair) for pair in pairs(sums)]
    return floats.multiply(sums[0], floats.multiply(sf, sf))


def better_of(six, four):
    """The scales and codes of each block's smaller error; six's where they are equal or NaN."""
    byte, scales, codes = 0xFF, Int32(0), []
    for i, errors in enumerate(zip(four[2], six[2], strict=True)):
        scales = scales | floats.if_less(*errors, four[0], six[0]) & Int32(byte << 8 * i)
        of_block = slice(i * WORDS, (i + 1) * WORDS)
        for words in zip(four[1][of_block], six[1][of_block], strict=True):
            codes.append(floats.if_less(*errors, *words))
    return scales, codes


@cute.jit
def store_padding(quantized: Quantized, coord: TileCoord, r: Int32, column: Int32):
    """Zero scales for a row that the expert does not have, in its last scale tile."""
    ptx.store_global(scales_at(quantized, coord, r, column), [Int16(0)])


@cute.jit
def scales_at(quantized: Quantized, coord: TileCoord, r: Int32, column: Int32) -> Int64:
    """The address of the scales of the columns from `column` on, of the CTA tile's row r."""
    tile = Int64(coord.a_scale_tile) * quantized.scale_pitch + column // MMA_K * SCALE_TILE
    at = tile + r % SCALE_LANES * 16 + r // SCALE_LANES * TILE_BLOCKS + column % MMA_K // BLOCK
    return (quantized.scales + at).toint()


def pairs(values):
    return [(values[i], values[i + 1]) for i in range(0, len(values), 2)]


@cute.jit
def activate(layout: cutlass.Constexpr[Layout], gates, ups, factors, limit: Float32):
    """act(gate) * up of a block's sums, float32."""
    glu, dtype = layout.epilogue.glu, layout.epilogue.out_dtype
    bounded: list = []
    exponents: list = []
    for gate, up in zip(pairs(gates), pairs(ups), strict=True):
        gate = floats.multiply2(gate, (factors[0], factors[0]))
        up = floats.multiply2(up, (factors[1], factors[1]))
        if const_expr(dtype != torch.float32):
            gate, up = floats.round2(gate, PACKED[dtype]), floats.round2(up, PACKED[dtype])
        if const_expr(glu.limited):
            gate = tuple(floats.min_nan(x, limit) for x in gate)
            up = tuple(floats.min_nan(floats.max_nan(x, -limit), limit) for x in up)
        bounded.append((gate, up))
        slope = both(NEG_LOG2_E)
        if const_expr(glu.activation != SILU):
            square = floats.multiply2(gate, gate)
            slope = floats.add2(floats.multiply2_ftz(square, both(GELU_C1)), both(GELU_C0))
        exponents.append(floats.multiply2(gate, slope))
    values = act([gate for gate, _ in bounded], exponents)
    results: list = []
    for value, (_, up) in zip(pairs(values), bounded, strict=True):
        results += floats.multiply2(value, up)
    return results


@cute.jit
def act(gates, exponents):
    """gate / (1 + 2^exponent) of pairs, as a list of numbers."""
    values = [Float32(0.0) for _ in range(2 * len(gates))]
    largest = floats.largest_magnitude([x for pair in exponents for x in pair])
    smallest = floats.smallest_magnitude([x for pair in gates for x in pair])
    if largest <= SIMPLE and smallest >= 2.0**-SIMPLE:
        values = []
        for gate, exponent in zip(gates, exponents, strict=True):
            values += quotient(gate, floats.add2(exp2(exponent), both(1.0)))
    else:
        values = []
        for gate, exponent in zip(gates, exponents, strict=True):
            # A NaN may become a number here: the gate that it came from still is NaN.
            t = tuple(
                floats.min(floats.max(x, Float32(EXP2_MIN)), Float32(EXP2_MAX)) for x in exponent
            )
            below = floats.add2(exp2(t), both(1.0))
            values += [floats.divide(gate[i], below[i]) for i in range(2)]
    return values


@cute.jit
def exp2(t):
    """2^t of a pair, t from EXP2_MIN to EXP2_MAX."""
    shifted = floats.add2(t, both(ROUND_TO_INT))
    f = floats.subtract2(t, floats.subtract2(shifted, both(ROUND_TO_INT)))
    poly = both(EXP2_COEFFICIENTS[-1])
    for c in reversed((1.0, *EXP2_COEFFICIENTS[:-1])):
        poly = floats.add2(floats.multiply2_ftz(poly, f), both(c))
    return tuple(floats.times_power_of_2(poly[i], shifted[i]) for i in range(2))


@cute.jit
def quotient(a, b):
    """a / b of pairs, correctly rounded: the operations that div.rn.f32 is where nothing is near
    the ends of float32's range, two at a time.
    """
    r = tuple(floats.reciprocal_approx(x) for x in b)
    minus_b = tuple(-x for x in b)
    r = floats.fma2(r, floats.fma2(minus_b, r, both(1.0)), r)
    q = floats.multiply2(a, r)
    return floats.fma2(floats.fma2(minus_b, q, a), r, q)


def both(number: float):
    return Float32(number), Float32(number)
