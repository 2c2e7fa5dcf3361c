"""What single instructions do in the emulator, against numpy and Python's exact numbers.

Where values are the same in all lanes the emulator computes with Python ints, elsewhere with arrays
of lanes; `each` runs an instruction both ways.
"""

import functools
import math
import operator
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from emulated_ptx import (
    ALLOCATE,
    AT,
    COPY_OUT,
    FILL,
    FREE,
    LOAD,
    LOAD_BYTES,
    ONE,
    OWN_STORE,
    PEERS,
    RANKS,
    READY,
    STORE,
    STORED,
    WAIT,
    expect,
    fill_tmem,
    kernel,
    registers,
    run,
    tensor_map,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nvfp4.backends.cutedsl.emulator import Hazard, Kind, UnsupportedInstruction, execute

operands = settings(max_examples=12, deadline=None, derandomize=True, database=None)
ALL = 0xFFFFFFFF
NAMES = {8: "h", 16: "h", 32: "r", 64: "d"}


def unsigned(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def tensor(array: np.ndarray) -> torch.Tensor:
    """Its bytes, where torch's allocator aligns them."""
    return torch.from_numpy(np.ascontiguousarray(array).view(np.uint8)).clone()


def each(instruction: str, result: str, *values: np.ndarray) -> np.ndarray:
    """An instruction's results for 32 sets of operands, once in 32 lanes and once in 32 copies of
    the instruction, where all lanes have the same operands. `{0}` is its result, `{1}` ... its
    operands, of the arrays' sizes; `result`: the dtype that it is read as.
    """
    sizes = [np.dtype(result).itemsize, *(v.itemsize for v in values)]
    names = [f"%{NAMES[8 * size]}{i}" for i, size in enumerate(sizes)]
    done = []
    for copies in (1, 32):
        thread, body = "%t" if copies == 1 else "0", ""
        for i, size in enumerate(sizes):
            where = f"%v{i}" if i else "%out"
            body += f"mul.wide.u32 %d{20 + i}, {thread}, {size}; add.s64 %d{20 + i}, %d{20 + i}, "
            body += f"{where};\n"
        for copy in range(copies):
            for i, size in enumerate(sizes[1:], 1):
                body += f"ld.global.b{8 * size} {names[i]}, [%d{20 + i}+{copy * size}];\n"
            body += instruction.format(*names) + "\n"
            body += f"st.global.b{8 * sizes[0]} [%d20+{copy * sizes[0]}], {names[0]};\n"
        memory = {"out": torch.empty(32 * sizes[0], dtype=torch.uint8)}
        memory |= {f"v{i}": tensor(v) for i, v in enumerate(values, 1)}
        run(body, memory, outputs="out")
        done.append(memory["out"].numpy())
    np.testing.assert_array_equal(done[0], done[1], "lanes and copies")
    return done[0].view(result)


def ints(bits: int) -> st.SearchStrategy[np.ndarray]:
    edges = [0, 1, 2, 3, 31, 32, 33, 255, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits) - 1]
    element = st.integers(0, (1 << bits) - 1) | st.sampled_from([e % (1 << bits) for e in edges])
    return arrays(f"u{bits // 8}", 32, elements=element, fill=st.nothing())


def floats(bits: int) -> st.SearchStrategy[np.ndarray]:
    return ints(bits).map(lambda a: a.view(f"f{bits // 8}"))


def s(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


def truncated(a: int, b: int) -> int:
    return math.trunc(Fraction(a, b))


# Integers: (instruction, bits of the result, of the operands, what it is of the operands' patterns)
INTEGERS = [
    ("or.b32 {0},{1},{2};", 32, (32, 32), lambda a, b: a | b),
    ("and.b64 {0},{1},{2};", 64, (64, 64), lambda a, b: a & b),
    ("xor.b16 {0},{1},{2};", 16, (16, 16), lambda a, b: a ^ b),
    ("not.b32 {0},{1};", 32, (32,), lambda a: ~a),
    ("shl.b32 {0},{1},{2};", 32, (32, 32), lambda a, b: a << min(b, 32)),
    ("shl.b64 {0},{1},{2};", 64, (64, 32), lambda a, b: a << min(b, 64)),
    ("shr.u32 {0},{1},{2};", 32, (32, 32), lambda a, b: a >> b),
    ("shr.s32 {0},{1},{2};", 32, (32, 32), lambda a, b: s(a, 32) >> b),
    ("shr.s64 {0},{1},{2};", 64, (64, 32), lambda a, b: s(a, 64) >> b),
    ("shr.u16 {0},{1},{2};", 16, (16, 32), lambda a, b: a >> b),
    ("mul.wide.u16 {0},{1},{2};", 32, (16, 16), lambda a, b: a * b),
    ("mul.wide.s32 {0},{1},{2};", 64, (32, 32), lambda a, b: s(a, 32) * s(b, 32)),
    ("mul.wide.u32 {0},{1},{2};", 64, (32, 32), lambda a, b: a * b),
    ("mad.wide.s32 {0},{1},{2},{3};", 64, (32, 32, 64), lambda a, b, c: s(a, 32) * s(b, 32) + c),
    ("mad.lo.s32 {0},{1},{2},{3};", 32, (32, 32, 32), lambda a, b, c: a * b + c),
    (
        "mad.hi.s32 {0},{1},{2},{3};",
        32,
        (32, 32, 32),
        lambda a, b, c: (s(a, 32) * s(b, 32) >> 32) + c,
    ),
    ("prmt.b32 {0},{1},{2},0x5410;", 32, (32, 32), lambda a, b: a & 0xFFFF | b << 16),
    ("prmt.b32 {0},{1},{2},0x0123;", 32, (32, 32), lambda a, b: int.from_bytes(bytes4(a), "big")),
    ("prmt.b32 {0},{1},{2},0xF765;", 32, (32, 32), lambda a, b: s(b, 32) >> 8),
    ("lop3.b32 {0},{1},{2},{3},0xCA;", 32, (32,) * 3, lambda a, b, c: a & b | ~a & c),
    ("lop3.b32 {0},{1},{2},{3},0x96;", 32, (32,) * 3, lambda a, b, c: a ^ b ^ c),
    ("lop3.b32 {0},{1},{2},{3},0x02;", 32, (32,) * 3, lambda a, b, c: ~a & ~b & c),
    (
        "shf.l.wrap.b32 {0},{1},{2},{3};",
        32,
        (32,) * 3,
        lambda a, b, c: (b << 32 | a) << c % 32 >> 32,
    ),
    ("shf.r.wrap.b32 {0},{1},{2},{3};", 32, (32,) * 3, lambda a, b, c: (b << 32 | a) >> c % 32),
    (
        "shf.l.clamp.b32 {0},{1},{2},{3};",
        32,
        (32,) * 3,
        lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32,
    ),
    (
        "shf.r.clamp.b32 {0},{1},{2},{3};",
        32,
        (32,) * 3,
        lambda a, b, c: (b << 32 | a) >> min(c, 32),
    ),
    ("popc.b32 {0},{1};", 32, (32,), lambda a: f"{a:b}".count("1")),
    ("popc.b64 {0},{1};", 32, (64,), lambda a: f"{a:b}".count("1")),
    ("clz.b32 {0},{1};", 32, (32,), lambda a: f"{a:032b}1".index("1")),
    ("brev.b32 {0},{1};", 32, (32,), lambda a: int(f"{a:032b}"[::-1], 2)),
    ("bfind.u32 {0},{1};", 32, (32,), lambda a: 31 - f"{a:032b}1".index("1")),
    ("bfind.s32 {0},{1};", 32, (32,), lambda a: 31 - f"{min(a, ~a & ALL):032b}1".index("1")),
    ("cvt.u32.u16 {0},{1};", 32, (16,), lambda a: a),
    ("cvt.s32.s16 {0},{1};", 32, (16,), lambda a: s(a, 16)),
    ("cvt.u32.s16 {0},{1};", 32, (16,), lambda a: s(a, 16)),
    ("cvt.s64.s32 {0},{1};", 64, (32,), lambda a: s(a, 32)),
    ("cvt.u64.u32 {0},{1};", 64, (32,), lambda a: a),
    ("cvt.u16.u32 {0},{1};", 16, (32,), lambda a: a),
    ("cvt.u32.u64 {0},{1};", 32, (64,), lambda a: a),
    ("cvt.s32.s8 {0},{1};", 32, (32,), lambda a: s(a & 255, 8)),
    ("cvt.u32.u8 {0},{1};", 32, (32,), lambda a: a & 255),
    ("cvt.sat.s8.s32 {0},{1};", 16, (32,), lambda a: min(max(s(a, 32), -128), 127)),
    ("cvt.sat.u16.s32 {0},{1};", 16, (32,), lambda a: min(max(s(a, 32), 0), 65535)),
    ("cvt.sat.s32.u32 {0},{1};", 32, (32,), lambda a: min(a, (1 << 31) - 1)),
]
for n in (16, 32, 64):
    INTEGERS += [
        (f"add.s{n} {{0}},{{1}},{{2}};", n, (n, n), lambda a, b: a + b),
        (f"sub.u{n} {{0}},{{1}},{{2}};", n, (n, n), lambda a, b: a - b),
        (f"neg.s{n} {{0}},{{1}};", n, (n,), lambda a: -a),
        (f"abs.s{n} {{0}},{{1}};", n, (n,), lambda a, n=n: abs(s(a, n))),
        (f"mul.lo.u{n} {{0}},{{1}},{{2}};", n, (n, n), lambda a, b: a * b),
        (f"mul.hi.u{n} {{0}},{{1}},{{2}};", n, (n, n), lambda a, b, n=n: a * b >> n),
        (f"mul.hi.s{n} {{0}},{{1}},{{2}};", n, (n, n), lambda a, b, n=n: s(a, n) * s(b, n) >> n),
        (f"min.s{n} {{0}},{{1}},{{2}};", n, (n, n), lambda a, b, n=n: min(s(a, n), s(b, n))),
        (f"max.u{n} {{0}},{{1}},{{2}};", n, (n, n), max),
    ]
for n in (32, 64):
    INTEGERS += [
        (f"div.s{n} {{0}},{{1}},{{2}};", n, (n, n), lambda a, b, n=n: truncated(s(a, n), s(b, n))),
        (f"div.u{n} {{0}},{{1}},{{2}};", n, (n, n), lambda a, b: a // b),
        (f"rem.u{n} {{0}},{{1}},{{2}};", n, (n, n), lambda a, b: a % b),
        (
            f"rem.s{n} {{0}},{{1}},{{2}};",
            n,
            (n, n),
            lambda a, b, n=n: s(a, n) - s(b, n) * truncated(s(a, n), s(b, n)),
        ),
    ]


def bytes4(a: int) -> bytes:
    return a.to_bytes(4, "little")


@pytest.mark.parametrize("case", INTEGERS, ids=lambda case: case[0].split(" ")[0])
@operands
@given(data=st.data())
def test_integers(case, data):
    text, bits, sizes, meaning = case
    values = [data.draw(ints(size)) for size in sizes]
    if text.startswith(("div", "rem")):
        values[1] |= values[1].dtype.type(1)  # division by zero has no result
    rows = zip(*(v.tolist() for v in values), strict=True)
    want = [meaning(*row) & (1 << bits) - 1 for row in rows]
    assert each(text, f"u{bits // 8}", *values).tolist() == want


def extracted(value: int, position: int, length: int, letter: str, bits: int) -> int:
    """The pseudocode of PTX ISA, "bfe"."""
    msb, position, length = bits - 1, position & 255, length & 255
    sign = 0 if letter == "u" or not length else value >> min(position + length - 1, msb) & 1
    inside = [i < length and position + i <= msb for i in range(bits)]
    return sum((value >> position + i & 1 if inside[i] else sign) << i for i in range(bits))


@pytest.mark.parametrize("letter", "us")
@pytest.mark.parametrize("bits", [32, 64])
@operands
@given(data=st.data())
def test_bit_fields(letter, bits, data):
    where = arrays("u4", 32, elements=st.integers(0, 70) | st.sampled_from([255, 256, 257]))
    a, b = data.draw(ints(bits)), data.draw(ints(bits))
    position, length = data.draw(where), data.draw(where)
    rows = list(zip(*(v.tolist() for v in (a, b, position, length)), strict=True))
    got = each(f"bfe.{letter}{bits} {{0}},{{1}},{{2}},{{3}};", f"u{bits // 8}", a, position, length)
    assert got.tolist() == [extracted(a, p, n, letter, bits) for a, _, p, n in rows]
    want = []
    for x, y, p, n in rows:  # the same, "bfi"
        field = sum(1 << i for i in range(p & 255, bits) if i < (p & 255) + (n & 255))
        want.append(y & ~field | x << (p & 255) & field)
    got = each(
        f"bfi.b{bits} {{0}},{{1}},{{2}},{{3}},{{4}};", f"u{bits // 8}", a, b, position, length
    )
    assert got.tolist() == want


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


def in_lanes(body: str, lanes: int = 32, **options) -> list[int]:
    """%r0 of each thread after `body`."""
    out = torch.full((lanes,), -1, dtype=torch.int32)
    run(body + STORE, {"out": out}, block=lanes, **options)
    return [v & ALL for v in out.tolist()]


def test_moves_pack_and_unpack():
    body = """
    mov.b32 {%h0,%h1}, %t; mov.b32 %r1, {%h1,%h0}; mov.b64 %d0, {%r1,%t}; mov.b64 {%r2,_}, %d0;
    mov.b64 {_,%r3}, %d0; mov.b64 %d2, 0x1122334455667788; mov.b64 {%r4,%r5}, %d2;
    add.u32 %r0,%r2,%r3; add.u32 %r0,%r0,%r5;
    """
    assert in_lanes(body) == [(lane << 16) + lane + 0x11223344 for lane in range(32)]


@pytest.mark.parametrize(
    "body, want",
    [
        ("setp.lt.u32 %q0,%t,5; @%q0 bra L; mov.u32 %r0,1; bra J; L: mov.u32 %r0,2; J: ",
         [2] * 5 + [1] * 27),
        ("mov.u32 %r0,0; L: add.u32 %r0,%r0,1; setp.le.u32 %q0,%r0,%t; @%q0 bra L;",
         list(range(1, 33))),
        # the lanes are together again after the branch, and after a loop that they leave in turn
        ("setp.lt.u32 %q0,%t,5; @%q0 bra L; activemask.b32 %r1; bra J;\n"
         "L: activemask.b32 %r1; J: activemask.b32 %r2; sub.u32 %r0,%r2,%r1;",
         [ALL - 31] * 5 + [31] * 27),
        ("mov.u32 %r1,0; L: add.u32 %r1,%r1,1; setp.le.u32 %q0,%r1,%t; @%q0 bra L;\n"
         "activemask.b32 %r0;",
         [ALL] * 32),
        # a branch within a branch, and lanes that leave for good
        ("and.b32 %r1,%t,1; setp.eq.u32 %q0,%r1,0; and.b32 %r2,%t,2; setp.eq.u32 %q1,%r2,0;\n"
         "mov.u32 %r0,0; @%q0 bra E; add.u32 %r0,%r0,1; @%q1 bra I; add.u32 %r0,%r0,10;\n"
         "I: add.u32 %r0,%r0,100; E: activemask.b32 %r3; popc.b32 %r3,%r3;\n"
         "mad.lo.u32 %r0,%r3,1000,%r0;",
         [32000, 32101, 32000, 32111] * 8),
        ("setp.ge.u32 %q0,%t,8; @!%q0 bra GO; ret; GO: activemask.b32 %r0;",
         [255] * 8 + [ALL] * 24),
        # registers of lanes that do not run stay
        ("mov.u32 %r0,7; setp.eq.u32 %q0,%t,3; @%q0 mov.u32 %r0,9; @!%q0 add.u32 %r0,%r0,%t;",
         [7 + lane if lane != 3 else 9 for lane in range(32)]),
    ],
    ids=["if", "loop", "joined", "left in turn", "nested", "exit", "guard"],
)  # fmt: skip
def test_divergence(body, want):
    assert in_lanes(body) == want


def shuffled(mode: str, b: int, c: int) -> list[tuple[int, bool]]:
    """(source lane, whether in range) of each lane: the pseudocode of PTX ISA, "shfl.sync"."""
    out = []
    for lane in range(32):
        clamp, segment = c & 31, c >> 8 & 31
        top = lane & segment | clamp & ~segment
        if mode == "up":
            j = lane - b
            inside = j >= top
        elif mode == "idx":
            j = lane & segment | b & ~segment
            inside = j <= top
        else:
            j = lane + b if mode == "down" else lane ^ b
            inside = j <= top
        out.append((j if inside else lane, inside))
    return out


@pytest.mark.parametrize("b", [0, 1, 5, 16, 31])
@pytest.mark.parametrize(
    "mode, c",
    [
        ("idx", 31),
        ("idx", 0x181F),
        ("up", 0),
        ("up", 0x1800),
        ("down", 31),
        ("down", 0x1C1F),
        ("bfly", 31),
    ]
    + [("bfly", 0x1003)],
)
def test_shuffles(mode, c, b):
    body = f"""
    mad.lo.u32 %r1,%t,3,5; shfl.sync.{mode}.b32 %r0|%q0,%r1,{b},{c},-1;
    shfl.sync.{mode}.b32 %r2,%r1,{b},{c},-1;
    @%q0 add.u32 %r0,%r0,1000; sub.u32 %r2,%r0,%r2; add.u32 %r0,%r0,%r2;
    """
    want = [3 * lane + 5 + 2000 * inside for lane, inside in shuffled(mode, b, c)]
    assert in_lanes(body) == want


def test_shuffles_by_a_lane_of_each():
    want = [31 - lane for lane in range(32)]
    assert in_lanes("sub.u32 %r1,31,%t; shfl.sync.idx.b32 %r0,%t,%r1,31,-1;") == want


@pytest.mark.parametrize(
    "instruction, want",
    [
        ("vote.sync.ballot.b32 %r0,%q0,-1;", 0b111111),
        ("vote.sync.ballot.b32 %r0,!%q0,-1;", ALL - 63),
        ("vote.sync.any.pred %q1,%q0,-1; selp.u32 %r0,1,0,%q1;", 1),
        ("vote.sync.all.pred %q1,%q0,-1; selp.u32 %r0,1,0,%q1;", 0),
        ("vote.sync.uni.pred %q1,%q0,-1; selp.u32 %r0,1,0,%q1;", 0),
        ("setp.lt.u32 %q2,%t,99; vote.sync.all.pred %q1,%q2,-1; selp.u32 %r0,1,0,%q1;", 1),
        ("setp.gt.u32 %q2,%t,99; vote.sync.uni.pred %q1,%q2,-1; selp.u32 %r0,1,0,%q1;", 1),
        ("setp.gt.u32 %q2,%t,99; vote.sync.any.pred %q1,%q2,-1; selp.u32 %r0,1,0,%q1;", 0),
        ("redux.sync.add.u32 %r0,%t,-1;", 496),
        ("sub.s32 %r1,%t,7; redux.sync.min.s32 %r0,%r1,-1;", ALL - 6),
        ("sub.s32 %r1,%t,7; redux.sync.max.s32 %r0,%r1,-1;", 24),
        ("sub.s32 %r1,%t,7; redux.sync.max.u32 %r0,%r1,-1;", ALL),
        ("or.b32 %r1,%t,64; redux.sync.and.b32 %r0,%r1,-1;", 64),
        ("redux.sync.or.b32 %r0,%t,-1;", 31),
        ("add.u32 %r1,%t,%t; redux.sync.xor.b32 %r0,%r1,-1;", 0),
        ("elect.sync %r0|%q1,-1;", 0),
    ],
    ids=lambda value: value.split(";")[-2].split()[0] if isinstance(value, str) else None,
)
def test_what_a_warp_does_together(instruction, want):
    assert in_lanes(f"setp.lt.u32 %q0,%t,6; {instruction}") == [want] * 32


def test_one_lane_is_elected_of_those_that_run():
    body = "mov.u32 %r0,0; elect.sync _|%q1,-1; @%q1 mov.u32 %r0,1;"
    assert in_lanes(body) == [1] + [0] * 31
    body = """mov.u32 %r0,0; setp.ge.u32 %q0,%t,20; @!%q0 bra J;
    elect.sync %r1|%q1,0xFFF00000; selp.u32 %r0,%r1,7,%q1; J: """
    assert in_lanes(body) == [0] * 20 + [20] + [7] * 11


def test_a_part_of_a_warp_votes_by_itself():
    body = """setp.ge.u32 %q0,%t,20; @!%q0 bra J; setp.gt.u32 %q1,%t,24;
    vote.sync.ballot.b32 %r0,%q1,0xFFF00000; bra E; J: redux.sync.add.u32 %r0,%t,0xFFFFF; E: """
    assert in_lanes(body) == [190] * 20 + [0xFE000000] * 12


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("space", ["global", "shared"])
def test_vectors_are_loaded_and_stored(count, bits, space):
    if bits * count > 256 or (bits * count == 256 and space == "shared"):
        bits //= 2
    name = NAMES[bits]
    each_ = "{" + ", ".join(f"%{name}{i + 10}" for i in range(count)) + "}"
    turned = "{" + ", ".join(f"%{name}{i + 10}" for i in reversed(range(count))) + "}"
    vector, width = f".v{count}" if count > 1 else "", bits // 8 * count
    if count == 1:
        each_ = turned = f"%{name}10"
    data = np.random.default_rng(0).integers(0, 256, 32 * width, np.uint8)
    memory = {"x": tensor(data), "out": torch.empty(32 * width, dtype=torch.uint8)}
    body = f"mul.wide.u32 %d50,%t,{width}; add.s64 %d51,%d50,%x; add.s64 %d52,%d50,%out;\n"
    body += f"ld.global{vector}.b{bits} {each_}, [%d51];\n"
    if space == "shared":
        body += f"mad.lo.u32 %r100,%t,{width},%s; st.shared{vector}.b{bits} [%r100], {turned};\n"
        body += f"ld.shared{vector}.b{bits} {each_}, [%r100];\n"
        turned = each_
    run(body + f"st.global{vector}.b{bits} [%d52], {turned};", memory, outputs="out")
    want = data.view(f"u{bits // 8}").reshape(32, count)[:, ::-1]
    got = memory["out"].numpy().view(f"u{bits // 8}").reshape(32, count)
    np.testing.assert_array_equal(got, want)


def test_narrow_loads_extend():
    data = np.arange(120, 152, dtype=np.uint8)
    for kind, want in (("s8", data.view(np.int8).astype(np.int32)), ("u8", data.astype(np.int32))):
        out = torch.empty(32, dtype=torch.int32)
        body = f"cvt.u64.u32 %d5,%t; add.s64 %d5,%d5,%x; ld.global.{kind} %r0,[%d5]; {STORE}"
        run(body, {"x": tensor(data), "out": out}, outputs="out")
        assert out.tolist() == want.tolist()


def test_parameters_are_read_by_width():
    text = """.version 8.8
    .target sm_100a
    .address_size 64
    .visible .entry k(.param .u64 out, .param .u8 small, .param .align 8 .b8 blob[12]) {
    .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %d<9>;
    ld.param.u64 %d0, [out]; ld.param.v2.b8 {%h0, %h1}, [blob+2]; ld.param.u8 %r1, [small];
    ld.param.v2.b32 {%r2, %r3}, [blob]; ld.param.b32 %r4, [blob+8]; cvt.u32.u16 %r5, %h0;
    cvt.u32.u16 %r6, %h1; shl.b32 %r6, %r6, 8; or.b32 %r5, %r5, %r6;
    st.global.v4.b32 [%d0], {%r1, %r2, %r3, %r4}; st.global.b32 [%d0+16], %r5; ret; }"""
    out = torch.empty(5, dtype=torch.int32)
    blob = bytes(range(1, 13))
    parameters = struct.pack("<QB7x", out.data_ptr(), 200) + blob
    execute(text, "k", (1, 1, 1), (1, 1, 1), params=parameters, memory={"out": out})
    assert out.tolist() == [200, 0x04030201, 0x08070605, 0x0C0B0A09, 0x0403]


@pytest.mark.parametrize("generic", [False, True])
def test_a_peers_shared_memory_is_written_and_read(generic):
    out = torch.empty(128, dtype=torch.int32)
    mine = "mad.lo.u32 %r3,%t,4,%s; mad.lo.u32 %r4,%r1,1000,%t;\n"
    if generic:
        to = "cvt.u64.u32 %d3,%r3; cvta.shared.u64 %d3,%d3;\n"
        to += "mapa.u64 %d4,%d3,%r2; st.b32 [%d4],%r4;\n"
        back = "ld.b32 %r6,[%d3]; ld.b32 %r7,[%d4];\n"
    else:
        to = "mapa.shared::cluster.u32 %r5,%r3,%r2; st.shared::cluster.b32 [%r5],%r4;\n"
        back = "ld.shared.b32 %r6,[%r3]; ld.shared::cluster.b32 %r7,[%r5];\n"
    body = RANKS + mine + PEERS + to + PEERS + back + PEERS
    body += "mad.lo.u32 %r0,%r7,10000,%r6;\n" + OWN_STORE
    run(body, {"out": out}, grid=(4, 1, 1), cluster=(2, 1, 1), outputs="out")
    per_cta = [[10000 * (1000 * r + t) + 1000 * (1 - r) + t for t in range(32)] for r in (0, 1)]
    assert out.tolist() == 2 * (per_cta[0] + per_cta[1])


def folded(function):
    return lambda values: functools.reduce(function, values)


ATOMICS = {
    "add.u32": (lambda values: sum(values) & ALL, 0xFFFFFF00),
    "min.s32": (lambda values: min(s(v, 32) for v in values) & ALL, 5),
    "max.u32": (max, 5),
    "and.b32": (folded(operator.and_), ALL),
    "or.b32": (folded(operator.or_), 0),
    "xor.b32": (folded(operator.xor), 0),
}


@pytest.mark.parametrize("operation", ATOMICS)
@pytest.mark.parametrize("opcode", ["atom", "red"])
def test_atomics(opcode, operation):
    """64 threads of two CTAs on one word; `atom` also gives what was there before."""
    meaning, start = ATOMICS[operation]
    word = torch.tensor([s(start, 32)], dtype=torch.int32)
    before = torch.zeros(64, dtype=torch.int32)
    result = "%r0," if opcode == "atom" else ""
    body = (
        "mov.u32 %r0,0; mov.u32 %r5,%ctaid.x; mad.lo.u32 %r5,%r5,32,%t; mul.lo.u32 %r5,%r5,77777;\n"
    )
    body += "sub.u32 %r5,%r5,999999;\n"
    body += f"{opcode}.relaxed.gpu.global.{operation} {result}[%word],%r5;\n"
    run(body + OWN_STORE, {"word": word, "out": before}, grid=(2, 1, 1))
    values = [(i * 77777 - 999999) & ALL for i in range(64)]
    assert word.item() & ALL == meaning([start, *values])
    if opcode == "atom":
        assert start in [v & ALL for v in before.tolist()]


def test_atomic_exchange_and_compare():
    word, before = torch.tensor([100], dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    body = "add.u32 %r5,%t,101; add.u32 %r6,%t,100; atom.global.cas.b32 %r0,[%word],%r6,%r5;\n"
    run(body + STORE, {"word": word, "out": before})
    assert (word.item(), before.tolist()) == (132, list(range(100, 132)))
    run("atom.global.exch.b32 %r0,[%word],%t;\n" + STORE, {"word": word, "out": before})
    assert (word.item(), before.tolist()) == (31, [132, *range(31)])
    floating = torch.tensor([0.5])
    body = "mov.f32 %r5,0f3F800000; red.global.add.f32 [%floating],%r5;"
    run(body, {"floating": floating})
    assert floating.item() == 32.5


def test_special_registers():
    names = ["%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%laneid", "%warpid"]
    names += ["%cluster_ctaid.x", "%cluster_ctaid.y", "%cluster_ctarank", "%clusterid.x"]
    names += ["%clusterid.y", "%clusterid.z", "%ntid.x", "%ntid.z", "%nctaid.y", "%nclusterid.x"]
    names += ["%cluster_nctaid.y", "%cluster_nctarank"]
    block, grid, cluster = (8, 4, 3), (4, 6, 2), (2, 3, 1)
    out = torch.full((48 * 96, len(names)), -1, dtype=torch.int32)
    body = """mov.u32 %r1,%tid.z; mov.u32 %r2,%tid.y; mad.lo.u32 %r1,%r1,4,%r2;
    mad.lo.u32 %r1,%r1,8,%t;
    mov.u32 %r2,%ctaid.z; mov.u32 %r3,%ctaid.y; mad.lo.u32 %r2,%r2,6,%r3; mov.u32 %r3,%ctaid.x;
    mad.lo.u32 %r2,%r2,4,%r3; mad.lo.u32 %r1,%r2,96,%r1;\n"""
    body += f"mul.wide.u32 %d1,%r1,{4 * len(names)}; add.s64 %d1,%d1,%out;\n"
    for i, name in enumerate(names):
        body += f"mov.u32 %r0,{name}; st.global.b32 [%d1+{4 * i}],%r0;\n"
    run(body, {"out": out}, grid=grid, block=block, cluster=cluster, outputs="out")
    want = []
    for number in range(48):
        x, y, z = number % 4, number // 4 % 6, number // 24
        for thread in range(96):
            at = (thread % 8, thread // 8 % 4, thread // 32)
            own = [*at, x, y, z, thread % 32, thread // 32, x % 2, y % 3, x % 2 + 2 * (y % 3)]
            want.append([*own, x // 2, y // 3, z, 8, 3, 6, 2, 3, 6])
    assert out.tolist() == want


@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_are_stored(count):
    """Lane l gives elements 2 (l % 4) and the next of row l / 4; row r of matrix i goes to the
    address that lane 8 i + r names, here row 31 - (8 i + r) of 16 bytes.
    """
    out = torch.zeros(32, 8, dtype=torch.int16)
    items = ",".join(f"%r{10 + i}" for i in range(count))
    body = "".join(
        f"mad.lo.u32 %r{10 + i},%t,0x20002,{0x10000 + 0x01000100 * i};\n" for i in range(count)
    )
    body += "sub.u32 %r1,31,%t; mad.lo.u32 %r1,%r1,16,%s; mad.lo.u32 %r2,%t,16,%s; mov.u32 %r5,0;\n"
    body += "st.shared.v4.b32 [%r1],{%r5,%r5,%r5,%r5};\n"
    body += f"stmatrix.sync.aligned.m8n8.x{count}.shared.b16 [%r1],{{{items}}};\n"
    body += (
        "ld.shared.v4.b32 {%r5,%r6,%r7,%r8},[%r2]; mul.wide.u32 %d1,%t,16; add.s64 %d1,%d1,%out;\n"
    )
    run(body + "st.global.v4.b32 [%d1],{%r5,%r6,%r7,%r8};", {"out": out}, outputs="out")
    want = np.zeros((32, 8), np.int16)
    for i in range(count):
        for r in range(8):
            want[31 - 8 * i - r] = [0x100 * i + 8 * r + column for column in range(8)]
    np.testing.assert_array_equal(out.numpy(), want)


@pytest.mark.parametrize("count", [1, 2, 8, 32])
def test_tensor_memory_lanes_are_threads(count):
    """32x32b: thread i of warp w has lane 32 w + i of each column."""
    out = torch.empty(128, count, dtype=torch.int32)
    body = ALLOCATE.format(group=1, columns=64) + fill_tmem(40)
    body += f"tcgen05.ld.sync.aligned.32x32b.x{count}.b32 {registers(50, count)}, [%r101+5];\n"
    body += (
        f"tcgen05.wait::ld.sync.aligned; mul.wide.u32 %d1,%t,{4 * count}; add.s64 %d1,%d1,%out;\n"
    )
    body += "".join(f"st.global.b32 [%d1+{4 * i}],%r{50 + i};\n" for i in range(count))
    run(body + FREE.format(group=1, columns=64), {"out": out}, block=128, outputs="out")
    assert out.tolist() == [[lane << 16 | 5 + c for c in range(count)] for lane in range(128)]


@pytest.mark.parametrize("half", [0, 16])
@pytest.mark.parametrize("count", [1, 4])
def test_tensor_memory_in_fragments_of_16_lanes(count, half):
    """16x256b: of each 8 columns, thread t has columns 2 (t % 4) and the next of lane t / 4, then
    of lane t / 4 + 8.
    """
    out = torch.empty(128, 4 * count, dtype=torch.int32)
    body = ALLOCATE.format(group=1, columns=64) + fill_tmem(40)
    body += f"add.u32 %r102,%r101,{(half << 16) + 3};\n"
    body += f"tcgen05.ld.sync.aligned.16x256b.x{count}.b32 {registers(50, 4 * count)}, [%r102];\n"
    body += (
        f"tcgen05.wait::ld.sync.aligned; mul.wide.u32 %d1,%t,{16 * count}; add.s64 %d1,%d1,%out;\n"
    )
    body += "".join(f"st.global.b32 [%d1+{4 * i}],%r{50 + i};\n" for i in range(4 * count))
    run(body + FREE.format(group=1, columns=64), {"out": out}, block=128, outputs="out")
    want = []
    for thread in range(128):
        lane, t = thread // 32 * 32 + half + thread % 32 // 4, thread % 4
        row = []
        for group in range(count):
            column = 3 + 8 * group + 2 * t
            row += [lane << 16 | column, lane << 16 | column + 1]
            row += [lane + 8 << 16 | column, lane + 8 << 16 | column + 1]
        want.append(row)
    assert out.tolist() == want


@pytest.mark.parametrize("delay", [0, 300])
def test_bulk_copies(delay):
    x = torch.arange(512, dtype=torch.int32).to(torch.uint8)
    out = torch.empty(512, dtype=torch.uint8)
    body = ONE + AT + READY + expect(512)
    body += f"@%q14 {LOAD_BYTES} [%r110], [%x], 512, [%s];\n"
    run(body + WAIT + COPY_OUT, {"x": x, "out": out}, outputs="out", delay=delay)
    assert out.tolist() == x.tolist()
    out = torch.full((160,), 255, dtype=torch.uint8)
    body = (
        ONE
        + AT
        + FILL
        + "@%q14 cp.async.bulk.global.shared::cta.bulk_group [%out+16], [%r110], 128;\n"
    )
    run(body + STORED, {"out": out}, delay=delay)
    assert out.tolist() == [255] * 16 + list(range(128)) + [255] * 16


@pytest.mark.parametrize("x, y", [(0, 0), (16, 3), (-16, -2), (32, 2), (64, 0), (0, 9)])
def test_boxes_are_loaded_with_zeros_outside(x, y):
    """A box of 32 x 4 bytes of a 48 x 5 matrix in rows of 64 bytes."""
    matrix = torch.arange(5 * 64).reshape(5, 64).to(torch.uint8)
    out = torch.empty(512, dtype=torch.uint8)
    maps = {"map": tensor_map(matrix, (32, 4), bits=8, sizes=(48, 5), strides=(64,))}
    body = ONE + AT + READY + expect(128) + f"mov.u32 %r1,{x}; mov.u32 %r2,{y};\n"
    body += "@%q14 cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%map, {%r1, %r2}];\n"
    body += f"@%q14 {LOAD.format(2)}"
    body += (
        " [%r110], [%map, {%r1, %r2}], [%s];\n" + WAIT + "setp.lt.u32 %q12,%t,8; @!%q12 bra E;\n"
    )
    run(body + COPY_OUT + "E: ", {"x": matrix, "out": out[:128]}, maps, outputs="out", delay=50)
    whole = torch.zeros(64, 256, dtype=torch.uint8)
    whole[20:25, 64:112] = matrix[:, :48]
    assert out[:128].reshape(4, 32).tolist() == whole[20 + y : 24 + y, 64 + x : 96 + x].tolist()


@pytest.mark.parametrize("x, y", [(0, 0), (16, 3), (-16, -2), (32, 2), (64, 0), (0, 9)])
def test_boxes_are_stored_inside_only(x, y):
    matrix = torch.full((5, 64), 255, dtype=torch.uint8)
    maps = {"map": tensor_map(matrix, (32, 4), bits=8, sizes=(48, 5), strides=(64,))}
    body = ONE + AT + FILL + f"mov.u32 %r1,{x}; mov.u32 %r2,{y};\n"
    body += (
        "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%map, {%r1, %r2}], [%r110];\n"
    )
    run(body + STORED, {"x": matrix}, maps, delay=50)
    whole = torch.full((64, 256), 255, dtype=torch.uint8)
    whole[20 + y : 24 + y, 64 + x : 96 + x] = torch.arange(128).reshape(4, 32)
    want = torch.full((5, 64), 255, dtype=torch.uint8)
    want[:, :48] = whole[20:25, 64:112]
    assert matrix.tolist() == want.tolist()


@pytest.mark.parametrize("rank", [1, 3, 4, 5])
def test_boxes_of_every_rank(rank):
    """Words: the innermost dimension of 4, the others of 3; the box has 4 x 2 x 2 ... from 1 on."""
    shape = (3,) * (rank - 1) + (4,)
    data = torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape)
    box = (4, *[2] * (rank - 1))
    size = 4 * math.prod(box)
    out = torch.empty(size, dtype=torch.uint8)
    at = ", ".join(["0", "1", "1", "1", "1"][:rank])
    body = ONE + AT + READY + expect(size)
    body += f"@%q14 {LOAD.format(rank)}"
    body += f" [%r110], [%map, {{{at}}}], [%s];\n" + WAIT
    body += f"setp.lt.u32 %q12,%t,{size // 16}; @!%q12 bra E;\n" + COPY_OUT + "E: "
    run(body, {"x": data, "out": out}, {"map": tensor_map(data, box)}, outputs="out")
    inner = data[(slice(1, 3),) * (rank - 1)]
    assert out.view(torch.int32).tolist() == inner.reshape(-1).tolist()


def test_a_load_is_multicast():
    x = torch.arange(64, dtype=torch.int32)
    out = torch.empty(4, 64, dtype=torch.int32)
    body = ONE + AT + RANKS + READY + expect(128) + PEERS
    body += "setp.eq.u32 %q12,%r1,1; and.pred %q11,%q12,%q14; mov.u16 %h1,13; mov.u32 %r9,32;\n"
    load = LOAD.format(1).replace("shared::cta", "shared::cluster")
    body += f"@%q11 {load}.multicast::cluster [%r110], [%map, {{%r9}}], [%s], %h1;\n"
    body += f"mov.u32 %r9,0; @%q11 {load} [%r110], [%map, {{%r9}}], [%s];\n" + WAIT
    body += "mad.lo.u32 %r3,%t,4,%r110; ld.shared.b32 %r0,[%r3];\n" + PEERS + OWN_STORE
    maps = {"map": tensor_map(x, (32,))}
    out = torch.empty(4, 32, dtype=torch.int32)
    run(body, {"x": x, "out": out}, maps, (4, 1, 1), cluster=(4, 1, 1), outputs="out", delay=100)
    own, sent = list(range(32)), list(range(32, 64))
    assert out.tolist() == [sent, own, sent, sent]


def test_names_in_blocks_are_their_own():
    body = """
    mov.u32 %r0,0; { .reg .b32 %x; .reg .pred P1; mov.u32 %x,5; LAB: add.u32 %r0,%r0,%x;
    setp.lt.u32 P1,%r0,50; @P1 bra LAB; bra DONE; add.u32 %r0,%r0,1000000; DONE: }
    { .reg .b16 %x; .reg .b32 P1; mov.u16 %x,7; cvt.u32.u16 P1,%x; LAB: add.u32 %r0,%r0,P1;
    { .reg .b32 P1; mov.u32 P1,1000; add.u32 %r0,%r0,P1; } add.u32 %r0,%r0,P1; bra OUT; }
    mov.u32 %r0,0; OUT: /* a comment; { with a brace */ // and ; another }
    """
    assert in_lanes(body) == [50 + 7 + 1000 + 7] * 32


def test_operands_of_every_form():
    body = """
    mov.u32 %r1,smem; add.u32 %r2,%r1,16; .pragma "nounroll"; mov.u32 %r0,0x10U;
    st.shared.b32 [%r2+-8],%r0; st.shared.b32 [ %r2 - 4 ],-1; ld.shared.b32 %r3,[smem+8];
    ld.shared.v2.b32 {%r4,_},[smem+8]; mov.b32 %r6,smem+12; ld.shared.b32 %r5,[%r6];
    mov.f32 %r7,0f40000000; cvt.rzi.u32.f32 %r7,%r7; mov.b64 %d0,0d4008000000000000;
    cvt.rzi.u32.f64 %r8,%d0; add.u32 %r0,%r3,%r4; add.u32 %r0,%r0,%r5; mad.lo.u32 %r0,%r7,100,%r0;
    mad.lo.u32 %r0,%r8,1000,%r0;
    """
    assert in_lanes(body) == [16 + 16 - 1 + 200 + 3000] * 32


@pytest.mark.parametrize(
    "line, why",
    [
        ("frobnicate.b32 %r0,%r1;", "not known"),
        ("add.cc.u32 %r0,%r1,%r2;", ".cc"),
        ("add.rz.f32 %r0,%r1,%r2;", ".rz"),
        ("add.u32 %r0,%r1,%nowhere;", "%nowhere"),
        ("add.u32 %r0,%r1,1.5;", "decimal"),
        ("add.u32 %r0,%r1,?;", "[?]"),
        ("add.u32 %r0,%r1;", "operands"),
        ("max.f32 %r0,%r1,%r2,%r3;", "operands"),
        ("bra NOWHERE;", "NOWHERE"),
        ("@%nowhere mov.u32 %r0,1;", "%nowhere"),
        ("ld.shared.b128 %r0,[%s];", "128"),
        ("tcgen05.shift.cta_group::1.down [%r0];", "shift"),
        ("cp.async.ca.shared.global [%s],[%d0],16;", "bulk"),
        (".local .b32 x;", "directive"),
    ],
)
def test_what_is_not_known_is_named_with_its_line(line, why):
    text = kernel("\n\n" + line)
    number = text[: text.index(line)].count("\n") + 1
    with pytest.raises(UnsupportedInstruction, match=why) as raised:
        execute(text, "k", (1, 1, 1), (32, 1, 1))
    assert raised.value.line == number
    assert f"line {number}: " in str(raised.value) and line.split()[0] in str(raised.value)


def test_a_kernel_that_is_not_there_is_an_error():
    with pytest.raises(KeyError, match="no kernel other .* it has k"):
        execute(kernel(""), "other", (1, 1, 1), (32, 1, 1))


@pytest.mark.parametrize("register", ["%r5", "%d5", "%h5"])
@pytest.mark.parametrize("opcode", ["add.u", "mov.u", "mul.lo.u", "shl.b", "neg.s"])
def test_registers_are_written_before_they_are_read(register, opcode):
    bits = {"r": 32, "d": 64, "h": 16}[register[1]]
    one = opcode[:3] in ("mov", "neg")
    text = f"{opcode}{bits} %{register[1]}6,{register}{'' if one else ',1'};"
    with pytest.raises(Hazard, match="register") as raised:
        run(text)
    assert raised.value.kind is Kind.UNINITIALISED and raised.value.text == text[:-1]
    run(f"mov.b{bits} {register},1;\n{text}")
