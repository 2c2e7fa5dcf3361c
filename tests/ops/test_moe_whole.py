"""nvfp4::moe and nvfp4::swiglu_mlp whole: equal on every backend, equal to their stages, and blind
to a token's neighbours.
"""

from itertools import cycle

import pytest
import torch
from cases import activations, same_bits
from routing import NAN, PATTERNS, Pattern, exact_experts, exact_tokens, moved, same_rows
from torch import Tensor

import nvfp4
from nvfp4.spec.glu import glu
from nvfp4.spec.quantize import decode

H, INTERMEDIATE = 80, 128
WHOLE = [
    p
    for p in PATTERNS
    if p.name in ("skewed", "top 16", "nobody", "slice, middle rank", "ids far outside")
]
"""The stages are equal for every pattern (test_moe.py): these show that they are wired right."""
BY_PATTERN = pytest.mark.parametrize("pattern", PATTERNS, ids=str)


def experts_of(pattern: Pattern) -> tuple[nvfp4.ExpertWeights, nvfp4.ExpertWeights]:
    """w13 whose gate and up have their own global scales, and w2."""
    w13 = exact_experts(pattern.experts, 2 * INTERMEDIATE, H, segments=2)
    return w13, exact_experts(pattern.experts, H, INTERMEDIATE)


def step(values: Tensor) -> float:
    """The largest power of two that all values are multiples of."""
    exponent = 12
    while not torch.equal(values, (values / 2.0**exponent).round() * 2.0**exponent):
        exponent -= 1
    return 2.0**exponent


def sums_are_exact(a: Tensor, b: Tensor) -> bool:
    """Whether float32 holds every partial sum of A B^T, in any order."""
    steps = torch.tensor([step(row) for row in a]).view(-1, 1) * step(b)
    return bool((a.abs() @ b.abs().T <= steps * 2.0**24).all())


@BY_PATTERN
def test_the_sums_of_these_tests_are_exact(pattern):
    """What lets the tests below ask for equal bits: it holds by the data, not by luck."""
    ids, _ = pattern.route()
    x = exact_tokens(pattern.tokens, H)
    w13, w2 = experts_of(pattern)
    rows, _ = nvfp4.moe_dispatch(x, ids, pattern.experts, None, pattern.offset, backend="reference")
    for p in (None, torch.tensor(0.125)):
        h = nvfp4.grouped_mm_glu_quantize(rows, w13, None, p, swiglu_limit=7.0, backend="reference")
        for q, w in ((rows, w13), (h, w2)):
            values = decode(q.data, q.linear_scales()).double()
            edges = rows.offsets.tolist()
            for e, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
                if begin < end:
                    weights = decode(w[e].data, w[e].linear_scales()).double()
                    assert sums_are_exact(values[begin:end], weights)


@pytest.mark.op("moe")
@pytest.mark.parametrize(
    "pattern, static", list(zip(WHOLE, cycle([False, True]), strict=False)), ids=str
)
def test_moe_is_equal_on_every_backend(backend, device, pattern, static):
    ids, weights = pattern.route()
    x = exact_tokens(pattern.tokens, H)
    w13, w2 = experts_of(pattern)
    h_p = torch.tensor(0.125) if static else None
    scales = (None, h_p, None, None, pattern.offset, 0, 7.0)
    want = nvfp4.moe(x, weights, ids, w13, w2, *scales, backend="reference")
    assert torch.isfinite(want).all() and (want.any() or pattern.name == "nobody")
    on_device = [moved(t, device) for t in (x, weights, ids, w13, w2)]
    scales = (None, moved(h_p, device), *scales[2:])
    same_bits(nvfp4.moe(*on_device, *scales, backend=backend), want)


SMALL = [p for p in PATTERNS if p.name in ("uniform", "empty experts", "top 1")]
FORMS = [
    ("one", "gelu_tanh", False),
    ("expert", "silu", False),
    ("own", "swiglu_oai", True),
    ("expert", "relu2", True),
]
WIRINGS = [(pattern, *form) for pattern, form in zip(cycle(SMALL), FORMS, strict=False)]
"""Each kind of scales and each activation, the patterns in turn. The first two are those that a
kernel fuses, without biases; the others have them.
"""


