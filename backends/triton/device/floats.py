"""Device functions: bfloat16, E2M1 and E4M3 to and from wider floats, in integer and IEEE float32
arithmetic that every GPU (and Triton's interpreter) rounds alike. sm_80 has no FP8 type, so E4M3
stays uint8 here.
"""

import triton
import triton.language as tl

from nvfp4.backends.triton.runtime import architecture
from nvfp4.spec import format as spec

BLOCK = tl.constexpr(spec.BLOCK)
E4M3_MAX = tl.constexpr(spec.E4M3_MAX)
NAN_SCALE = tl.constexpr(spec.NAN_SCALE)

INTERPRETED = tl.constexpr(architecture.interpreting())
FP8 = tl.constexpr(architecture.FP8)
HOPPER = tl.constexpr(architecture.HOPPER)
BLACKWELL = tl.constexpr(architecture.BLACKWELL)

MAGNITUDE = tl.constexpr(0x7FFFFFFF)
SIGN = tl.constexpr(-(2**31))
INF_BITS = tl.constexpr(0x7F800000)

ZEROS = tl.constexpr(-0x05000000)
"""What _count makes of zeros in a word of eight: 2^23's bits, 0x4B000000, shifted to each nibble
and summed in 32 bits.
"""

E2M1_F16_SCALE = tl.constexpr(2.0**14)
"""e2m1_to_f16 returns the value over 2^14: float16's exponent bias is 14 above E2M1's."""


# ---- bfloat16 -------------------------------------------------------------------------------
# Triton's interpreter truncates where the hardware rounds, and loses subnormals on the way up. A
# bfloat16 is the upper half of a float32, so there both are done on the bits.


@triton.jit
def to_f32(x):
    """Any float -> float32, exact."""
    if x.dtype == tl.bfloat16:  # compiled to fewer instructions than x.to(tl.float32), too
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def from_f32(x, dtype: tl.constexpr):
    """float32 -> dtype, nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet_nan = (bits >> 16) | 0x40
        is_nan = (bits & MAGNITUDE) > INF_BITS
        return tl.where(is_nan, quiet_nan, rounded).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


# ---- E2M1 and E4M3, to and from wider floats ------------------------------------------------


@triton.jit
def e2m1_to_f16(codes):
    """Codes 0..15 in any integer type -> float16, the value over E2M1_F16_SCALE (exact; code 1 is
    subnormal).
    """
    bits = codes.to(tl.uint16)
    return (((bits & 8) << 12) | ((bits & 7) << 9)).to(tl.float16, bitcast=True)


@triton.jit
def e4m3_to_f16(scales, SM: tl.constexpr):
    """uint8 -> float16 (exact): E4M3's bits seven up read as the value times 2^-8."""
    if SM >= FP8 and not INTERPRETED:
        return scales.to(tl.float8e4nv, bitcast=True).to(tl.float16)
    else:
        bits = scales.to(tl.uint16)
        value = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
        return tl.where((bits & 0x7F) == NAN_SCALE, float("nan"), value).to(tl.float16)


@triton.jit
def f32_to_e4m3(x, SM: tl.constexpr):
    """float32 in [0, Inf] -> uint8, nearest even, saturating at 448; NaN -> NAN_SCALE."""
    if SM >= HOPPER and not INTERPRETED:  # on sm_89 Triton 3.6 would round twice
        return x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        is_nan = x != x
        x = tl.minimum(x, E4M3_MAX)
        bits = x.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - ((127 - 7) << 3)
        # Below 2^-6 E4M3 counts in steps of 2^-9, which is what a float32 near 2^14 does.
        subnormal = (x + 16384.0).to(tl.int32, bitcast=True) & 0xF
        scales = tl.where(x < 0.015625, subnormal, normal)
        return tl.where(is_nan, NAN_SCALE, scales).to(tl.uint8)


