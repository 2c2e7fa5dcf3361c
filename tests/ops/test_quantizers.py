"""quantize, quantize_dynamic, dequantize, silu_mul_quantize: bit for bit the same on every
backend.
"""

import numpy as np
import oracle
import pytest
import torch
from cases import activations, from_numpy, same_bits, specials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvfp4 import swizzle_scales
from nvfp4.calls import GluQuantize, Quantize, QuantizeDynamic
from nvfp4.dispatch import fill
from nvfp4.spec.format import FLOAT_DTYPES, SCALE_LAYOUTS

pytestmark = pytest.mark.op("quantize_dynamic")

OPS = torch.ops.nvfp4
SIZES = [(1, 16), (1, 576), (5, 48), (33, 256), (128, 64), (130, 576), (2, 1168)]
CASES = [
    (rows, k, layout, FLOAT_DTYPES[(i + j) % 3])
    for i, (rows, k) in enumerate(SIZES)
    for j, layout in enumerate(SCALE_LAYOUTS)
]
"""Dtypes in turn: a dtype is a conversion where a program loads, whatever the size."""

IN_TURN = pytest.mark.parametrize("rows, k, layout, dtype", CASES, ids=str)
BY_LAYOUT = pytest.mark.parametrize("layout", SCALE_LAYOUTS)
BY_DTYPE = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)


def _same(got: tuple, want: tuple) -> None:
    for g, w in zip(got, want, strict=True):
        same_bits(g, w)


def _static(x: torch.Tensor, per_row: bool) -> torch.Tensor:
    amax = x.float().abs().nan_to_num(0, 0, 0)
    p = (amax.amax(1) if per_row else amax.amax()) / 2688
    return torch.where(p == 0, torch.ones_like(p), p)


@IN_TURN
def test_quantize(backend, device, rows, k, layout, dtype):
    x = activations(rows, k, dtype)
    for per_row in (False, True):
        p = _static(x, per_row)
        want = OPS.quantize(x, p, layout, backend="reference")
        _same(OPS.quantize(x.to(device), p.to(device), layout, backend=backend), want)


@IN_TURN
def test_quantize_dynamic(backend, device, rows, k, layout, dtype):
    x = activations(rows, k, dtype)
    _same(
        OPS.quantize_dynamic(x.to(device), layout, backend=backend),
        OPS.quantize_dynamic(x, layout, backend="reference"),
    )


def test_quantize_dynamic_of_rows_longer_than_a_program_holds(backend, device):
    x = activations(3, 65536 + 48)
    _same(
        OPS.quantize_dynamic(x.to(device), "linear", backend=backend),
        OPS.quantize_dynamic(x, "linear", backend="reference"),
    )


@BY_LAYOUT
def test_specials(backend, device, layout):
    x = specials()
    p = torch.tensor(3e-4)
    _same(
        OPS.quantize(x.to(device), p.to(device), layout, backend=backend),
        OPS.quantize(x, p, layout, backend="reference"),
    )
    _same(
        OPS.quantize_dynamic(x.to(device), layout, backend=backend),
        OPS.quantize_dynamic(x, layout, backend="reference"),
    )
    gate_up = torch.cat([specials(), specials()], 1)
    want = OPS.silu_mul_quantize(gate_up, p, 5.0, layout, "reference")
    _same(OPS.silu_mul_quantize(gate_up.to(device), p.to(device), 5.0, layout, backend), want)


def _with_neighbours(points: np.ndarray) -> np.ndarray:
    points = points.astype(np.float32)
    below = np.nextafter(points, np.float32(-np.inf))
    return np.concatenate([points, below, np.nextafter(points, np.float32(np.inf))])


def test_every_tie_of_the_codes(backend, device):
    """A 6 in each block and p = 1 make its scale 1: the elements are rounded as they are."""
    midpoints = (oracle.E2M1[1:] + oracle.E2M1[:-1]) / 2
    values = from_numpy(_with_neighbours(np.concatenate([midpoints, oracle.E2M1])))
    values = torch.cat([values, -values])
    x = torch.zeros(16, 96)
    x.view(-1, 16)[:, 0] = 6.0
    x.view(-1, 16)[: len(values), 1] = values
    p = torch.tensor(1.0)
    data, scales = OPS.quantize(x.to(device), p.to(device), "linear", backend=backend)
    codes, bytes_ = oracle.quantize(x.numpy(), np.ones(16))
    same_bits(data, from_numpy(oracle.pack(codes)))
    same_bits(scales.view(torch.uint8), from_numpy(bytes_))
    assert set(codes.flatten().tolist()) == set(range(16))


