"""Device functions: NVFP4's recipe on tiles, in arithmetic that every GPU (and Triton's
interpreter) rounds alike.

Shapes: a tile of R rows and C columns is [R, C/16, 16] elements, a block the last axis, so that
what there is of a block, [R, C/16], is where the block's elements are, whatever the layout. Its
packed data is [R, C/16, 2] int32 words of 8 codes, its scales [R, C/16] uint8. R and C are powers
of two, C at least 64.
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
    to_f32,
)
from nvfp4.spec import format as spec
from nvfp4.spec import glu as spec_glu
from nvfp4.spec import swizzle as spec_swizzle

FLOAT32_MAX = tl.constexpr(spec.FLOAT32_MAX)
FLOAT32_MIN_NORMAL = tl.constexpr(spec.FLOAT32_MIN_NORMAL)
GLOBAL_SCALE_DIVISOR = tl.constexpr(spec.GLOBAL_SCALE_DIVISOR)
ONE_SIXTH = tl.constexpr(spec.ONE_SIXTH)

TILE_ROWS = tl.constexpr(spec_swizzle.TILE_ROWS)
TILE_BLOCKS = tl.constexpr(spec_swizzle.TILE_BLOCKS)

SILU = tl.constexpr(spec_glu.SILU)
NEG_LOG2_E = tl.constexpr(spec_glu.NEG_LOG2_E)
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
    """1 / x, correctly rounded: Triton's own `/` is approximate and flips scale bytes."""
    return tl.div_rn(tl.full(x.shape, 1.0, tl.float32), x)


# ---- the recipe of spec/quantize.py ---------------------------------------------------------


# Magnitudes order alike as floats and as integers. The interpreter's reductions know nothing of
# NaN, and take integers; the hardware's do, and cost less.


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
    """x [R, C/16, 16] -> [R], the largest magnitude: a NaN counts as 0, an Inf as FLT_MAX."""
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True) & MAGNITUDE
        bits = tl.where(bits > INF_BITS, 0, tl.minimum(bits, INF_BITS - 1))
        return tl.max(tl.max(bits, axis=2), axis=1).to(tl.float32, bitcast=True)
    else:
        amax = tl.max(tl.max(tl.abs(x), axis=2), axis=1)  # NaN only if all are
        return tl.where(amax == amax, tl.minimum(amax, FLOAT32_MAX), 0.0)


@triton.jit
def row_global_scale(x):
    """x float32 [R, C/16, 16] -> p float32 [R]: a NaN counts as 0, an Inf as FLT_MAX."""
    return global_scale_of(largest_of_row(x))


@triton.jit
def global_scale_of(amax):
    """The largest magnitudes float32 [R] -> p float32 [R]."""
    p = tl.maximum(
        tl.div_rn(amax, tl.full(amax.shape, GLOBAL_SCALE_DIVISOR, tl.float32)), FLOAT32_MIN_NORMAL
    )
    return tl.where(amax == 0.0, 1.0, p)


@triton.jit
def row_power_of_two(x):
    """x float32 [R, C/16, 16] -> float32 [R]: a power of two that x may be divided by to be
    float16, its largest element then at least 2^14. A NaN counts as 0.
    """
    exponent = largest_of_row(x).to(tl.int32, bitcast=True) >> 23
    exponent = tl.maximum(exponent - 14, 127 - 112)
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def scale_blocks(x, p, SM: tl.constexpr):
    """x float32 [R, C/16, 16], p float32 [R] -> scales uint8, what they stand for (float32), what
    a block is multiplied by (float32), NaN if it has one: each [R, C/16].
    """
    amax = largest(x, 2)
    enc = reciprocal(p) * ONE_SIXTH
    scales = f32_to_e4m3(amax * enc[:, None], SM)
    sf = e4m3_to_f16(scales, SM).to(tl.float32)
    # Nothing is divided by 0: that takes long. Asked of sf: asked of the bytes, ptxas 12.8 reads a
    # register that nothing has written.
    is_zero = sf == 0.0
    inverse = reciprocal(tl.where(is_zero, 1.0, sf * p[:, None]))
    inverse = tl.where(is_zero, 0.0, tl.minimum(inverse, FLOAT32_MAX))
    return scales, sf, tl.where(amax != amax, float("nan"), inverse)


@triton.jit
def quantize_tile(x, p, R: tl.constexpr, C: tl.constexpr, SM: tl.constexpr):
    """x float32 [R, C/16, 16], p float32 [R] -> words int32 [R, C/16, 2], scales uint8
    [R, C/16].
    """
    scales, _, inverse = scale_blocks(x, p, SM)
    words = pack(x * inverse[:, :, None], inverse != inverse, SM)
    return words, scales