@triton.jit
def round_to_e2m1(x):
    """float32 -> float32, nearest even, saturating at 6 (NaN too), the sign kept."""
    # Where E2M1 counts in halves, ones or twos, a float32 2^22 times as large as 1, 2 or 4 does.
    # That product is exact, so that a fused multiply-add rounds as an addition does.
    magnitude = tl.minimum(tl.abs(x), 6.0)
    power = tl.maximum(magnitude, 1.0).to(tl.int32, bitcast=True) & INF_BITS
    power = power.to(tl.float32, bitcast=True)
    large = tl.full(x.shape, 2.0**22, tl.float32)
    rounded = tl.fma(power, -large, tl.fma(power, large, magnitude))
    sign = x.to(tl.int32, bitcast=True) & SIGN
    return (rounded.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


E2M1_PTX = tl.constexpr("""{
    .reg .b8 a, b, c, d;
    cvt.rn.satfinite.e2m1x2.f32 a, $2, $1;
    cvt.rn.satfinite.e2m1x2.f32 b, $4, $3;
    cvt.rn.satfinite.e2m1x2.f32 c, $6, $5;
    cvt.rn.satfinite.e2m1x2.f32 d, $8, $7;
    mov.b32 $0, {a, b, c, d};
}""")

# The upper bytes first, of the even elements and of the odd ones: half the instructions.
SIGNS_PTX = tl.constexpr("""{
    .reg .b32 even, odd, upper;
    prmt.b32 even, $1, $3, 0x0073;
    prmt.b32 upper, $5, $7, 0x0073;
    prmt.b32 even, even, upper, 0x5410;
    prmt.b32 odd, $2, $4, 0x0073;
    prmt.b32 upper, $6, $8, 0x0073;
    prmt.b32 odd, odd, upper, 0x5410;
    shr.u32 even, even, 4;
    and.b32 even, even, 0x08080808;
    and.b32 odd, odd, 0x80808080;
    or.b32 $0, even, odd;
}""")


@triton.jit
def pack(x, is_nan, SM: tl.constexpr):
    """float32 [R, C/16, 16] -> int32 [R, C/16, 2], eight codes a word: nearest even, saturating at
    6. Of a block that has a NaN, is_nan [R, C/16], all codes are 6.
    """
    if INTERPRETED:  # where each operation costs, however small its tensors
        nibble = (tl.arange(0, BLOCK) % 8) * 4
        signs = tl.where(is_nan[:, :, None], 0, (x.to(tl.int32, bitcast=True) >> 31) & 8)
        codes = ((_count(x) & 7) | signs) << nibble[None, None, :]
        # In disjoint nibbles a sum is a union.
        return tl.sum(codes.reshape(x.shape[0], x.shape[1], 2, 8), axis=3)
    x0, x1, x2, x3, x4, x5, x6, x7 = _eighths(x)
    if SM >= BLACKWELL:
        return _of_eight(E2M1_PTX, x0, x1, x2, x3, x4, x5, x6, x7)
    else:
        words = (_count(x7) << 4) + _count(x6)
        words = (words << 4) + _count(x5)
        words = (words << 4) + _count(x4)
        words = (words << 4) + _count(x3)
        words = (words << 4) + _count(x2)
        words = (words << 4) + _count(x1)
        words = (words << 4) + _count(x0)
        signs = _signs(x0, x1, x2, x3, x4, x5, x6, x7)
        return (words - ZEROS) | tl.where(is_nan[:, :, None], 0, signs)


@triton.jit
def _eighths(x):
    """[R, C/16, 16] -> of each half of a block its eight elements: each [R, C/16, 2]."""
    x = x.reshape(x.shape[0], x.shape[1], 2, 2, 2, 2)
    even, odd = tl.split(x)
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x1, x5 = tl.split(x15)
    x2, x6 = tl.split(x26)
    x3, x7 = tl.split(x37)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def _of_eight(PTX: tl.constexpr, x0, x1, x2, x3, x4, x5, x6, x7):
    """Eight float32 tensors -> int32."""
    return tl.inline_asm_elementwise(
        PTX,
        "=r,f,f,f,f,f,f,f,f",
        [x0, x1, x2, x3, x4, x5, x6, x7],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _count(x):
    """float32 -> int32: a magnitude's code, 0..7, in the lowest bits of 2^23's; NaN's is 7."""
    # Codes count halves up to 2, then ones from 2 on, then twos: each the least of the three
    # counts, which a float32 from 2^23 on, where it has no fraction, rounds as E2M1 does. The
    # products are exact, so that a fused multiply-add rounds as an addition does. As integers such
    # floats order alike, and Hopper has a minimum of three.
    magnitude = tl.minimum(tl.abs(x), 6.0)
    halves = _line(magnitude, 2.0, 0).to(tl.int32, bitcast=True)
    ones = _line(magnitude, 1.0, 2).to(tl.int32, bitcast=True)
    twos = _line(magnitude, 0.5, 4).to(tl.int32, bitcast=True)
    return tl.minimum(tl.minimum(halves, ones), twos)


@triton.jit
def _line(x, SLOPE: tl.constexpr, OFFSET: tl.constexpr):
    if INTERPRETED:  # which makes an fma with great care
        return x * SLOPE + (2.0**23 + OFFSET)
    else:
        slope = tl.full(x.shape, SLOPE, tl.float32)
        return tl.fma(x, slope, tl.full(x.shape, 2.0**23 + OFFSET, tl.float32))


@triton.jit
def _signs(x0, x1, x2, x3, x4, x5, x6, x7):
    """float32 -> int32: the sign of element i at bit 4 i + 3."""
    return _of_eight(SIGNS_PTX, x0, x1, x2, x3, x4, x5, x6, x7)
