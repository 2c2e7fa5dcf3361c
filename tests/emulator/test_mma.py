"""What the emulated MMA computes, from literal bytes of operands and scales: a wrong layout cannot
hide here by being wrong on both sides.
"""

import math

import numpy as np
import pytest
import torch
from emulated_ptx import (
    MATRIX,
    SCALES,
    mma,
    run,
)

from nvfp4.emulator import UnsupportedInstruction

# The MMA: A's 4096 bytes, B's and the scales' behind one another, all without swizzle

ONES = 0x22
"""Two elements of 1."""
UNIT = 0x38
"""The scale 1."""
A, B, SA, SB, END = 0, 4096, 12288, 14336, 16384


def operands(n: int) -> np.ndarray:
    """[END] bytes of shared memory: all elements and scales 1."""
    image = np.zeros(END, np.uint8)
    image[A : A + 4096], image[B : B + 32 * n] = ONES, ONES
    image[SA : SA + 512], image[SB : SB + 1024] = UNIT, UNIT
    return image


def multiply(*images: np.ndarray, n: int = 8, a: int = MATRIX, **fields: int) -> np.ndarray:
    """The accumulators of the CTAs that have these images: [128 rows each, n]."""
    group = len(images)
    x = torch.from_numpy(np.stack(images))
    out = torch.empty(128 * group, n)
    body = mma(n, a, MATRIX + B // 16, SCALES + SA // 16, SCALES + SB // 16, group=group,
               size=END, **fields)  # fmt: skip
    shape = (group, 1, 1)
    run(body, {"x": x, "out": out}, grid=shape, cluster=shape, block=128, outputs="out")
    return out.numpy()


def at_element(row: int, k: int) -> tuple[int, int]:
    """(byte, shift) of an element of a matrix without swizzle, of 32 bytes of K a row."""
    byte = row // 8 * 256 + k // 32 * 128 + row % 8 * 16 + k % 32 // 2
    return byte, 4 * (k % 2)


def test_what_is_not_known_of_a_value_is_named_with_its_line():
    with pytest.raises(UnsupportedInstruction, match=r"PTX line \d+: .*tcgen05.mma.*\n.*layout"):
        multiply(operands(8), a=MATRIX | 1 << 61)


def test_all_ones():
    assert (multiply(operands(8)) == 64).all()


@pytest.mark.parametrize(
    "row, k, byte, shift",
    [(0, 0, 0, 0), (0, 1, 0, 4), (0, 31, 15, 4), (0, 32, 128, 0), (1, 0, 16, 0), (7, 63, 255, 4),
     (8, 2, 257, 0), (127, 63, 4095, 4), (64, 33, 2176, 4)],
)  # fmt: skip
def test_an_element_is_a_nibble(row, k, byte, shift):
    """One 6 (code 7) among A's ones, and one 4 (code 6) of B's in the same place of K."""
    assert at_element(row, k) == (byte, shift)
    image = operands(8)
    image[A + byte] = ONES & ~(15 << shift) | 7 << shift
    want = np.full((128, 8), 64.0)
    want[row] += 5
    assert (multiply(image) == want).all()
    byte, shift = at_element(3, k)
    image[B + byte] = ONES & ~(15 << shift) | 6 << shift
    want[:, 3] += 3
    want[row, 3] = 63 + 24
    assert (multiply(image) == want).all()


def test_the_sixteen_codes():
    """Row r of A holds code r % 16, once, and zeros."""
    image = operands(8)
    image[A : A + 4096] = 0
    for row in range(128):
        image[A + at_element(row, 0)[0]] = row % 16
    codes = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    np.testing.assert_array_equal(multiply(image)[:, 5], codes * 8)


# (row, 16 elements of K, byte): the scales of row r are the four bytes at 16 (r % 32) + 4 (r / 32)
SCALE_BYTES = [(0, 0, 0), (0, 3, 3), (1, 0, 16), (31, 2, 498), (32, 0, 4), (33, 1, 21), (64, 0, 8),
               (96, 3, 15), (127, 3, 511), (95, 1, 505)]  # fmt: skip


@pytest.mark.parametrize("row, group, byte", SCALE_BYTES)
def test_one_scale_byte_scales_one_row_of_a(row, group, byte):
    image = operands(8)
    image[SA : SA + 512] = 0
    image[SA + byte] = 0x40  # 2
    want = np.zeros((128, 8))
    want[row] = 2 * 16
    assert (multiply(image) == want).all()
    # it is the group's own 16 elements
    image[A : A + 4096] = 0
    first, last = at_element(row, 16 * group)[0], at_element(row, 16 * group + 15)[0]
    image[A + first], image[A + last] = 0x02, 0x20
    want[row] = 4
    assert (multiply(image) == want).all()


@pytest.mark.parametrize(
    "column, group, byte",
    [*((row, group, byte) for row, group, byte in SCALE_BYTES), (128, 0, 512), (161, 2, 534),
     (255, 3, 1023)],
)  # fmt: skip
def test_one_scale_byte_scales_one_column_of_b(column, group, byte):
    """Columns from 128 on have their scales in a second copy, 512 bytes on."""
    image = operands(256)
    image[SB : SB + 1024] = 0
    image[SB + byte] = 0x48  # 4
    want = np.zeros((128, 256))
    want[:, column] = 4 * 16
    assert (multiply(image, n=256) == want).all()