@pytest.mark.op("moe")
@pytest.mark.parametrize("pattern, kind, activation, biased", WIRINGS, ids=str)
def test_moe_is_its_stages(backend, device, pattern, kind, activation, biased):
    """Whole, or by its four ops, or with the first layer by its two: on any data, the same bits."""
    ids, weights = (t.to(device) for t in pattern.route())
    x, experts = activations(pattern.tokens, H).to(device), pattern.experts
    parts, limit = (1, None) if activation == "relu2" else (2, 5.0)
    w13 = torch.randn(experts, 128 * parts, H) * 0.2
    w13 = nvfp4.quantize_experts(w13, segments=parts).to(device)
    w2 = nvfp4.quantize_experts(torch.randn(experts, H, 128) * 0.2).to(device)
    p = {"own": None, "one": torch.tensor(0.02), "expert": torch.rand(experts) + 0.01}[kind]
    p = moved(p, device)
    bias = torch.randn(experts, 128 * parts, device=device).bfloat16() if biased else None
    w2_bias = torch.randn(experts, H, device=device) if biased else None
    rows, positions = nvfp4.moe_dispatch(x, ids, experts)
    gate_up = nvfp4.grouped_mm(rows, w13, bias, backend=backend)
    h = nvfp4.grouped_glu_quantize(gate_up, rows.offsets, p, limit, activation=activation)
    options = {"activation": activation, "backend": backend}
    together = nvfp4.grouped_mm_glu_quantize(rows, w13, bias, p, limit, **options)
    same_rows(together, h)
    y = nvfp4.grouped_mm(h, w2, w2_bias, backend=backend)
    out = nvfp4.moe_combine(y, weights, positions)
    scales = (None, p, bias, w2_bias, 0, 0, limit)
    same_bits(nvfp4.moe(x, weights, ids, w13, w2, *scales, **options), out)