def test_every_tie_of_the_scales(backend, device):
    table = oracle.E4M3[:0x7F]
    points = np.concatenate([(table[1:] + table[:-1]) / 2, table, [460.0, 464.0, 480.0, 1e6]])
    amax = _with_neighbours(points * 6)
    x = torch.zeros(128, 16 * -(-len(amax) // 128))
    x.view(-1, 16)[: len(amax), 5] = from_numpy(amax)
    p = torch.tensor(1.0)
    data, scales = OPS.quantize(x.to(device), p.to(device), "linear", backend=backend)
    codes, bytes_ = oracle.quantize(x.numpy(), np.ones(128))
    same_bits(data, from_numpy(oracle.pack(codes)))
    same_bits(scales.view(torch.uint8), from_numpy(bytes_))
    assert set(bytes_.flatten().tolist()) == set(range(0x7F))


def test_bfloat16_subnormals(backend, device):
    x = torch.randn(4, 64).mul(1e-39).to(torch.bfloat16)
    assert x.abs().max() < torch.finfo(torch.bfloat16).tiny
    p = torch.tensor(2e-38)
    _same(
        OPS.quantize(x.to(device), p.to(device), "linear", backend=backend),
        OPS.quantize(x, p, "linear", backend="reference"),
    )


@IN_TURN
def test_silu_mul_quantize(backend, device, rows, k, layout, dtype):
    gate_up = activations(rows, 2 * k, dtype)
    p, limit = torch.tensor(0.01), 7.0 if rows % 2 else None
    want = OPS.silu_mul_quantize(gate_up, p, limit, layout, "reference")
    _same(OPS.silu_mul_quantize(gate_up.to(device), p.to(device), limit, layout, backend), want)


@IN_TURN
def test_dequantize(backend, device, rows, k, layout, dtype):
    data, scales, p = OPS.quantize_dynamic(activations(rows, k), layout, backend="reference")
    for scale in (p, p[:1]):
        want = OPS.dequantize(data, scales, scale, dtype, layout, "reference")
        got = OPS.dequantize(
            data.to(device), scales.to(device), scale.to(device), dtype, layout, backend
        )
        same_bits(got, want)


@BY_DTYPE
def test_dequantize_every_code_under_every_scale(backend, device, dtype):
    data = torch.arange(256, dtype=torch.uint8).repeat(256, 1)
    scales = (
        torch.arange(256, dtype=torch.uint8).view(256, 1).repeat(1, 32).view(torch.float8_e4m3fn)
    )
    p = torch.tensor(0.7)
    want = OPS.dequantize(data, scales, p, dtype, "linear", "reference")
    got = OPS.dequantize(
        data.to(device), scales.to(device), p.to(device), dtype, "linear", backend
    ).cpu()
    nan = want.isnan()
    assert torch.equal(got.isnan(), nan) and nan.sum() == 2 * 512
    same_bits(got.masked_fill(nan, 0), want.masked_fill(nan, 0))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.integers(1, 140), blocks=st.integers(1, 40), seed=st.integers(0, 2**30))
def test_any_shape(backend, device, rows, blocks, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(rows, blocks * 16, generator=generator)
        * torch.rand(rows, 1, generator=generator).exp()
    )
    want = OPS.quantize_dynamic(x, "swizzled", backend="reference")
    got = OPS.quantize_dynamic(x.to(device), "swizzled", backend=backend)
    _same(got, want)
    _same(
        OPS.quantize(x.to(device), got[2], "swizzled", backend=backend),
        OPS.quantize(x, want[2], "swizzled", backend="reference"),
    )


@pytest.mark.parametrize("rows, k", [(1, 16), (129, 80), (128, 144), (3, 1168)])
def test_every_byte_of_the_outputs_is_written_and_padding_is_zero(backend, device, rows, k):
    """The launchers get outputs full of NaN bytes."""
    x = activations(rows, k).to(device)
    gate_up, p = torch.cat([x, x], 1), torch.full((1,), 1e-3, device=device)
    calls = (
        (Quantize(x, p, backend=backend), OPS.quantize(x, p, "swizzled", backend="reference")),
        (
            QuantizeDynamic(x, backend=backend),
            OPS.quantize_dynamic(x, "swizzled", backend="reference"),
        ),
        (GluQuantize(gate_up, backend=backend), OPS.glu_quantize(gate_up, backend="reference")),
    )
    for call, want in calls:
        outputs = call.outputs()
        for output in outputs:
            output.view(torch.uint8).fill_(0x7F)
        fill(call, outputs)
        _same(tuple(outputs), want)
        inside = swizzle_scales(torch.ones(rows, k // 16, dtype=torch.uint8, device=device)) != 0
        assert not want[1].view(torch.uint8)[~inside].any()


def test_signed_zero_keeps_its_sign(backend, device):
    x = torch.tensor([[0.0, -0.0] * 8], device=device)
    data, scales, p = OPS.quantize_dynamic(x, "linear", backend=backend)
    assert data.tolist() == [[0x80] * 8] and scales.view(torch.uint8).item() == 0 and p.item() == 1


def test_nan_surfaces_in_its_block_only(backend, device):
    x = torch.ones(1, 48, device=device)
    x[0, 20] = float("nan")
    data, scales, _ = OPS.quantize_dynamic(x, "linear", backend=backend)
    assert scales.view(torch.uint8)[0].tolist()[1] == 0x7F
    assert data[0, 8:16].tolist() == [0x77] * 8
    assert not scales.float()[0, [0, 2]].isnan().any()
