"""The same bugs where experts are multiplied, each named after its symptom; SEEDS.md has all."""

import pytest
import torch
from cases import same_bits
from routing import exact_experts, exact_tokens

import nvfp4
from nvfp4.spec.glu import glu

pytestmark = pytest.mark.op("moe")


def call(x, ids, w13, w2, backend, limit=None):
    weights = torch.full(ids.shape, 0.5, device=x.device)
    return nvfp4.moe(x, weights, ids, w13, w2, swiglu_limit=limit, backend=backend)


def problem(tokens: int, experts: int, hidden: int, intermediate: int, device: str) -> tuple:
    x = exact_tokens(tokens, hidden).to(device)
    ids = torch.randint(0, experts, (tokens, 2), device=device)
    w13 = exact_experts(experts, 2 * intermediate, hidden, segments=2).to(device)
    return x, ids, w13, exact_experts(experts, hidden, intermediate).to(device)


def test_cosine_half_when_a_grouped_kernel_is_reused_with_other_allocations(backend, device):
    x, ids, w13, w2 = problem(9, 3, 64, 128, device)
    want = call(x, ids, w13, w2, backend)
    kept = []
    for _ in range(2):
        copies = [
            nvfp4.ExpertWeights(w.data.clone(), w.scales.clone(), w.global_scale.clone())
            for w in (w13, w2)
        ]
        kept.append(copies)
        same_bits(call(x.clone(), ids.clone(), *copies, backend), want)


def test_wrong_memory_access_after_a_dummy_shape_was_compiled_for_experts(backend, device):
    """A first call of a small problem fixes nothing for those of other sizes and other experts."""
    for tokens, experts, hidden, intermediate in [(4, 2, 64, 64), (3, 5, 96, 128), (1, 1, 160, 32)]:
        args = problem(tokens, experts, hidden, intermediate, device)
        same_bits(call(*args, backend, 7.0), call(*args, "reference", 7.0))


@pytest.mark.parametrize("hidden, intermediate", [(128, 128), (128, 64), (64, 128), (128, 256)])
def test_wrong_scatter_when_hidden_equals_another_dimension(backend, device, hidden, intermediate):
    """H = I, H = 2I, I = 2H, and H equal to the number of tokens: no size is told by another."""
    x, ids, w13, w2 = problem(hidden, 2, hidden, intermediate, device)
    out = call(x, ids, w13, w2, backend, 7.0)
    assert out.shape == x.shape
    same_bits(out, call(x, ids, w13, w2, "reference", 7.0))
    token, got = 3, out[3].double().cpu()
    want = torch.zeros(hidden, dtype=torch.float64)
    for e in ids[token].tolist():
        both, down = (w[e].dequantize(torch.float32).double().cpu() for w in (w13, w2))
        g, u = (both @ x[token].double().cpu()).chunk(2)
        want += 0.5 * (down @ glu(g.float(), u.float(), 7.0).double())
    assert torch.cosine_similarity(got, want, 0) > 0.97


def test_n_of_the_experts_was_doubled_as_if_it_were_packed(backend, device):
    """N = 2I is w13's own size: right by accident where N's double was meant to be 2I."""
    x, ids, w13, w2 = problem(2, 2, 64, 96, device)
    rows, _ = nvfp4.moe_dispatch(x, ids, 2)
    assert nvfp4.grouped_mm(rows, w13, backend=backend).shape == (4, 192)
    assert call(x, ids, w13, w2, backend).shape == (2, 64)


def test_swiglu_gate_of_the_experts_was_clamped_after_silu(backend, device):
    """gate = min(gate, L) before SiLU, in the fused kernel too."""
    x = torch.ones(1, 16, device=device)
    weight = torch.zeros(1, 256, 16, device=device)
    weight[:, :128, 0], weight[:, 128:, 0] = 20.0, 1.0  # gate 20, up 1
    w13 = nvfp4.quantize_experts(weight, segments=2)
    rows, _ = nvfp4.moe_dispatch(x, torch.zeros(1, 1, dtype=torch.int64, device=device), 1)
    silu_of_limit = 7 / (1 + torch.exp(torch.tensor(-7.0)))
    p = (silu_of_limit / 2688).to(device)
    for scale in (None, p):
        h = nvfp4.grouped_mm_glu_quantize(rows, w13, None, scale, swiglu_limit=7.0, backend=backend)
        got = h.dequantize(torch.float32).cpu()
        torch.testing.assert_close(got, silu_of_limit.expand(1, 128), rtol=1e-5, atol=0)


@pytest.mark.interpreted
@pytest.mark.parametrize("tokens", [1, 127, 128, 129])
def test_scales_of_experts_were_not_padded_to_128_rows(device, tokens):
    """Every expert's start on a 128-row tile, and what is between is zero."""
    x = torch.randn(tokens, 80, device=device)
    ids = torch.arange(tokens, device=device).view(-1, 1) % 2
    for backend in ("reference", "triton"):
        rows, _ = nvfp4.moe_dispatch(x, ids, 2, backend=backend)
        assert rows.scales.shape[0] == -(-tokens // 128) * 128 + 128
        used = (rows.scales.view(torch.uint8) != 0).sum()
        assert used == (rows.linear_scales().view(torch.uint8) != 0).sum() > 0
