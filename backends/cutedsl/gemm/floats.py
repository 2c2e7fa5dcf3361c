"""Arithmetic on float32 by PTX instruction, and conversions to narrower floats.

Each operation is rounded once, to nearest even, and is not contracted with another.
"""

from collections.abc import Sequence

from cutlass import Float32, Int32
from cutlass.cutlass_dsl import dsl_user_op

from nvfp4.backends.cutedsl.gemm.ptx import asm

Pair = tuple[Float32, Float32]


# pairs


def _pair(instruction: str, operands: Sequence[tuple[Float32, Float32]], loc, ip):
    """A packed float32x2 instruction."""
    names = "abc"[: len(operands)]
    unpacked = [value for pair in operands for value in pair]
    loads = "".join(f"mov.b64 {n}, {{${2 * i + 2}, ${2 * i + 3}}};\n" for i, n in enumerate(names))
    text = f"{{\n.reg .b64 {', '.join(names)}, d;\n{loads}{instruction} d, {', '.join(names)};\n"
    return asm(text + "mov.b64 {$0, $1}, d;\n}", unpacked, (Float32, Float32), loc, ip)


@dsl_user_op
def multiply2(a: Pair, b: Pair, *, loc=None, ip=None) -> Pair:
    return _pair("mul.rn.f32x2", [a, b], loc, ip)


@dsl_user_op
def add2(a: Pair, b: Pair, *, loc=None, ip=None) -> Pair:
    return _pair("add.rn.f32x2", [a, b], loc, ip)


@dsl_user_op
def subtract2(a: Pair, b: Pair, *, loc=None, ip=None) -> Pair:
    return _pair("sub.rn.f32x2", [a, b], loc, ip)


@dsl_user_op
def multiply2_ftz(a: Pair, b: Pair, *, loc=None, ip=None) -> Pair:
    """Denormals count as zero: for a product that is added to something much larger, where they
    change nothing. ptxas 12.9 contracts mul.rn.f32x2 and add.rn.f32x2, which PTX ISA forbids, to a
    fused multiply-add, even with --fmad=false; but not these two.
    """
    return _pair("mul.rn.ftz.f32x2", [a, b], loc, ip)


@dsl_user_op
def fma2(a: Pair, b: Pair, c: Pair, *, loc=None, ip=None) -> Pair:
    return _pair("fma.rn.f32x2", [a, b, c], loc, ip)


@dsl_user_op
def fma(a: Float32, b: Float32, c: Float32, *, loc=None, ip=None) -> Float32:
    return asm("fma.rn.f32 $0, $1, $2, $3;", [a, b, c], (Float32,), loc, ip)


@dsl_user_op
def pack2(pair: Pair, type_: str, *, loc=None, ip=None) -> Int32:
    """Two float32 -> bf16x2 or f16x2, rounded to nearest even; the first in the low half."""
    text = f"cvt.rn.{type_}x2.f32 $0, $2, $1;"
    return asm(text, list(pair), (Int32,), loc, ip)


@dsl_user_op
def round2(pair: Pair, type_: str, *, loc=None, ip=None) -> Pair:
    """Two float32 rounded to bf16 or f16 and back."""
    back = "cvt.f32.f16 $0, low;\ncvt.f32.f16 $1, high;"
    if type_ == "bf16":  # the upper half of a float32
        back = "mov.b32 $0, {zero, low};\nmov.b32 $1, {zero, high};"
    text = f"""{{
.reg .b16 low, high, zero;
.reg .b32 both;
mov.b16 zero, 0;
cvt.rn.{type_}x2.f32 both, $3, $2;
mov.b32 {{low, high}}, both;
{back}
}}"""
    return asm(text, list(pair), (Float32, Float32), loc, ip)


# single numbers


def _float(instruction: str, operands: Sequence[Float32], loc, ip) -> Float32:
    names = ", ".join(f"${i + 1}" for i in range(len(operands)))
    return asm(f"{instruction} $0, {names};", operands, (Float32,), loc, ip)


