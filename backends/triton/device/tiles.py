"""NVFP4's recipe on tiles: device functions that every GPU and the interpreter round alike.

Shapes: a tile of R rows and C columns is [R, C/16, 16] elements. A block is the last axis, so what
is found of a block, [R, C/16], stays in the threads of its elements in any layout. The packed data
is [R, C/16, 2] int32 words of 8 codes, the scales are [R, C/16] uint8. R and C are powers of two, C
at least 64.
"""

import triton
import triton.language as tl

from nvfp4.backends.triton.device.floats import (
    BLOCK,
    E2M1_F16_SCALE,
    INF_BITS,
    INTERPRETED,
    MAGNITUDE,
    e4m3_to_f16,
    f32_to_e4m3,
    pack,
    round_to_e2m1,
    square,
    to_f32,
)
from nvfp4.spec import format as spec
from nvfp4.spec import glu as spec_glu
from nvfp4.spec import scale_rules as spec_rules
from nvfp4.spec import swizzle as spec_swizzle

FLOAT32_MAX = tl.constexpr(spec.FLOAT32_MAX)
FLOAT32_MIN_NORMAL = tl.constexpr(spec.FLOAT32_MIN_NORMAL)
ONE_SIXTH = tl.constexpr(spec.ONE_SIXTH)
ONE_QUARTER = tl.constexpr(spec_rules.ONE_QUARTER)

FOUR_OVER_SIX = tl.constexpr(spec_rules.FOUR_OVER_SIX)
AMAX_OVER_SIX_DIVISOR = tl.constexpr(spec_rules.GLOBAL_SCALE_DIVISORS[spec_rules.AMAX_OVER_SIX])
FOUR_OVER_SIX_DIVISOR = tl.constexpr(spec_rules.GLOBAL_SCALE_DIVISORS[spec_rules.FOUR_OVER_SIX])

TILE_ROWS = tl.constexpr(spec_swizzle.TILE_ROWS)
TILE_BLOCKS = tl.constexpr(spec_swizzle.TILE_BLOCKS)

SCALE_ROW_STEP = tl.constexpr(32)
"""Rows this far apart lie side by side in a scale tile."""