def e4m3(code: int) -> float:
    """Unsigned E4M3: the sign bit does not count, 0x7F is NaN."""
    if code & 127 == 127:
        return math.nan
    exponent, mantissa = code >> 3 & 15, code & 7
    return mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)


LITERAL_SCALES = {
    0x00: 0.0, 0x01: 2.0**-9, 0x07: 7 * 2.0**-9, 0x08: 2.0**-6, 0x38: 1.0, 0x39: 1.125, 0x40: 2.0,
    0x77: 240.0, 0x7E: 448.0, 0x80: 0.0, 0xB8: 1.0, 0xFE: 448.0,
}  # fmt: skip


def test_all_scales():
    """All 256 codes, 128 rows a run; among them those that are written out."""
    got = np.empty(256)
    for half in (0, 128):
        image = operands(8)
        image[SA : SA + 512] = 0
        for row in range(128):
            image[SA + 16 * (row % 32) + 4 * (row // 32)] = half + row
        got[half : half + 128] = multiply(image)[:, 0] / 16
    np.testing.assert_array_equal(got, [e4m3(code) for code in range(256)])
    assert {code: got[code] for code in LITERAL_SCALES} == LITERAL_SCALES
    assert np.flatnonzero(np.isnan(got)).tolist() == [0x7F, 0xFF]


def test_power_of_two_scales():
    """UE8M0: 2 to the code minus 127; 0xFF is NaN."""
    image = operands(8)
    image[SA : SA + 512] = 127
    image[SB : SB + 512] = 127
    for row, code in enumerate((0x7F, 0x80, 0x7E, 0x8A, 0x38, 0xFF)):
        image[SA + 16 * row : SA + 16 * row + 4] = code
    got = multiply(image, description=0x08820480)[:6, 0] / 64
    np.testing.assert_array_equal(got, [1, 2, 0.5, 2048, 2.0**-71, math.nan])


def test_operands_are_negated():
    image = operands(8)
    assert (multiply(image, description=0x08022480) == -64).all()
    assert (multiply(image, description=0x08024480) == -64).all()
    assert (multiply(image, description=0x08026480) == 64).all()


def test_an_operand_in_a_128_byte_swizzle():
    """Row 2, K = 0..31 stands in chunk 2 xor 0 of its 128 bytes, row 5's in chunk 5."""
    image = np.zeros(8 * 1024 * 3, np.uint8)
    image[:16384] = 0
    image[2 * 128 + 2 * 16] = 0x02  # row 2, k = 0
    image[5 * 128 + 4 * 16 + 1] = 0x20  # row 5, k = 35
    image[1024 + 128 + 16] = 0x02  # row 9, k = 0
    image[127 * 128 + 6 * 16 + 15] = 0x20  # row 127, k = 63
    image[16384:16640] = ONES
    image[16640:17664] = UNIT
    x, out = torch.from_numpy(image), torch.empty(128, 8)
    a = 2 << 61 | 1 << 46 | 0x40 << 32 | 1 << 16 | 0x80
    body = mma(8, a, MATRIX + 1024, SCALES + 1040, SCALES + 1072, size=len(image))
    run(body, {"x": x, "out": out}, block=128, outputs="out")
    want = np.zeros((128, 8))
    want[[2, 5, 9, 127]] = 1
    np.testing.assert_array_equal(out.numpy(), want)


# Two CTAs


def test_a_pair_splits_rows_and_columns():
    """cta_group::2, 256 x 64: each CTA has its 128 rows of A and its 32 of B, the even rank first;
    each its own scales of A, and B's whole scales.
    """
    first, second = operands(64), operands(64)
    second[A : A + 4096] = 0x44  # 2
    first[A + at_element(9, 0)[0]] = 0x27  # row 9: one 6
    first[B : B + 1024], second[B : B + 1024] = 0x22, 0x55  # columns 0..31: 1; 32..63: 3
    want = np.empty((256, 64))
    want[:128, :32], want[:128, 32:], want[128:, :32], want[128:, 32:] = 64, 192, 128, 384
    want[9, :32], want[9, 32:] = 69, 207
    assert (multiply(first, second, n=64) == want).all()
    second[SA + 24 : SA + 28] = 0x40  # the second CTA's row 65
    want[128 + 65] *= 2
    assert (multiply(first, second, n=64) == want).all()
    for image in (first, second):  # column 40, in both CTAs' copies
        image[SB + 132 : SB + 136] = 0x40
    want[:, 40] *= 2
    assert (multiply(first, second, n=64) == want).all()


def test_a_pair_uses_each_ctas_own_copy_of_the_scales():
    first, second = operands(64), operands(64)
    second[SB : SB + 512] = 0x40
    want = np.full((256, 64), 64.0)
    want[128:] = 128
    assert (multiply(first, second, n=64) == want).all()
