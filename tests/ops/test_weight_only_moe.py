"""moe with activation_format="bf16" (W4A16): weights in NVFP4, activations as they are."""

from functools import partial

import pytest
import torch
from cases import activations, same_bits
from routing import FEW
from torch import Tensor

import nvfp4
import nvfp4.layers
from nvfp4.spec.format import FLOAT_DTYPES
from nvfp4.spec.glu import activate, columns_per_output

pytestmark = pytest.mark.op("weight_only_moe")

_linear = partial(torch.ops.nvfp4.linear, activation="bf16", backend="reference")
H, INTER = 80, 48


def _experts(count: int, activation: str) -> tuple[nvfp4.ExpertWeights, nvfp4.ExpertWeights]:
    parts = columns_per_output(activation)
    return (
        nvfp4.quantize_experts(torch.randn(count, parts * INTER, H) / 8, parts, "reference"),
        nvfp4.quantize_experts(torch.randn(count, H, INTER) / 8, backend="reference"),
    )


def _by_linear(x, weights, ids, w13, w2, b13, b2, limit, activation) -> Tensor:
    """Expert by expert: linear's W4A16, the activation in x's dtype, and linear again."""
    out = torch.zeros(x.shape, dtype=torch.float32)
    for token, choice in ((t, j) for t in range(len(x)) for j in range(ids.shape[1])):
        expert = int(ids[token, choice])
        if 0 <= expert < len(w13.data):
            first, second = w13[expert], w2[expert]
            operands = first.data, first.scales, first.global_scale
            h = _linear(x[token : token + 1], *operands, bias=b13[expert])
            h = activate(h.float(), limit, activation).to(x.dtype)
            operands = second.data, second.scales, second.global_scale
            y = _linear(h, *operands, bias=b2[expert])[0].float()
            out[token] += weights[token, choice] * y
    return out.to(x.dtype)


CASES = list(
    zip(FEW, FLOAT_DTYPES, (("silu", 1.0), ("swiglu_oai", 7.0), ("relu2", None)), strict=True)
)


@pytest.mark.parametrize("pattern, dtype, form", CASES, ids=str)
def test_is_linear_expert_by_expert(backend, device, pattern, dtype, form):
    activation, limit = form
    ids, weights = pattern.route()
    x, (w13, w2) = activations(pattern.tokens, H, dtype), _experts(pattern.experts, activation)
    x = (x.float() / x.float().abs().amax(1, keepdim=True).clamp(min=1e-9)).to(dtype)
    b13 = torch.randn(w13.data.shape[:2]).bfloat16()
    b2 = torch.randn(pattern.experts, H)
    want = _by_linear(x, weights, ids - pattern.offset, w13, w2, b13, b2, limit, activation)
    args = [t.to(device) for t in (x, weights, ids, w13, w2)]
    got = nvfp4.moe(
        *args,
        w13_bias=b13.to(device),
        w2_bias=b2.to(device),
        expert_offset=pattern.offset,
        swiglu_limit=limit,
        activation_format="bf16",
        activation=activation,
        backend=backend,
    ).cpu()
    if backend == "reference":
        same_bits(got, want)
    # Float32 sums in another order round some elements of h to their neighbours in 16 bits. These
    # errors of half a unit each are independent, and there are fewer than INTER of them a result.
    unit = torch.finfo(torch.bfloat16 if dtype == torch.float32 else dtype).eps
    assert (got.double() - want.double()).norm() <= 2 * unit * want.double().norm()


def test_rows_longer_than_a_program_holds(interpreted, monkeypatch, device):
    """Each program then reads whole rows for their largest element."""
    monkeypatch.setattr("nvfp4.backends.triton.weight_only_moe.MAX_ROW_COLUMNS", 64)
    w13 = nvfp4.quantize_experts(torch.randn(2, 2 * 96, 160), segments=2, backend="reference")
    w2 = nvfp4.quantize_experts(torch.randn(2, 160, 96), backend="reference")
    x, ids = torch.randn(3, 160).bfloat16(), torch.tensor([[0], [1], [1]])
    x[:, 150] = 2.0**20  # in the last columns: without them float16 would overflow
    args = x, torch.ones(3, 1), ids, w13, w2
    there = [a.to(device) for a in args]
    want = nvfp4.moe(*args, activation_format="bf16", backend="reference").double()
    got = nvfp4.moe(*there, activation_format="bf16", backend="triton").double().cpu()
    assert (got - want).norm() <= 2**-7 * want.norm()


def test_a_token_does_not_see_its_neighbours(backend, device):
    w13, w2 = (w.to(device) for w in _experts(4, "silu"))
    x, ids = activations(9, H).to(device), (torch.arange(18) % 4).view(9, 2).to(device)
    weights = torch.rand(9, 2).to(device)
    args = {"activation_format": "bf16", "backend": backend}
    want = nvfp4.moe(x, weights, ids, w13, w2, **args)
    same_bits(nvfp4.moe(x[4:5], weights[4:5], ids[4:5], w13, w2, **args), want[4:5])


def test_the_layer_is_nearer_to_floats_than_with_activations_quantized(device):
    gate, up = torch.randn(2, 3, INTER, H, device=device) / 8
    down = torch.randn(3, H, INTER, device=device) / 8
    layer = nvfp4.layers.MoE.from_float(gate, up, down, activation_format="bf16")
    x, ids = torch.randn(20, H, device=device), torch.randint(0, 3, (20, 1), device=device)
    ones = torch.ones(20, 1, device=device)
    w13, w2 = layer.packed()
    exact = torch.zeros(20, H, dtype=torch.float64)
    for token, (expert,) in enumerate(ids.tolist()):
        both, w = (p[expert].dequantize(torch.float32).double().cpu() for p in (w13, w2))
        exact[token] = w @ activate((both @ x[token].double().cpu()).float()).double()

    def error() -> float:
        return float((layer(x, ones, ids).double().cpu() - exact).norm() / exact.norm())

    assert error() < 0.01 and "activation_format=bf16" in repr(layer)
    layer.activation_format = "nvfp4"
    assert error() > 0.05


def test_a_backend_of_gemms_alone_leaves_it_to_the_others(device):
    w13, w2 = (w.to(device) for w in _experts(2, "silu"))
    x, ids = activations(3, H).to(device), torch.zeros(3, 1, dtype=torch.int64, device=device)
    args = x, torch.ones(3, 1, device=device), ids, w13, w2
    got = nvfp4.moe(*args, activation_format="bf16", backend="cutedsl")
    same_bits(got, nvfp4.moe(*args, activation_format="bf16"))