@dsl_user_op
def multiply(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    return _float("mul.rn.f32", [a, b], loc, ip)


@dsl_user_op
def divide(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    return _float("div.rn.f32", [a, b], loc, ip)


@dsl_user_op
def reciprocal(a: Float32, *, loc=None, ip=None) -> Float32:
    """1 / a, which div.rn.f32 gives too."""
    return _float("rcp.rn.f32", [a], loc, ip)


@dsl_user_op
def reciprocal_approx(a: Float32, *, loc=None, ip=None) -> Float32:
    return _float("rcp.approx.ftz.f32", [a], loc, ip)


@dsl_user_op
def min(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    return _float("min.f32", [a, b], loc, ip)


@dsl_user_op
def max(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    return _float("max.f32", [a, b], loc, ip)


@dsl_user_op
def min_nan(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    """min, NaN if one is."""
    return _float("min.NaN.f32", [a, b], loc, ip)


@dsl_user_op
def max_nan(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    return _float("max.NaN.f32", [a, b], loc, ip)


@dsl_user_op
def largest_magnitude(values: Sequence[Float32], *, loc=None, ip=None) -> Float32:
    """The largest magnitude of all; NaN if one is NaN."""
    text = "{\n.reg .f32 a, b;\nabs.f32 a, $1;\n"
    for i in range(1, len(values)):
        text += f"abs.f32 b, ${i + 1};\nmax.NaN.f32 a, a, b;\n"
    return asm(text + "mov.f32 $0, a;\n}", values, (Float32,), loc, ip)


@dsl_user_op
def smallest_magnitude(values: Sequence[Float32], *, loc=None, ip=None) -> Float32:
    """The smallest magnitude of all that are not NaN."""
    text = "{\n.reg .f32 a, b;\nabs.f32 a, $1;\n"
    for i in range(1, len(values)):
        text += f"abs.f32 b, ${i + 1};\nmin.f32 a, a, b;\n"
    return asm(text + "mov.f32 $0, a;\n}", values, (Float32,), loc, ip)


@dsl_user_op
def zero_if_zero(value: Float32, other: Float32, *, loc=None, ip=None) -> Float32:
    """value, but 0 where other is 0."""
    text = "{\n.reg .pred zero;\nsetp.eq.f32 zero, $2, 0f00000000;\n"
    text += "selp.f32 $0, 0f00000000, $1, zero;\n}"
    return asm(text, [value, other], (Float32,), loc, ip)


@dsl_user_op
def add(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    return _float("add.rn.f32", [a, b], loc, ip)


@dsl_user_op
def if_less(a: Float32, b: Float32, then: Int32, other: Int32, *, loc=None, ip=None) -> Int32:
    """then where a < b, else other: also where one of the two is NaN."""
    text = "{\n.reg .pred less;\nsetp.lt.f32 less, $1, $2;\nselp.b32 $0, $3, $4, less;\n}"
    return asm(text, [a, b, then, other], (Int32,), loc, ip)


@dsl_user_op
def squared_distance_to_e2m1(value: Float32, *, loc=None, ip=None) -> Float32:
    """The square of what is lost when a value is rounded to E2M1, at most 6; NaN for a NaN.

    A float32 2^22 times as large as the power of two below has E2M1's step. The packed
    instructions are not for this: ptxas contracts their products and sums (multiply2_ftz).
    """
    text = """{
.reg .f32 size, bounded, power, rounded, d;
.reg .b32 bits;
abs.f32 size, $1;
min.f32 bounded, size, 0f40C00000;
max.f32 power, bounded, 0f3F800000;
mov.b32 bits, power;
and.b32 bits, bits, 0x7F800000;
mov.b32 power, bits;
fma.rn.f32 rounded, power, 0f4A800000, bounded;
fma.rn.f32 rounded, power, 0fCA800000, rounded;
sub.rn.f32 d, size, rounded;
mul.rn.f32 $0, d, d;
}"""
    return asm(text, [value], (Float32,), loc, ip)


@dsl_user_op
def times_power_of_2(value: Float32, shifted: Float32, *, loc=None, ip=None) -> Float32:
    """value * 2^n, n the low bits of `shifted`: added to the exponent."""
    text = """{
.reg .b32 n, bits;
mov.b32 n, $2;
mov.b32 bits, $1;
shl.b32 n, n, 23;
add.s32 bits, bits, n;
mov.b32 $0, bits;
}"""
    return asm(text, [value, shifted], (Float32,), loc, ip)


# 8-bit and 4-bit floats, rounded to nearest even, saturating


@dsl_user_op
def to_e4m3x2(low: Float32, high: Float32, *, loc=None, ip=None) -> Int32:
    """Two scales in the low half; NaN is 0x7F."""
    text = """{
.reg .b16 both, zero;
mov.b16 zero, 0;
cvt.rn.satfinite.e4m3x2.f32 both, $2, $1;
mov.b32 $0, {both, zero};
}"""
    return asm(text, [low, high], (Int32,), loc, ip)


@dsl_user_op
def from_e4m3x2(scales: Int32, *, loc=None, ip=None) -> Pair:
    text = """{
.reg .b16 both, low, high;
.reg .b32 halves;
mov.b32 {both, _}, $2;
cvt.rn.f16x2.e4m3x2 halves, both;
mov.b32 {low, high}, halves;
cvt.f32.f16 $0, low;
cvt.f32.f16 $1, high;
}"""
    return asm(text, [scales], (Float32, Float32), loc, ip)


@dsl_user_op
def to_e2m1x8(values: Sequence[Float32], *, loc=None, ip=None) -> Int32:
    """Eight codes, the first in the lowest bits; NaN is 0x7."""
    text = "{\n.reg .b8 a, b, c, d;\n"
    for i, name in enumerate("abcd"):
        text += f"cvt.rn.satfinite.e2m1x2.f32 {name}, ${2 * i + 2}, ${2 * i + 1};\n"
    return asm(text + "mov.b32 $0, {a, b, c, d};\n}", values, (Int32,), loc, ip)
