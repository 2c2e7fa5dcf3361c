"""rmsnorm_quantize: the oracle's bits on the reference, and the reference's on every backend."""

import numpy as np
import oracle
import pytest
import torch
from cases import activations, from_numpy, same_bits, specials
from kernel_forms import one_nan

import nvfp4
from nvfp4.spec.format import FLOAT_DTYPES

pytestmark = pytest.mark.op("rmsnorm_quantize")

OPS = torch.ops.nvfp4
EPS = 1e-6
BF16, F16, F32 = FLOAT_DTYPES


def _same(x, weight, residual, p, layout, backend, device):
    arguments = (x, weight, EPS, residual, p, layout)
    there = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
    got = OPS.rmsnorm_quantize(*there, backend=backend)
    for g, w in zip(got, OPS.rmsnorm_quantize(*arguments, backend="reference"), strict=True):
        same_bits(one_nan(g).cpu(), one_nan(w))


@pytest.mark.parametrize("k", [16, 144, 576])
def test_the_reference_has_the_oracles_bits(k):
    x, residual, weight = torch.randn(7, k), torch.randn(7, k), torch.randn(k)
    data, scales, p, total = OPS.rmsnorm_quantize(x, weight, EPS, residual, None, "linear")
    same_bits(total, x + residual)
    normalized = oracle.rms_norm(total.numpy(), weight.numpy(), EPS)
    same_bits(p, from_numpy(oracle.row_global_scale(normalized)))
    codes, bytes_ = oracle.quantize(normalized, p.numpy())
    same_bits(data, from_numpy(oracle.pack(codes)))
    same_bits(scales.view(torch.uint8), from_numpy(bytes_))
    exact = total.double() / (total.double() ** 2).mean(1, keepdim=True).add(EPS).sqrt()
    np.testing.assert_allclose(normalized, exact * weight, rtol=k * 2e-7)


@pytest.mark.parametrize(
    "rows, k, layout, dtype",
    [(1, 576, "swizzled", BF16), (129, 48, "swizzled", F16), (33, 256, "linear", F32)],
    ids=str,
)
def test_backends_agree(backend, device, rows, k, layout, dtype):
    x, residual, weight = activations(rows, k, dtype), torch.randn(rows, k), torch.randn(k)
    _same(x, weight, residual.to(dtype), None, layout, backend, device)
    _same(x, weight.to(dtype), None, torch.rand(rows) + 0.01, layout, backend, device)


def test_backends_agree_on_nan_infinity_subnormals_and_huge_numbers(backend, device):
    x, weight = specials(80), torch.randn(80)
    weight[70], weight[3] = float("inf"), float("nan")
    for residual, p in ((None, None), (specials(80).flip(0), torch.tensor(0.3))):
        _same(x, weight, residual, p, "swizzled", backend, device)


def test_backends_agree_on_rows_longer_than_a_program_holds(backend, device):
    x, weight = activations(2, 32768 + 48), torch.randn(32768 + 48)
    _same(x, weight, x.flip(1), None, "linear", backend, device)


def test_the_new_residual_is_what_was_normalized():
    x, residual = activations(5, 64), torch.randn(5, 64, dtype=torch.bfloat16)
    weight = torch.ones(64)
    packed, total = nvfp4.rmsnorm_quantize(x, weight, EPS, residual)
    same_bits(total, x + residual)
    alone, same = nvfp4.rmsnorm_quantize(total, weight, EPS)
    assert same is total
    for got, want in ((packed.data, alone.data), (packed.scales, alone.scales)):
        same_bits(got, want)
