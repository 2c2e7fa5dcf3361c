"""Triton's device functions against the spec, bit for bit, each on its own."""

import pytest
import torch
import triton
import triton.language as tl
from cases import same_bits

from nvfp4.backends.target import target_of
from nvfp4.backends.triton.device import floats, tiles
from nvfp4.spec import glu, packing, rounding

COUNT = 1 << 14

pytestmark = pytest.mark.usefixtures("interpreted")


@triton.jit
def _apply(x, y, out, FUNCTION: tl.constexpr, N: tl.constexpr, SM: tl.constexpr):
    at = tl.arange(0, N)
    a, b = tl.load(x + at), tl.load(y + at)
    if FUNCTION == "silu" or FUNCTION == "gelu_tanh" or FUNCTION == "swiglu_oai":
        tl.store(out + at, tiles.glu(a, b, FUNCTION))
    elif FUNCTION == "relu2":
        tl.store(out + at, tiles.relu2(a))
    elif FUNCTION == "e2m1":
        blocks = a.reshape(1, N // 16, 16)
        is_nan = tl.max((blocks != blocks).to(tl.int32), axis=2) > 0
        words = floats.pack(blocks, is_nan, SM).reshape(N // 8)
        tl.store(out + tl.arange(0, N // 8), words)
    elif FUNCTION == "e4m3":
        tl.store(out + at, floats.f32_to_e4m3(a, SM))
    elif FUNCTION == "bfloat16":
        tl.store(out + at, floats.from_f32(a, tl.bfloat16))
    elif FUNCTION == "e4m3_to_f16":
        tl.store(out + at, floats.e4m3_to_f16(a, SM).to(tl.float32))
    else:
        tl.store(out + at, floats.e2m1_to_f16(a).to(tl.float32) * floats.E2M1_F16_SCALE)


def _run(function: str, x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype, device: str):
    out = torch.empty(len(x), dtype=dtype, device=device)
    sm = target_of(torch.device(device)).sm
    _apply[(1,)](x.to(device), y.to(device), out, function, len(x), sm, enable_fp_fusion=False)
    return out.cpu()


def _floats() -> torch.Tensor:
    """Every exponent of float32, both signs; no NaN."""
    bits = torch.linspace(-(2**31), 2**31 - 1, COUNT, dtype=torch.float64).to(torch.int32)
    values = bits.view(torch.float32)
    return torch.where(values.isnan(), torch.ones_like(values), values)


@pytest.mark.parametrize("activation", glu.ACTIVATIONS)
def test_glu(device, activation):
    gate = torch.cat([torch.linspace(-100, 100, COUNT // 2), torch.randn(COUNT // 2) * 3])
    gate[:4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    up = torch.randn(COUNT)
    got = _run(activation, gate, up, torch.float32, device)
    both = gate if activation == "relu2" else torch.cat([gate, up])
    same_bits(got, glu.activate(both, None, activation))


def test_packing_e2m1(device):
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    near = torch.cat([ties, ties.nextafter(ties * 0), ties.nextafter(ties * 2), ties * 0])
    x = torch.cat([near, -near, torch.linspace(-8, 8, COUNT // 2 - 56), _floats()[::2]])
    x[-16:] = float("nan")
    words = _run("e2m1", x, x, torch.int32, device)[: COUNT // 8]
    codes = torch.where(x.isnan(), 7, rounding.to_e2m1(x))
    same_bits(words.view(torch.uint8), packing.pack(codes.to(torch.uint8)))


def test_f32_to_e4m3(device):
    x = torch.cat([torch.linspace(0, 500, COUNT // 2), _floats()[::2].abs()])
    want = rounding.to_e4m3(x).view(torch.uint8)
    same_bits(_run("e4m3", x, x, torch.uint8, device), want)


def test_f32_to_bfloat16(device):
    x = _floats()
    same_bits(_run("bfloat16", x, x, torch.bfloat16, device), x.to(torch.bfloat16))


def test_decoding_every_code_and_every_scale(device):
    codes = torch.arange(16, dtype=torch.uint8)
    same_bits(_run("e2m1_to_f16", codes, codes, torch.float32, device), rounding.from_e2m1(codes))
    scales = torch.arange(256, dtype=torch.uint8)
    got = _run("e4m3_to_f16", scales, scales, torch.float32, device)
    want = rounding.from_e4m3(scales.view(torch.float8_e4m3fn))
    assert torch.equal(got.isnan(), want.isnan())
    same_bits(got.nan_to_num(0), want.nan_to_num(0))
