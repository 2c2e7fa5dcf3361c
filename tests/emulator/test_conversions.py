"""Conversions over their whole domain, or for float32 over a quarter of all upper halves."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from emulated_values import across

EVERY = np.arange(1 << 16, dtype=np.uint16)


def float32_sample() -> np.ndarray:
    """A quarter of the 65,536 upper halves, signs, infinities and NaNs among them.

    The lower halves lie at or next to ties of bfloat16, at ties of narrower formats, or anywhere.
    """
    random = np.random.default_rng(0)
    upper = EVERY.reshape(-1, 4)[np.arange(1 << 14), random.integers(0, 4, 1 << 14)]
    lower = random.choice(np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]), 1 << 14)
    lower = np.where(random.random(1 << 14) < 0.3, random.integers(0, 1 << 16, 1 << 14), lower)
    return upper.astype(np.uint32) << np.uint32(16) | lower.astype(np.uint32)


SAMPLE = float32_sample()
VALUES = SAMPLE.view(np.float32)


def nearest(positive: list[float]) -> np.ndarray:
    """The codes of the nearest of some ascending values for each number of the sample, found among
    all of them: ties to the even code, the largest for what is above it. The sign is left out.
    """
    with np.errstate(invalid="ignore"):
        sizes = np.abs(VALUES.astype(np.float64))
        distances = np.abs(np.minimum(sizes, positive[-1])[:, None] - np.array(positive))
    best = np.where(np.isnan(distances), np.inf, distances).min(1)
    codes = np.arange(len(positive))
    candidates = distances == best[:, None]
    odd = np.where(candidates, codes % 2, 2).argmin(1)  # an even one if there are two
    return odd


def e4m3() -> list[float]:
    codes = torch.arange(0x7F, dtype=torch.uint8)
    return codes.view(torch.float8_e4m3fn).double().tolist()


def as_e4m3() -> np.ndarray:
    codes = nearest(e4m3()) | np.where(np.signbit(VALUES), 0x80, 0)
    return np.where(np.isnan(VALUES), 0x7F, codes)


def as_e2m1() -> np.ndarray:
    codes = nearest([0, 0.5, 1, 1.5, 2, 3, 4, 6]) | np.where(np.signbit(VALUES), 8, 0)
    return np.where(np.isnan(VALUES), 7, codes)


def as_torch(dtype: torch.dtype) -> Callable[[], np.ndarray]:
    def convert() -> np.ndarray:
        halves = torch.from_numpy(VALUES.copy()).to(dtype).view(torch.int16).numpy()
        return np.where(np.isnan(VALUES), 0x7FFF, halves.view(np.uint16))

    return convert


ZERO = "{{ .reg .b32 %z; mov.u32 %z,0; "
TO_NARROW = {
    "f16": ("cvt.rn.f16.f32 %h40,{1}; cvt.u32.u16 {0},%h40;", as_torch(torch.float16)),
    "bf16": ("cvt.rn.bf16.f32 %h40,{1}; cvt.u32.u16 {0},%h40;", as_torch(torch.bfloat16)),
    "f16x2": (ZERO + "cvt.rn.f16x2.f32 {0},%z,{1}; }}", as_torch(torch.float16)),
    "bf16x2": (ZERO + "cvt.rn.bf16x2.f32 {0},%z,{1}; }}", as_torch(torch.bfloat16)),
    "e4m3x2": (
        ZERO + "cvt.rn.satfinite.e4m3x2.f32 %h40,%z,{1}; cvt.u32.u16 {0},%h40; }}",
        as_e4m3,
    ),
    "e2m1x2": (
        ZERO + ".reg .b8 %c; cvt.rn.satfinite.e2m1x2.f32 %c,%z,{1}; cvt.u32.u8 {0},%c; }}",
        as_e2m1,
    ),
}


@pytest.mark.parametrize("kind", TO_NARROW)
def test_float32_becomes_narrower(kind):
    text, want = TO_NARROW[kind]
    np.testing.assert_array_equal(across(text, "u4", SAMPLE), want())


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_every_half_becomes_float32(kind):
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[kind]
    want = torch.from_numpy(EVERY.view(np.int16).copy()).view(dtype).float().numpy()
    got = across(f"cvt.f32.{kind} {{0}},{{1}};", "f4", EVERY)
    np.testing.assert_array_equal(got, want)  # NaNs are equal here
    numbers = ~np.isnan(want)
    np.testing.assert_array_equal(got.view(np.uint32)[numbers], want.view(np.uint32)[numbers])


def test_every_pair_of_e4m3_becomes_float16():
    codes = torch.from_numpy(EVERY.view(np.uint8).copy()).view(torch.float8_e4m3fn)
    halves = codes.half()
    want = np.where(torch.isnan(halves).numpy(), 0x7FFF, halves.view(torch.int16).numpy())
    got = across("cvt.rn.f16x2.e4m3x2 {0},{1};", "u4", EVERY).view(np.uint16)
    np.testing.assert_array_equal(got, want.astype(np.uint16))
