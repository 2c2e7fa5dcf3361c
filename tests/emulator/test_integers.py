"""What instructions on integers and bits do in the emulator, against Python's exact numbers."""

import pytest
from emulated_values import ALL, each, ints, operands, s, truncated
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

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
