"""What instructions on floats do in the emulator, against numpy and exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from emulated_ptx import run
from emulated_values import (
    ALL,
    each,
    floats,
    ints,
    operands,
    s,
    unsigned,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nvfp4.emulator import UnsupportedInstruction


def same_floats(got: np.ndarray, want: np.ndarray) -> None:
    """The same bits, where they are no NaN."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    finite = ~np.isnan(want)
    np.testing.assert_array_equal(unsigned(got)[finite], unsigned(want)[finite])


def chosen(choose, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """min or max: a number rather than a NaN, and -0 below +0."""

    def one(x: np.floating, y: np.floating) -> np.floating:
        if np.isnan(x) or np.isnan(y):
            return y if np.isnan(x) else x
        return choose(x, y, key=lambda v: (v, not np.signbit(v)))

    return np.array([one(x, y) for x, y in zip(a, b, strict=True)], a.dtype)


FLOATS = {
    "add.rn": lambda a, b: a + b,
    "sub.rn": lambda a, b: a - b,
    "mul.rn": lambda a, b: a * b,
    "div.rn": lambda a, b: a / b,
    "min": lambda a, b: chosen(min, a, b),
    "max": lambda a, b: chosen(max, a, b),
}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", FLOATS)
@operands
@given(data=st.data())
def test_floats(name, bits, data):
    a, b = data.draw(floats(bits)), data.draw(floats(bits))
    with np.errstate(all="ignore"):
        want = FLOATS[name](a, b)
    same_floats(each(f"{name}.f{bits} {{0}},{{1}},{{2}};", f"f{bits // 8}", a, b), want)


def rounded(exact: Fraction, dtype: type) -> np.floating:
    """The nearest float of an exact number, ties to even; the exact number is not zero."""
    near = dtype(float(exact))
    around = [np.nextafter(near, dtype(-np.inf)), near, np.nextafter(near, dtype(np.inf))]
    finite = [x for x in around if np.isfinite(x)]
    return min(finite, key=lambda x: (abs(Fraction(float(x)) - exact), int(unsigned(x)) & 1))


@pytest.mark.parametrize("bits", [32, 64])
@operands
@given(data=st.data())
def test_fma_rounds_once(bits, data):
    dtype = {32: np.float32, 64: np.float64}[bits]
    small = st.floats(-(2.0**30), 2.0**30, width=bits)
    near = st.integers(-8, 8).map(lambda i: 1 + i * 2.0 ** (-12 if bits == 32 else -27))
    a, b, c = (data.draw(arrays(dtype, 32, elements=small | near)) for _ in range(3))
    got = each(f"fma.rn.f{bits} {{0}},{{1}},{{2}},{{3}};", f"f{bits // 8}", a, b, c)
    for x, y, z, result in zip(a.tolist(), b.tolist(), c.tolist(), got, strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        if exact:
            assert result == rounded(exact, dtype), (x, y, z)
        else:
            assert result == 0


def test_fma_keeps_infinities_and_nans():
    a = np.resize(np.float32([np.inf, np.inf, np.nan, 1, 3e38, -3e38, 0]), 32)
    b = np.resize(np.float32([2, 0, 1, 1, 3e38, 3e38, np.inf]), 32)
    c = np.resize(np.float32([1, 1, 1, np.inf, 0, 0, 1]), 32)
    with np.errstate(all="ignore"):
        want = a * b + c
    same_floats(each("fma.rn.f32 {0},{1},{2},{3};", "f4", a, b, c), want)


def test_packed_floats():
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(64).astype(np.float32) for _ in range(3))
    pairs = [x.view(np.uint64) for x in (a, b, c)]
    for name, want in (("add", a + b), ("mul", a * b), ("sub", a - b)):
        got = each(f"{name}.rn.f32x2 {{0}},{{1}},{{2}};", "u8", *pairs[:2])
        np.testing.assert_array_equal(got.view(np.float32), want)
    got = each("fma.rn.f32x2 {0},{1},{2},{3};", "u8", *pairs).view(np.float32)
    rows = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in rows]
    assert got.tolist() == [rounded(e, np.float32) for e in exact]