SCALE_ROW_GROUPS = tl.constexpr(spec_swizzle.TILE_ROWS // SCALE_ROW_STEP.value)
"""Rows of a scale tile that lie side by side."""

GELU_TANH = tl.constexpr(spec_glu.GELU_TANH)
SWIGLU_OAI = tl.constexpr(spec_glu.SWIGLU_OAI)
NEG_LOG2_E = tl.constexpr(spec_glu.NEG_LOG2_E)
SWIGLU_OAI_SLOPE = tl.constexpr(spec_glu.SWIGLU_OAI_SLOPE)
GELU_C0 = tl.constexpr(spec_glu.GELU_C0)
GELU_C1 = tl.constexpr(spec_glu.GELU_C1)
EXP2_MIN = tl.constexpr(spec_glu.EXP2_MIN)
EXP2_MAX = tl.constexpr(spec_glu.EXP2_MAX)
ROUND_TO_INT = tl.constexpr(spec_glu.ROUND_TO_INT)
EXP2_C1 = tl.constexpr(spec_glu.EXP2_COEFFICIENTS[0])
EXP2_C2 = tl.constexpr(spec_glu.EXP2_COEFFICIENTS[1])
EXP2_C3 = tl.constexpr(spec_glu.EXP2_COEFFICIENTS[2])
EXP2_C4 = tl.constexpr(spec_glu.EXP2_COEFFICIENTS[3])
EXP2_C5 = tl.constexpr(spec_glu.EXP2_COEFFICIENTS[4])


@triton.jit
def reciprocal(x):
    """Compute 1 / x, correctly rounded: Triton's `/` is approximate and flips scale bytes."""
    return tl.div_rn(tl.full(x.shape, 1.0, tl.float32), x)


# ---- the recipe of spec/quantize.py ---------------------------------------------------------


# Magnitudes order the same as floats and as integers. The interpreter's reductions do not propagate
# NaN, so they take integers. The hardware's propagate NaN and cost less.


@triton.jit
def _greater_or_nan(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def largest(x, axis: tl.constexpr):
    """The largest magnitude along an axis; NaN if there is one."""
    if INTERPRETED:
        bits = tl.max(x.to(tl.int32, bitcast=True) & MAGNITUDE, axis=axis)
        return bits.to(tl.float32, bitcast=True)
    else:
        return tl.reduce(tl.abs(x), axis, _greater_or_nan)


@triton.jit
def largest_of_row(x):
    """The rows' largest magnitudes [R] of x [R, C/16, 16]: NaN counts as 0, Inf as FLT_MAX."""
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True) & MAGNITUDE
        bits = tl.where(bits > INF_BITS, 0, tl.minimum(bits, INF_BITS - 1))
        return tl.max(tl.max(bits, axis=2), axis=1).to(tl.float32, bitcast=True)
    else:
        amax = tl.max(tl.max(tl.abs(x), axis=2), axis=1)  # NaN only if all are
        return tl.where(amax == amax, tl.minimum(amax, FLOAT32_MAX), 0.0)


@triton.jit
def row_global_scale(x, SCALE_RULE: tl.constexpr):
    """The rows' own p float32 [R] of x float32 [R, C/16, 16]: NaN counts as 0, Inf as FLT_MAX."""
    return global_scale_of(largest_of_row(x), SCALE_RULE)


@triton.jit
def global_scale_of(amax, SCALE_RULE: tl.constexpr):
    """The global scales p float32 [R] for the largest magnitudes float32 [R]."""
    if SCALE_RULE == FOUR_OVER_SIX:
        divisor = tl.full(amax.shape, FOUR_OVER_SIX_DIVISOR, tl.float32)
    else:
        divisor = tl.full(amax.shape, AMAX_OVER_SIX_DIVISOR, tl.float32)
    p = tl.maximum(tl.div_rn(amax, divisor), FLOAT32_MIN_NORMAL)
    return tl.where(amax == 0.0, 1.0, p)


@triton.jit
def row_power_of_two(x):
    """The power of two float32 [R] that brings each row of x float32 [R, C/16, 16] into float16.

    The row's largest element over it is at least 2^14. A NaN counts as 0.
    """
    exponent = largest_of_row(x).to(tl.int32, bitcast=True) >> 23
    exponent = tl.maximum(exponent - 14, 127 - 112)
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def scale_blocks(x, p, SCALE_RULE: tl.constexpr, SM: tl.constexpr):
    """Scale the blocks of x float32 [R, C/16, 16] with p float32 [R].

    Returns, each [R, C/16]: the scales uint8, their values float32, and the factors float32 that
    bring the blocks into E2M1's range. A block's factor is NaN if the block has a NaN.
    """
    amax = largest(x, 2)
    enc = reciprocal(p)
    scales, sf, inverse = _scale_to(amax, enc * ONE_SIXTH, p, SM)
    if SCALE_RULE == FOUR_OVER_SIX:
        four, four_sf, four_inverse = _scale_to(amax, enc * ONE_QUARTER, p, SM)
        better = _error(x, four_sf, four_inverse) < _error(x, sf, inverse)
        scales = tl.where(better, four, scales)
        sf = tl.where(better, four_sf, sf)
        inverse = tl.where(better, four_inverse, inverse)
    return scales, sf, tl.where(amax != amax, float("nan"), inverse)


@triton.jit
def _scale_to(amax, enc, p, SM: tl.constexpr):
    """Scale blocks of the largest magnitudes amax [R, C/16] by enc and p, float32 [R]."""
    scales = f32_to_e4m3(amax * enc[:, None], SM)
    sf = e4m3_to_f16(scales, SM).to(tl.float32)
    # Dividing by 0 is slow, so a zero scale is divided by 1. The test is on sf: with a test on the
    # bytes ptxas 12.8 reads a register that nothing has written.
    is_zero = sf == 0.0
    inverse = reciprocal(tl.where(is_zero, 1.0, sf * p[:, None]))
    return scales, sf, tl.where(is_zero, 0.0, tl.minimum(inverse, FLOAT32_MAX))


@triton.jit
def _error(x, sf, inverse):
    """The squared error of blocks x [R, C/16, 16] in these scales, as spec/scale_rules.py has it.

    `inverse` may be any number where the block has a NaN: the error is NaN.
    """
    y = tl.abs(x * inverse[:, :, None])
    d = y - round_to_e2m1(y)
    squares = square(d).reshape(x.shape[0], x.shape[1], 2, 2, 2, 2)
    # Sums of two: with more, the compiler would choose the order.
    total = tl.sum(tl.sum(tl.sum(tl.sum(squares, axis=5), axis=4), axis=3), axis=2)
    return total * (sf * sf)


@triton.jit
def quantize_tile(x, p, SCALE_RULE: tl.constexpr, SM: tl.constexpr):
    """Quantize x float32 [R, C/16, 16] with p float32 [R].

    Returns words int32 [R, C/16, 2] and scales uint8 [R, C/16].
    """
    scales, _, inverse = scale_blocks(x, p, SCALE_RULE, SM)
    words = pack(x * inverse[:, :, None], inverse != inverse, SM)
    return words, scales


@triton.jit
def round_tile(x, p, SCALE_RULE: tl.constexpr, SM: tl.constexpr):
    """Round x float32 [R, C/16, 16] with p float32 [R] to NVFP4's e2m1 * sf, in float16.

    The values, [R, C/16, 16], are over E2M1_F16_SCALE.
    """
    _, sf, inverse = scale_blocks(x, p, SCALE_RULE, SM)
    value = round_to_e2m1(x * inverse[:, :, None])
    return (value * (sf * (1 / E2M1_F16_SCALE))[:, :, None]).to(tl.float16)


@triton.jit
def glu(gate, up, ACTIVATION: tl.constexpr):
    """Compute act(gate) * up in float32, operation for operation as spec/glu.py."""
    if ACTIVATION == GELU_TANH:
        t = gate * (gate * gate * GELU_C1 + GELU_C0)
    elif ACTIVATION == SWIGLU_OAI:
        up += 1.0
        t = gate * SWIGLU_OAI_SLOPE
    else:
        t = gate * NEG_LOG2_E
    t = tl.minimum(tl.maximum(t, EXP2_MIN), EXP2_MAX)
    shifted = t + ROUND_TO_INT
    f = t - (shifted - ROUND_TO_INT)
    poly = EXP2_C5 * f + EXP2_C4
    poly = poly * f + EXP2_C3
    poly = poly * f + EXP2_C2
    poly = poly * f + EXP2_C1
    poly = poly * f + 1.0
    exponent = shifted.to(tl.int32, bitcast=True) << 23
    exp = (poly.to(tl.int32, bitcast=True) + exponent).to(tl.float32, bitcast=True)
    return tl.div_rn(gate, exp + 1.0) * up


@triton.jit
def relu2(x):
    """Compute max(x, 0)^2 in float32; a NaN stays one."""
    positive = tl.where(x < 0.0, 0.0, x)
    return positive * positive


# ---- addresses ------------------------------------------------------------------------------


@triton.jit
def load_blocks(x, rows, row_mask, column, K, row_stride, R: tl.constexpr, C: tl.constexpr):
    """Load columns [column, column + C) of rows [R] of x [M, K] as float32 [R, C/16, 16].

    Zeros where row_mask is false and beyond K.
    """
    # A half block of 16-bit elements is the widest load, and one thread has both halves of a block,
    # so it finds a block's scale once. The blocks' axis comes first here and in every store of a
    # tile: in this order Triton gives a block to the same thread everywhere.
    HALF: tl.constexpr = BLOCK // 2
    columns = column + tl.arange(0, C // BLOCK)[:, None, None] * BLOCK + tl.arange(0, HALF)
    at = x + rows.to(tl.int64)[None, :, None] * row_stride + columns
    inside = row_mask[None, :, None] & (columns < K)
    first = tl.load(at, mask=inside, other=0.0)
    second = tl.load(at + HALF, mask=inside, other=0.0)
    halves = tl.join(first, second).permute(1, 0, 3, 2)
    return to_f32(halves.reshape(R, C // BLOCK, BLOCK))


@triton.jit
def scale_offsets(rows, blocks, row_stride, SWIZZLED: tl.constexpr):
    """Byte offsets (int64) of the scales at rows [R, 1] and blocks [1, C].

    row_stride: the scales' columns, K/16, or Kp if swizzled.
    """
    if SWIZZLED:
        tile = (rows // TILE_ROWS).to(tl.int64) * (
            row_stride // TILE_BLOCKS
        ) + blocks // TILE_BLOCKS
        within = (
            (rows % SCALE_ROW_STEP) * (SCALE_ROW_GROUPS * TILE_BLOCKS)
            + (rows // SCALE_ROW_STEP % SCALE_ROW_GROUPS) * TILE_BLOCKS
            + blocks % TILE_BLOCKS
        )
        return tile * (TILE_ROWS * TILE_BLOCKS) + within
    else:
        return rows.to(tl.int64) * row_stride + blocks


@triton.jit
def store_words(words, data, rows, row_mask, column, K, C: tl.constexpr):
    """Store a tile's packed codes, int32 [R, C/16, 2], to data [M, K/2] where row_mask is true."""
    word = column // 8 + tl.arange(0, C // BLOCK)[:, None, None] * 2 + tl.arange(0, 2)
    data = data.to(tl.pointer_type(tl.int32), bitcast=True)
    offsets = rows.to(tl.int64)[None, :, None] * (K // 8) + word
    inside = row_mask[None, :, None] & (word < K // 8)
    tl.store(data + offsets, words.permute(1, 0, 2), mask=inside)


@triton.jit
def store_scales(
    sf, scales, rows, row_mask, column, scale_columns, SWIZZLED: tl.constexpr, C: tl.constexpr
):
    """Store a tile's scales, uint8 [R, C/16], where row_mask is true."""
    block = column // BLOCK + tl.arange(0, C // BLOCK)[:, None]
    offsets = scale_offsets(rows[None, :], block, scale_columns, SWIZZLED)
    tl.store(scales + offsets, sf.trans(), mask=row_mask[None, :] & (block < scale_columns))


@triton.jit
def store_padding(
    scales, rows, column, scale_columns, SWIZZLED: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    """Store zero scales to padding rows [R]."""
    padding = tl.zeros((R, C // BLOCK), tl.uint8)
    store_scales(padding, scales, rows, rows >= 0, column, scale_columns, SWIZZLED, C)


@triton.jit
def store_quantized(
    x, p, data, scales, rows, column, M, K, scale_rows, scale_columns,
    SWIZZLED: tl.constexpr, SCALE_RULE: tl.constexpr, C: tl.constexpr, SM: tl.constexpr,
):  # fmt: skip
    """Quantize and store the tile x float32 [R, C/16, 16] at (rows, column).

    x holds zeros outside [M, K]. A zero block's scale is 0x00, so the scales' padding is right too.
    """
    words, sf = quantize_tile(x, p, SCALE_RULE, SM)
    store_words(words, data, rows, rows < M, column, K, C)
    store_scales(sf, scales, rows, rows < scale_rows, column, scale_columns, SWIZZLED, C)
