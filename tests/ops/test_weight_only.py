"""linear with activation="bf16": weights in NVFP4, activations as they are."""

from itertools import cycle

import pytest
import torch
from bounds import gemm_bound
from cases import activations, same_bits

import nvfp4
import nvfp4.layers
from nvfp4.spec.format import FLOAT_DTYPES

pytestmark = pytest.mark.op("weight_only_linear")

OPS = torch.ops.nvfp4
SHAPES = [
    (1, 48, 16), (3, 200, 176), (17, 64, 640), (70, 144, 384), (300, 256, 1152), (530, 48, 128),
]  # fmt: skip


def _weight(n: int, k: int) -> nvfp4.QuantizedTensor:
    parts = [nvfp4.quantize(torch.randn(n // 2, k) * s, backend="reference") for s in (1, 30)]
    return nvfp4.concatenate(parts)


def _linear(
    x: torch.Tensor, w: nvfp4.QuantizedTensor, bias=None, backend: str = ""
) -> torch.Tensor:
    return OPS.linear(
        x, w.data, w.scales, w.global_scale, None, bias, activation="bf16", backend=backend
    )


@pytest.mark.parametrize("shape, dtype", list(zip(SHAPES, cycle(FLOAT_DTYPES))), ids=str)
def test_against_float64(backend, device, shape, dtype):
    m, n, k = shape
    x, w, bias = (activations(m, k) / 2**12).to(dtype), _weight(n, k), torch.randn(n)
    got = _linear(x.to(device), w.to(device), bias.to(device), backend).cpu()
    assert got.dtype == dtype
    values = (x.bfloat16() if dtype == torch.float32 else x).double()
    ones = nvfp4.QuantizedTensor(w.data, w.scales, torch.tensor(1.0))
    weights = ones.dequantize(torch.float32).double()
    alpha = w.global_scale.double().repeat_interleave(n // w.global_scale.numel())[None]
    exact = values @ weights.T * alpha + bias.double()
    bound = gemm_bound(values, weights, alpha, exact, dtype)
    # An element less than 2^-31 of its row's largest may lose bits: 2^-39 of that one at most.
    lost = 2.0**-39 * values.abs().amax(1, keepdim=True) * weights.abs().sum(1) * alpha
    assert ((got.double() - exact).abs() <= bound + lost).all()


def test_rows_of_any_magnitude(backend, device):
    """Zero, the least and the greatest bfloat16: each row has its own power of two."""
    w = _weight(32, 64).to(device)
    x = torch.randn(5, 64).sign() * torch.tensor([0.0, 1e-38, 1.0, 1e30, 3e38])[:, None]
    x = x.bfloat16().to(device)
    tame = _linear(x.float().sign().bfloat16(), w, None, backend)
    got = _linear(x, w, None, backend).double()
    want = tame.double() * x.double().abs().amax(1, keepdim=True)
    finite = want.abs() < torch.finfo(torch.bfloat16).max
    # Both are rounded to bfloat16, half an ulp each: 2^-8.
    torch.testing.assert_close(got[finite], want[finite], rtol=2**-7, atol=1e-40)
    assert not got.isnan().any()


def test_bits_do_not_depend_on_how_many_tokens_come(backend, device, monkeypatch):
    monkeypatch.setenv("NVFP4_BATCH_INVARIANT", "1")
    x, w = torch.randn(600, 256).bfloat16().to(device), _weight(48, 256).to(device)
    together = _linear(x, w, None, backend)
    for tokens in (1, 9, 70, 300, 513):
        same_bits(_linear(x[:tokens], w, None, backend), together[:tokens])


def test_nearer_to_the_unquantized_product_than_with_activations_quantized(backend, device):
    x, weight = torch.randn(40, 256).bfloat16(), torch.randn(64, 256).bfloat16()
    w = nvfp4.quantize_weight(weight, backend="reference")
    exact = (x.double() @ weight.double().T).to(device)

    def error(activation: str) -> float:
        args = (x.to(device), *(t.to(device) for t in (w.data, w.scales, w.global_scale)))
        got = OPS.linear(*args, activation=activation, backend=backend)
        return float((got.double() - exact).norm() / exact.norm())

    # Activations and weights err alike, and independently: without one of them 1 / sqrt(2) is left.
    assert error("bf16") < 0.8 * error("nvfp4")


def test_the_layer(device):
    linear = torch.nn.Linear(64, 32, dtype=torch.bfloat16)
    x = torch.randn(2, 3, 64, dtype=torch.bfloat16, device=device)
    layer = nvfp4.layers.Linear.from_float(linear, activation="bf16").to(device)
    same_bits(layer(x), _linear(x, layer.packed(), layer.bias))
    layer.activation = "nvfp4"
    assert not torch.equal(layer(x), _linear(x, layer.packed(), layer.bias))


def test_compiles_to_one_graph(device, compiles):
    layer = nvfp4.layers.Linear.from_float(torch.nn.Linear(64, 32), activation="bf16").to(device)
    x = torch.randn(7, 64, dtype=torch.bfloat16, device=device)
    same_bits(torch.compile(layer, fullgraph=True, dynamic=True)(x), layer(x))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"activation": "fp8"}, "activation needs 'nvfp4' or 'bf16', got 'fp8'"),
        (
            {"activation": "bf16", "x_global_scale": torch.tensor(1.0)},
            "x_global_scale needs to be None with activation='bf16'",
        ),
    ],
)
def test_refuses(arguments, message):
    w = _weight(32, 64)
    with pytest.raises(ValueError, match=message):
        nvfp4.linear(torch.randn(3, 64), w.data, w.scales, w.global_scale, **arguments)