# Values around each rounding: halves, ties, the ends of the ranges, infinities, NaN
VALUES = np.float32(
    [0, -0.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 0.49999997, -0.49999997, 3.75, -3.75]
    + [255.5, 2147483520]
    + [2147483648, -2147483648, -2147483904, 4294967040, 4294967296, 1e20, -1e20, 9.3e18, 1.9e19]
    + [np.inf, -np.inf, np.nan, 1e-40, -1e-40, 8388607.5, 16777216, 65504, 127.5]
)  # fmt: skip


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16", "u8"])
@pytest.mark.parametrize("rounding", ["rni", "rzi", "rmi", "rpi"])
def test_floats_to_integers(kind, rounding):
    """They saturate; NaN gives zero, for 64 bits the highest bit alone."""
    function = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[rounding]
    bits = int(kind[1:])
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)
    want = []
    for value in VALUES.tolist():
        if math.isnan(value):
            want.append(1 << 63 if bits == 64 else 0)
        elif math.isinf(value):
            want.append(high if value > 0 else low)
        else:
            want.append(min(max(function(value), low), high))
    size = max(bits, 16)
    got = each(f"cvt.{rounding}.{kind}.f32 {{0}},{{1}};", f"u{size // 8}", VALUES)
    assert got.tolist() == [w & (1 << size) - 1 for w in want]


@pytest.mark.parametrize("rounding", ["rni", "rzi", "rmi", "rpi"])
def test_floats_to_whole_floats(rounding):
    function = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding]
    same_floats(each(f"cvt.{rounding}.f32.f32 {{0}},{{1}};", "f4", VALUES), function(VALUES))


@operands
@given(values=ints(32), wide=ints(64))
def test_integers_to_floats(values, wide):
    for text, array, number in (
        ("cvt.rn.f32.s32 {0},{1};", values, lambda v: s(v, 32)),
        ("cvt.rn.f32.u32 {0},{1};", values, int),
        ("cvt.rn.f32.s64 {0},{1};", wide, lambda v: s(v, 64)),
    ):
        want = [rounded(Fraction(number(v)), np.float32) if v else 0 for v in array.tolist()]
        assert each(text, "f4", array).tolist() == want


