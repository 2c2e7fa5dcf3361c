"""Conversions of floats in the emulator, over all codes of the narrow formats and their ties."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from emulated_values import across

EVERY = np.arange(1 << 16, dtype=np.uint16)
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def around(values: np.ndarray) -> np.ndarray:
    """Each finite float32 of an ascending list, the middle to the next, and both its neighbours."""
    middles = ((values[:-1].astype(np.float64) + values[1:]) / 2).astype(np.float32)
    near = [values[:-1], middles, np.nextafter(middles, values[:-1])]
    some = np.concatenate([*near, np.nextafter(middles, values[1:])])
    special = np.float32([np.inf, np.nan, 0, 3e38, 1e-45, 1e-38, 500, 65520, 65519.996])
    both = np.concatenate([some, special])
    both = np.concatenate([both, -both])
    return np.concatenate([both, np.zeros(-len(both) % 256, np.float32)])


def words(values: torch.Tensor) -> np.ndarray:
    """Their 16-bit patterns, with the canonical NaN."""
    raw = values.view(torch.int16).numpy().view(np.uint16)
    return np.where(torch.isnan(values).numpy(), np.uint16(0x7FFF), raw)


@pytest.mark.parametrize("kind, dtype", [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_every_code_of_16_bits_widens(kind, dtype):
    values = torch.from_numpy(EVERY.view(np.int16).copy()).view(dtype).float().numpy()
    want = np.where(np.isnan(values), np.uint32(0x7FFFFFFF), values.view(np.uint32))
    got = across(f"cvt.f32.{kind} {{0}},{{1}};", "u4", EVERY)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind, dtype", [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_ties_between_codes_of_16_bits_go_to_the_even_one(kind, dtype):
    codes = torch.from_numpy(EVERY[:0x7F80:5].view(np.int16).copy()).view(dtype).float().numpy()
    values = around(codes[np.isfinite(codes)])
    want = words(torch.from_numpy(values).to(dtype))
    np.testing.assert_array_equal(across(f"cvt.rn.{kind}.f32 {{0}},{{1}};", "u2", values), want)
    pair = across(f"cvt.rn.{kind}x2.f32 {{0}},{{1}},{{2}};", "u4", values, values[::-1].copy())
    np.testing.assert_array_equal(pair, want.astype(np.uint32) << 16 | want[::-1])


def test_neighbouring_codes_of_float16_round_as_torch_does():
    """The denormals of float16 and the smallest normal numbers, one by one."""
    values = around(EVERY[:1200].view(np.float16).astype(np.float32))
    want = words(torch.from_numpy(values).half())
    np.testing.assert_array_equal(across("cvt.rn.f16.f32 {0},{1};", "u2", values), want)


def test_every_code_of_e4m3_and_every_tie():
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn)
    values = around(codes.float().numpy())
    limited = torch.from_numpy(values).clamp(-448, 448).to(torch.float8_e4m3fn)
    want = limited.view(torch.uint8).numpy().astype(np.uint16)
    want[np.isnan(values)] = 0x7F
    text = "cvt.rn.satfinite.e4m3x2.f32 {0},{1},{2};"
    got = across(text, "u2", values, values[::-1].copy())
    np.testing.assert_array_equal(got, want << 8 | want[::-1])


def e2m1(value: float) -> int:
    """The nearest code, ties to the even one; NaN becomes the largest number."""
    if np.isnan(value):
        return 7
    magnitude = Fraction(min(abs(value), 6.0))
    code = min(range(8), key=lambda c: (abs(Fraction(E2M1[c]) - magnitude), c & 1))
    return code | int(np.signbit(value)) << 3


def test_every_code_of_e2m1_and_every_tie():
    values = around(np.float32(E2M1))
    want = np.array([e2m1(v) for v in values.tolist()], np.uint16)
    text = "{{ .reg .b8 %c; cvt.rn.satfinite.e2m1x2.f32 %c,{1},{2}; cvt.u16.u8 {0},%c; }}"
    got = across(text, "u2", values, values[::-1].copy())
    np.testing.assert_array_equal(got, want << 4 | want[::-1])


def test_float64_rounds_once_to_float16():
    """The first two would become ties if they went through float32."""
    values = np.float64([1 + 2.0**-11 + 2.0**-40, 1 + 3 * 2.0**-11 - 2.0**-40, 65519.9999999999])
    values = np.resize(np.concatenate([values, -values]), 256)
    with np.errstate(over="ignore"):
        want = values.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(across("cvt.rn.f16.f64 {0},{1};", "u2", values), want)
    assert want[:3].tolist() == [0x3C01, 0x3C01, 0x7BFF]