@triton.jit
def round_tile(x, p, SM: tl.constexpr):
    """x float32 [R, C/16, 16], p float32 [R] -> float16 [R, C/16, 16], as NVFP4 has it: e2m1 * sf
    over E2M1_F16_SCALE.
    """
    _, sf, inverse = scale_blocks(x, p, SM)
    value = round_to_e2m1(x * inverse[:, :, None])
    return (value * (sf * (1 / E2M1_F16_SCALE))[:, :, None]).to(tl.float16)


@triton.jit
def glu(gate, up, ACTIVATION: tl.constexpr):
    """act(gate) * up, float32, operation for operation as spec/glu.py."""
    slope = NEG_LOG2_E if ACTIVATION == SILU else gate * gate * GELU_C1 + GELU_C0
    t = gate * slope
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


# ---- addresses ------------------------------------------------------------------------------


@triton.jit
def load_blocks(x, rows, live, column, K, row_stride, R: tl.constexpr, C: tl.constexpr):
    """The columns [column, column + C) of those rows [R] of x [M, K] that are live: float32
    [R, C/16, 16], zeros elsewhere.
    """
    # A block's halves are each as much as one load can be of 16 bits, and both the same thread's:
    # what is found of a block is found by one thread, and once. The blocks' axis comes first here,
    # and in every store of a tile: an order in which Triton gives all the same threads.
    HALF: tl.constexpr = BLOCK // 2
    columns = column + tl.arange(0, C // BLOCK)[:, None, None] * BLOCK + tl.arange(0, HALF)
    at = x + rows.to(tl.int64)[None, :, None] * row_stride + columns
    inside = live[None, :, None] & (columns < K)
    first = tl.load(at, mask=inside, other=0.0)
    second = tl.load(at + HALF, mask=inside, other=0.0)
    halves = tl.join(first, second).permute(1, 0, 3, 2)
    return to_f32(halves.reshape(R, C // BLOCK, BLOCK))


@triton.jit
def scale_offsets(rows, blocks, row_stride, SWIZZLED: tl.constexpr):
    """Byte offsets (int64) of the scales at rows [R, 1], blocks [1, C]; row_stride: Ksf, or Kp
    swizzled.
    """
    if SWIZZLED:
        tile = (rows // TILE_ROWS).to(tl.int64) * (
            row_stride // TILE_BLOCKS
        ) + blocks // TILE_BLOCKS
        within = (rows % 32) * 16 + (rows // 32 % 4) * TILE_BLOCKS + blocks % TILE_BLOCKS
        return tile * (TILE_ROWS * TILE_BLOCKS) + within
    else:
        return rows.to(tl.int64) * row_stride + blocks


@triton.jit
def store_words(words, data, rows, live, column, K, C: tl.constexpr):
    """A tile's packed codes, int32 [R, C/16, 2], to those rows of data [M, K/2] that are live."""
    word = column // 8 + tl.arange(0, C // BLOCK)[:, None, None] * 2 + tl.arange(0, 2)
    data = data.to(tl.pointer_type(tl.int32), bitcast=True)
    offsets = rows.to(tl.int64)[None, :, None] * (K // 8) + word
    inside = live[None, :, None] & (word < K // 8)
    tl.store(data + offsets, words.permute(1, 0, 2), mask=inside)


@triton.jit
def store_scales(
    sf, scales, rows, live, column, scale_columns, SWIZZLED: tl.constexpr, C: tl.constexpr
):
    """A tile's scales, uint8 [R, C/16], to those rows of the scales that are live."""
    block = column // BLOCK + tl.arange(0, C // BLOCK)[:, None]
    offsets = scale_offsets(rows[None, :], block, scale_columns, SWIZZLED)
    tl.store(scales + offsets, sf.trans(), mask=live[None, :] & (block < scale_columns))


@triton.jit
def store_padding(
    scales, rows, column, scale_columns, SWIZZLED: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    """The scales of rows [R] that are padding."""
    padding = tl.zeros((R, C // BLOCK), tl.uint8)
    store_scales(padding, scales, rows, rows >= 0, column, scale_columns, SWIZZLED, C)


@triton.jit
def store_quantized(
    x, p, data, scales, rows, column, M, K, scale_rows, scale_columns,
    SWIZZLED: tl.constexpr, R: tl.constexpr, C: tl.constexpr, SM: tl.constexpr,
):  # fmt: skip
    """Quantize the tile x float32 [R, C/16, 16] at (rows, column) and store it, the scales' padding
    included.

    x holds zeros outside [M, K], and a zero block's scale is the padding byte 0x00.
    """
    words, sf = quantize_tile(x, p, R, C, SM)
    store_words(words, data, rows, rows < M, column, K, C)
    store_scales(sf, scales, rows, rows < scale_rows, column, scale_columns, SWIZZLED, C)
