"""Device functions that convert bfloat16, E2M1 and E4M3 to and from wider floats.

They use integer and IEEE float32 arithmetic, which every GPU and Triton's interpreter round alike.
sm_80 has no FP8 type, so E4M3 is uint8 here.
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
"""A word of eight zeros by _count: 2^23's bits, 0x4B000000, shifted to each nibble and summed in 32
bits.
"""

E2M1_F16_SCALE = tl.constexpr(2.0**14)
"""e2m1_to_f16 returns the value over 2^14: float16's exponent bias is 14 above E2M1's."""


# ---- bfloat16 -------------------------------------------------------------------------------
# Triton's interpreter truncates where the hardware rounds, and loses subnormals when it widens. A
# bfloat16 is the upper half of a float32, so the interpreter converts its bits.


@triton.jit
def to_f32(x):
    """Convert any float to float32, exactly."""
    if x.dtype == tl.bfloat16:  # also fewer instructions than x.to(tl.float32)
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def from_f32(x, dtype: tl.constexpr):
    """Convert float32 to dtype, rounding to nearest even."""
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
    """Convert codes 0..15 of any integer type to float16, the value over E2M1_F16_SCALE.

    Exact; code 1 becomes a subnormal.
    """
    bits = codes.to(tl.uint16)
    return (((bits & 8) << 12) | ((bits & 7) << 9)).to(tl.float16, bitcast=True)


@triton.jit
def e4m3_to_f16(scales, SM: tl.constexpr):
    """Convert E4M3 (uint8) to float16, exactly; its bits shifted up by seven are value * 2^-8."""
    if SM >= FP8 and not INTERPRETED:
        return scales.to(tl.float8e4nv, bitcast=True).to(tl.float16)
    else:
        bits = scales.to(tl.uint16)
        value = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
        return tl.where((bits & 0x7F) == NAN_SCALE, float("nan"), value).to(tl.float16)


@triton.jit
def f32_to_e4m3(x, SM: tl.constexpr):
    """Round float32 in [0, Inf] to E4M3 (uint8), nearest even, at most 448; NaN: NAN_SCALE."""
    if SM >= HOPPER and not INTERPRETED:  # on sm_89 Triton 3.6 would round twice
        return x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        is_nan = x != x
        x = tl.minimum(x, E4M3_MAX)
        bits = x.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - ((127 - 7) << 3)
        # Below 2^-6 E4M3's step is 2^-9, as a float32's near 2^14 is.
        subnormal = (x + 16384.0).to(tl.int32, bitcast=True) & 0xF
        scales = tl.where(x < 0.015625, subnormal, normal)
        return tl.where(is_nan, NAN_SCALE, scales).to(tl.uint8)


@triton.jit
def round_to_e2m1(x):
    """Round float32 to E2M1's values, nearest even, saturating at 6 (NaN too), keeping the sign."""
    # E2M1's step is 1/2, 1 or 2 from 1, 2 or 4 on. A float32 2^22 times as large has that step too.
    # The product is exact, so a fused multiply-add rounds as an addition does.
    magnitude = tl.minimum(tl.abs(x), 6.0)
    power = tl.maximum(magnitude, 1.0).to(tl.int32, bitcast=True) & INF_BITS
    power = power.to(tl.float32, bitcast=True)
    rounded = _add_exact(power, -(2.0**22), _add_exact(power, 2.0**22, magnitude))
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

# Gathering the upper bytes of the even and the odd elements first takes half the instructions.
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
    """Round float32 [R, C/16, 16] to E2M1 codes in int32 [R, C/16, 2], eight codes a word.

    Nearest even, saturating at 6. All codes of a block with a NaN, is_nan [R, C/16], are 6.
    """
    if INTERPRETED:  # few operations: each costs the same, however small its tensors
        nibble = (tl.arange(0, BLOCK) % 8) * 4
        signs = tl.where(is_nan[:, :, None], 0, (x.to(tl.int32, bitcast=True) >> 31) & 8)
        codes = ((_count(x) & 7) | signs) << nibble[None, None, :]
        # The nibbles are disjoint, so a sum joins them.
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
    """Split [R, C/16, 16] into eight tensors [R, C/16, 2], an element of each half block."""
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
    """Run PTX on eight float32 tensors that makes one int32."""
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
    """Return 2^23's bits plus the magnitude's code, 0..7, as int32; a NaN's code is 7."""
    # A code counts halves up to 2, ones from 2 on and twos from 4 on: it is the least of the three
    # counts. A float32 from 2^23 on has no fraction, so adding 2^23 rounds a count as E2M1 does.
    # The products are exact, so a fused multiply-add rounds as an addition does. Such floats order
    # as integers do, and Hopper has a minimum of three integers.
    magnitude = tl.minimum(tl.abs(x), 6.0)
    halves = _line(magnitude, 2.0, 0).to(tl.int32, bitcast=True)
    ones = _line(magnitude, 1.0, 2).to(tl.int32, bitcast=True)
    twos = _line(magnitude, 0.5, 4).to(tl.int32, bitcast=True)
    return tl.minimum(tl.minimum(halves, ones), twos)


@triton.jit
def _line(x, SLOPE: tl.constexpr, OFFSET: tl.constexpr):
    """Compute x * SLOPE + 2^23 + OFFSET."""
    return _add_exact(x, SLOPE, tl.full(x.shape, 2.0**23 + OFFSET, tl.float32))


@triton.jit
def square(x):
    """Compute x * x, rounded before anything is added to it.

    On sm_100, ptxas 12.9 makes one fused multiply-add of a packed product and a packed sum, which
    the PTX ISA forbids. A fused multiply-add with zero is not contracted.
    """
    if INTERPRETED:  # the interpreter's fma is slow
        return x * x
    else:
        return tl.fma(x, x, tl.zeros(x.shape, tl.float32))


@triton.jit
def _add_exact(x, FACTOR: tl.constexpr, y):
    """Compute x * FACTOR + y, where the product is exact."""
    if INTERPRETED:  # the interpreter's fma is slow
        return x * FACTOR + y
    else:
        return tl.fma(x, tl.full(x.shape, FACTOR, tl.float32), y)


@triton.jit
def _signs(x0, x1, x2, x3, x4, x5, x6, x7):
    """Gather the signs of eight float32 tensors in int32, element i's at bit 4 i + 3."""
    return _of_eight(SIGNS_PTX, x0, x1, x2, x3, x4, x5, x6, x7)