def halfway(dtype: type, step: int) -> np.ndarray:
    """Numbers of float32 around the ties between neighbours of a narrow format: its value, just
    below the middle, the middle, just above it, for even and odd neighbours and both signs.
    """
    base = np.array([0x3F800000, 0x3F800000 + step, 0x40490000, 0xBF800000], np.uint32)
    base &= np.uint32(ALL - (step - 1))
    offsets = np.array(
        [0, 1, step // 2 - 1, step // 2, step // 2 + 1, step - 1, step, 2], np.uint32
    )
    return (base[:, None] + offsets).reshape(-1).view(dtype)


def packed(text: str, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    return each(text, "u4", upper, lower)


def test_packing_to_bfloat16_rounds_ties_to_even():
    values = halfway(np.float32, 1 << 16)
    want = torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
    got = packed("cvt.rn.bf16x2.f32 {0},{1},{2};", values, values[::-1].copy())
    np.testing.assert_array_equal(got >> 16, want)
    np.testing.assert_array_equal(got & 0xFFFF, want[::-1])
    assert want[2:5].tolist() == [0x3F80, 0x3F80, 0x3F81]  # 1 + 2^-8 is a tie: down, to the even
    assert want[11] == 0x3F82  # and from the odd 1 + 2^-7 up
    np.testing.assert_array_equal(each("cvt.rn.bf16.f32 {0},{1};", "u2", values), want)


def test_packing_to_float16_rounds_ties_to_even():
    values = halfway(np.float32, 1 << 13)
    with np.errstate(over="ignore"):
        want = values.astype(np.float16).view(np.uint16)
    got = packed("cvt.rn.f16x2.f32 {0},{1},{2};", values, values[::-1].copy())
    np.testing.assert_array_equal(got >> 16, want)
    np.testing.assert_array_equal(got & 0xFFFF, want[::-1])
    assert want[2:5].tolist() == [0x3C00, 0x3C00, 0x3C01]
    np.testing.assert_array_equal(each("cvt.rn.f16.f32 {0},{1};", "u2", values), want)
    wide = np.resize(np.float32([65504, 65519.99, 65520, -65520, 2.0**-24, 2.0**-25, 1e-9]), 32)
    want = [0x7BFF, 0x7BFF, 0x7C00, 0xFC00, 0x0001, 0x0000, 0x0000]
    assert each("cvt.rn.f16.f32 {0},{1};", "u2", wide)[:7].tolist() == want


def test_nans_are_canonical():
    nans = np.full(32, np.uint32(0xFFC12345)).view(np.float32)
    zeros = np.zeros(32, np.float32)
    assert (packed("cvt.rn.bf16x2.f32 {0},{1},{2};", nans, zeros) == 0x7FFF0000).all()
    assert (packed("cvt.rn.f16x2.f32 {0},{1},{2};", zeros, nans) == 0x7FFF).all()


def test_narrow_floats_widen_exactly():
    codes = np.arange(0, 65536, 2048, dtype=np.uint16)
    same_floats(
        each("cvt.f32.f16 {0},{1};", "f4", codes), codes.view(np.float16).astype(np.float32)
    )
    want = (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)
    same_floats(each("cvt.f32.bf16 {0},{1};", "f4", codes), want)
    values = VALUES.astype(np.float64) * (1 + 2.0**-24)
    with np.errstate(over="ignore"):
        same_floats(each("cvt.rn.f32.f64 {0},{1};", "f4", values), values.astype(np.float32))


def test_packing_to_four_and_eight_bits():
    ladder = [
        0.25,
        0.75,
        1.25,
        1.75,
        2.5,
        3.5,
        5,
        100,
        np.nan,
        -0.25,
        -0.75,
        -5,
        0,
        -0.0,
        0.26,
        4.99,
    ]
    values = np.resize(np.float32(ladder), 32)
    text = "{{ .reg .b8 %c; cvt.rn.satfinite.e2m1x2.f32 %c,{1},{2}; cvt.u32.u8 {0},%c; }}"
    codes = [0, 2, 2, 4, 4, 6, 6, 7, 7, 8, 10, 14, 0, 8, 1, 6]
    got = packed(text, values, np.roll(values, 1))
    assert got[1:16].tolist() == [codes[i] << 4 | codes[i - 1] for i in range(1, 16)]
    ladder = [1, 448, 464, 1000, np.nan, -1, 2.0**-9, 2.0**-10, 1.0625, 1.1875, 0, 3 * 2.0**-10]
    codes = [0x38, 0x7E, 0x7E, 0x7E, 0x7F, 0xB8, 0x01, 0x00, 0x38, 0x3A, 0x00, 0x02]
    values = np.resize(np.float32(ladder), 32)
    text = "cvt.rn.satfinite.e4m3x2.f32 %h40,{1},{2}; cvt.u32.u16 {0},%h40;"
    got = packed(text, values, np.roll(values, 1))
    assert got[1:12].tolist() == [codes[i] << 8 | codes[i - 1] for i in range(1, 12)]


def test_min_and_max_that_keep_nans():
    """The canonical NaN if either is one; else as without .NaN, -0 below +0."""
    a = np.resize(np.float32([np.nan, 1, -np.nan, -0.0, 0.0, np.inf, -2, np.nan]), 32)
    b = np.resize(np.float32([1, np.nan, -np.nan, 0.0, -0.0, 1, 3, np.inf]), 32)
    nan = np.isnan(a) | np.isnan(b)
    for name, choose in (("min", min), ("max", max)):
        got = each(f"{name}.NaN.f32 {{0}},{{1}},{{2}};", "u4", a, b)
        assert (got[nan] == 0x7FFFFFFF).all()
        np.testing.assert_array_equal(got[~nan], unsigned(chosen(choose, a, b))[~nan])


@pytest.mark.parametrize("kind", ["f32", "f32x2"])
def test_products_that_flush_denormals(kind):
    """Operands and results; zeros keep their signs."""
    small = [1e-39, -1e-39, 1e-30, -1e-30, 2.0**-126, -(2.0**-126), 0, -0.0]
    a = np.resize(np.float32([x for x in small for _ in range(8)]), 64)
    b = np.resize(np.float32([1, -1, 1e-9, 0.5, np.inf, 1e30, np.nan, 1e-39]), 64)

    def flushed(x: np.ndarray) -> np.ndarray:
        return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)

    with np.errstate(all="ignore"):
        want = flushed(flushed(a) * flushed(b))
    if kind == "f32":
        got = np.concatenate(
            [
                each("mul.rn.ftz.f32 {0},{1},{2};", "f4", a[i : i + 32], b[i : i + 32])
                for i in (0, 32)
            ]
        )
    else:
        pairs = a.view(np.uint64), b.view(np.uint64)
        got = each("mul.rn.ftz.f32x2 {0},{1},{2};", "u8", *pairs).view(np.float32)
    same_floats(got, want)


def test_unpacking_from_eight_bits():
    """Every code of E4M3, as torch reads it; its NaNs become the canonical one of float16."""
    codes = np.arange(256, dtype=np.uint8)
    values = torch.from_numpy(codes).view(torch.float8_e4m3fn).half().numpy().view(np.uint16)
    want = np.where((codes & 0x7F) == 0x7F, np.uint16(0x7FFF), values)
    for first in range(0, 256, 64):
        pairs = codes[first : first + 64].view(np.uint16)
        got = each("cvt.rn.f16x2.e4m3x2 {0},{1};", "u4", pairs).view(np.uint16)
        np.testing.assert_array_equal(got, want[first : first + 64])


@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_min_and_max_of_three(name, nan):
    random = np.random.default_rng(0)
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 1.5, -2.0], np.float32)
    a, b, c = (random.choice(edges, 64) for _ in range(3))
    for i in (0, 32):
        parts = a[i : i + 32], b[i : i + 32], c[i : i + 32]
        twice = each(f"{name}{nan}.f32 {{0}},{{1}},{{2}};", "u4", *parts[:2]).view(np.float32)
        want = each(f"{name}{nan}.f32 {{0}},{{1}},{{2}};", "u4", twice, parts[2])
        got = each(f"{name}{nan}.f32 {{0}},{{1}},{{2}},{{3}};", "u4", *parts)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "instruction",
    [
        "mul.rn.ftz.f64 %d0, %d1, %d2;",
        "max.NaN.f64 %d0, %d1, %d2;",
        "max.NaN.xorsign.abs.f32 %r0, %r1, %r2;",
        "cvt.rn.relu.f16x2.e4m3x2 %r0, %h1;",
        "cvt.rn.bf16x2.e4m3x2 %r0, %h1;",
    ],
)
def test_what_it_does_not_know_of_them_it_refuses(instruction):
    with pytest.raises(UnsupportedInstruction, match=instruction.split()[0].replace(".", r"\.")):
        run(instruction)