@pytest.mark.op("moe")
def test_a_token_does_not_see_its_neighbours(backend, device):
    """The batch permuted, padded with -1 and NaN, and cut to one token: the same bits, with scales
    for which the order of a sum shows.
    """
    tokens, experts, top_k = 24, 4, 2
    x = activations(tokens, H).to(device)
    ids = torch.rand(tokens, experts).argsort(1)[:, :top_k].to(device)
    weights = torch.rand(tokens, top_k).to(device)
    w13 = nvfp4.quantize_experts(torch.randn(experts, 64, H), segments=2).to(device)
    w2 = nvfp4.quantize_experts(torch.randn(experts, H, 32)).to(device)

    def run(x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        return nvfp4.moe(x, weights, ids, w13, w2, backend=backend)

    want = run(x, weights, ids)
    order = torch.randperm(tokens).to(device)
    same_bits(run(x[order], weights[order], ids[order]), want[order])
    same_bits(run(x[5:6], weights[5:6], ids[5:6]), want[5:6])
    pad = 150
    padded = run(
        torch.cat([x, torch.full((pad, H), NAN, dtype=x.dtype, device=device)]),
        torch.cat([weights, torch.full((pad, top_k), NAN, device=device)]),
        torch.cat([ids, torch.full((pad, top_k), -1, device=device)]),
    )
    same_bits(padded[:tokens], want)
    assert not padded[tokens:].any()
    crowd = run(x.repeat(9, 1), weights.repeat(9, 1), ids.repeat(9, 1))
    same_bits(crowd[:tokens], want)


@pytest.mark.op("moe")
def test_slices_of_experts_add_up(backend, device):
    """What each rank of two computes adds up to what one with all experts does."""
    pattern = Pattern("whole", PATTERNS[0].ids, tokens=20, experts=6)
    ids, weights = pattern.route()
    x = exact_tokens(20, H)
    w13, w2 = experts_of(pattern)
    args = [moved(t, device) for t in (x.float(), weights, ids)]

    def run(first: int, count: int, of: int = 0) -> Tensor:
        part = [w.slice(first, count).to(device) for w in (w13, w2)]
        options = {"expert_offset": first, "backend": backend, "global_num_experts": of}
        return nvfp4.moe(*args, *part, **options)

    torch.testing.assert_close(run(0, 3) + run(3, 3), run(0, 6), rtol=2**-22, atol=0)
    same_bits(run(3, 3, of=6), run(3, 3))


def test_gate_and_up_keep_their_own_global_scales(device):
    """Gate and up 16 times apart: a common scale, the larger one, is another function."""
    x = torch.randn(8, H, device=device)
    gate, up = torch.randn(2, 3, 64, H, device=device)
    w2 = nvfp4.quantize_experts(torch.randn(3, H, 64, device=device))
    w13 = nvfp4.quantize_experts(torch.cat([gate / 16, up], 1), segments=2)
    assert w13.global_scale.shape == (3, 2)
    ids = torch.randint(0, 3, (8, 2), device=device)
    out = nvfp4.moe(x, torch.ones(8, 2, device=device), ids, w13, w2)
    wrong = nvfp4.ExpertWeights(w13.data, w13.scales, w13.global_scale.amax(1))
    other = nvfp4.moe(x, torch.ones(8, 2, device=device), ids, wrong, w2)
    want = torch.zeros(8, H, dtype=torch.float64)
    for token, choices in enumerate(ids.tolist()):
        for e in choices:
            parts = w13[e].dequantize(torch.float32), w2[e].dequantize(torch.float32)
            both, down = (part.double().cpu() for part in parts)
            g, u = (both @ x[token].double().cpu()).chunk(2)
            want[token] += down @ (torch.nn.functional.silu(g) * u)

    def error(got: Tensor) -> float:
        return ((got.double().cpu() - want).norm() / want.norm()).item()

    assert error(out) < 0.25 and error(other) > 1


@pytest.mark.op("swiglu_mlp")
@pytest.mark.parametrize("tokens, static", [(1, True), (40, False), (130, True)])
def test_the_shared_expert_is_a_mixture_of_one(backend, device, tokens, static):
    """The same two GEMMs: as one expert of which every token has all."""
    x = exact_tokens(tokens, H).to(device)
    w13, w2 = (moved(w, device) for w in experts_of(Pattern("one", PATTERNS[0].ids, experts=1)))
    x_p, h_p = (torch.tensor(p, device=device) if static else None for p in (2.0**-9, 0.125))
    biases = torch.randn(2 * INTERMEDIATE).bfloat16(), torch.randn(H)
    b13, b2 = (moved(b, device).round() if static else None for b in biases)
    options = {"swiglu_limit": 7.0, "activation": "swiglu_oai" if static else "silu"}
    got = nvfp4.swiglu_mlp(x, w13[0], w2[0], x_p, h_p, b13, b2, **options, backend=backend)
    ids = torch.zeros(tokens, 1, dtype=torch.int32, device=device)
    ones = torch.ones(tokens, 1, device=device)
    b13, b2 = (None if b is None else b[None] for b in (b13, b2))
    same_bits(
        got, nvfp4.moe(x, ones, ids, w13, w2, x_p, h_p, b13, b2, **options, backend="reference")
    )


def test_swiglu_mlp_against_float64(device):
    x = torch.randn(2, 5, H, device=device)
    gate, up, down = torch.randn(64, H), torch.randn(64, H), torch.randn(48, 64)
    w13 = nvfp4.concatenate([nvfp4.quantize(gate.to(device)), nvfp4.quantize(up.to(device) / 9)])
    got = nvfp4.swiglu_mlp(x, w13, nvfp4.quantize(down.to(device)), swiglu_limit=2.0)
    rows = x.cpu().double().view(10, H)
    want = glu((rows @ gate.T.double()).float(), (rows @ up.T.double() / 9).float(), 2.0)
    want = want.double() @ down.T.double()
    assert got.shape == (2, 5, 48)
    assert torch.cosine_similarity(got.cpu().double().flatten(), want.flatten(), 0) > 0.95


@pytest.mark.op("grouped_mm_glu_quantize")
@pytest.mark.parametrize("segments", [1, 2, 4, 8])
def test_the_first_layer_with_any_number_of_segments(backend, device, segments):
    """A fused kernel has its own needs of them; the stages take what is left."""
    pattern = PATTERNS[0]
    ids, _ = pattern.route()
    w13 = moved(exact_experts(pattern.experts, 256, H, segments), device)
    rows, _ = nvfp4.moe_dispatch(exact_tokens(pattern.tokens, H).to(device), ids.to(device), 6)
    p = torch.tensor(0.125, device=device)
    got = nvfp4.grouped_mm_glu_quantize(rows, w13, None, p, 7.0, backend=backend)
    same_rows(got, nvfp4.grouped_mm_glu_quantize(rows, w13, None, p, 7.0, backend="reference"))