COMPARE = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("name", COMPARE)
@operands
@given(data=st.data())
def test_comparisons(name, data):
    select = " selp.u32 {0}, 0xAAAA, 0x5555, %q0;"
    for kind, bits, view in (
        ("u32", 32, "u4"),
        ("s32", 32, "i4"),
        ("s64", 64, "i8"),
        ("u16", 16, "u2"),
    ):
        a, b = data.draw(ints(bits)), data.draw(ints(bits))
        b[::4] = a[::4]
        want = np.where(COMPARE[name](a.view(view), b.view(view)), 0xAAAA, 0x5555)
        got = each(f"setp.{name}.{kind} %q0,{{1}},{{2}};{select}", "u4", a, b)
        np.testing.assert_array_equal(got, want)
    a, b = data.draw(floats(32)), data.draw(floats(32))
    b[::4], a[1::8], b[2::8] = a[::4], np.nan, np.nan
    nan = np.isnan(a) | np.isnan(b)
    for suffix, true in (("", COMPARE[name](a, b) & ~nan), ("u", COMPARE[name](a, b) | nan)):
        got = each(f"setp.{name}{suffix}.f32 %q0,{{1}},{{2}};{select}", "u4", a, b)
        np.testing.assert_array_equal(got, np.where(true, 0xAAAA, 0x5555))
    for word, true in (("num", ~nan), ("nan", nan)):
        got = each(f"setp.{word}.f32 %q0,{{1}},{{2}};{select}", "u4", a, b)
        np.testing.assert_array_equal(got, np.where(true, 0xAAAA, 0x5555))


def test_predicates_combine_and_negate():
    a, b = (np.arange(32, dtype=np.uint32) >> i & 1 for i in (0, 1))
    text = """
    setp.eq.u32 %q0,{1},1; setp.eq.and.u32 %q1|%q2,{2},1,%q0; setp.eq.or.u32 %q3,{2},1,!%q0;
    setp.eq.u32 %q4,{2},1; xor.pred %q4,%q4,%q0; not.pred %q5,%q0; and.pred %q6,%q4,%q5;
    or.pred %q7,%q6,%q1; mov.pred %q8,%q7; mov.u32 {0},0;
    @%q1 or.b32 {0},{0},1; @%q2 or.b32 {0},{0},2; @%q3 or.b32 {0},{0},4; @!%q4 or.b32 {0},{0},8;
    @%q6 or.b32 {0},{0},16; @!%q8 or.b32 {0},{0},32;
    """
    x, y = a.astype(bool), b.astype(bool)
    want = (y & x) | (~y & x) * 2 | (y | ~x) * 4 | ~(x ^ y) * 8 | ((x ^ y) & ~x) * 16 | ~y * 32
    np.testing.assert_array_equal(each(text, "u4", a, b), want)
