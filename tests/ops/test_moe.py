"""A mixture of experts, stage by stage and whole, on every backend: what only moves and quantizes
is equal to the bit; GEMMs are where float32 sums are exact, and else within the derived bound.
"""

from functools import cache

import oracle
import pytest
import torch
from bounds import gemm_bound
from cases import activations, from_numpy, same_bits
from routing import FEW, PATTERNS, Pattern, exact_experts, exact_tokens, in_turn, moved, same_rows
from torch import Tensor

import nvfp4
from nvfp4.calls import Dispatched, GluQuantize, MoeDispatch, Quantized
from nvfp4.dispatch import fill
from nvfp4.spec.format import FLOAT_DTYPES
from nvfp4.spec.glu import ACTIVATIONS, activate, columns_per_output
from nvfp4.spec.grouped import swizzle_grouped_scales
from nvfp4.spec.quantize import decode
from nvfp4.tensors import ExpertRows, ExpertWeights

OPS = torch.ops.nvfp4
H, INTERMEDIATE = 80, 128
BY_PATTERN = pytest.mark.parametrize("pattern", PATTERNS, ids=str)


@cache
def dispatched(pattern: Pattern, exact: bool) -> tuple[ExpertRows, Tensor]:
    """A pattern's rows by the reference: with exact sums, or of very different sizes."""
    ids, _ = pattern.route()
    x = exact_tokens(pattern.tokens, H) if exact else activations(pattern.tokens, H)
    return nvfp4.moe_dispatch(x, ids, pattern.experts, None, pattern.offset, backend="reference")


def edges(rows: ExpertRows) -> list[tuple[int, int]]:
    """Each expert's first row, and the row after its last."""
    offsets = rows.offsets.tolist()
    return list(zip(offsets, offsets[1:], strict=False))


# moe_dispatch


def test_dispatch_is_what_a_loop_would_do():
    """The reference, against a loop over experts and tokens and the oracle's quantizer."""
    for pattern in PATTERNS:
        ids, _ = pattern.route()
        x = activations(pattern.tokens, H)
        rows, positions = nvfp4.moe_dispatch(
            x, ids, pattern.experts, None, pattern.offset, backend="reference"
        )
        p = oracle.row_global_scale(x.float().numpy())
        codes, scales = oracle.quantize(x.float().numpy(), p)
        packed, at, offsets = oracle.pack(codes), 0, [0]
        tiles = torch.zeros(len(rows.data), H // 16, dtype=torch.uint8)
        for expert in range(pattern.experts):
            for token, choice in (ids == expert + pattern.offset).nonzero().tolist():
                assert positions[token, choice] == at
                same_bits(rows.data[at], from_numpy(packed[token]))
                assert rows.row_scale[at] == p[token]
                tiles[at] = from_numpy(scales[token])
                at += 1
            offsets.append(at)
        assert rows.offsets.tolist() == offsets
        assert (positions < 0).sum() == ids.numel() - at
        assert not rows.data[at:].any() and not rows.row_scale[at:].any()
        want = torch.zeros(rows.scales.shape, dtype=torch.uint8)
        for expert, (begin, end) in enumerate(edges(rows)):
            if begin < end:
                buffer = oracle.swizzle(tiles[begin:end].numpy())
                first = 128 * (begin // 128 + expert)
                want[first : first + len(buffer)] = from_numpy(buffer)
        same_bits(rows.scales.view(torch.uint8), want)


@pytest.mark.op("moe_dispatch")
@pytest.mark.parametrize("pattern, static", in_turn([False, True], every=FEW), ids=str)
def test_dispatch(backend, device, pattern, static):
    ids, _ = pattern.route()
    x = activations(pattern.tokens, H)
    p = torch.tensor(0.05) if static else None
    args = (pattern.experts, moved(p, device), pattern.offset)
    rows, positions = nvfp4.moe_dispatch(x.to(device), ids.to(device), *args, backend=backend)
    want, where = nvfp4.moe_dispatch(
        x, ids, pattern.experts, p, pattern.offset, backend="reference"
    )
    same_rows(rows, want)
    same_bits(positions, where)
    of_long = nvfp4.moe_dispatch(x.to(device), ids.to(device).long(), *args, backend=backend)
    same_bits(of_long[1], where)


@pytest.mark.op("moe_dispatch")
def test_dispatch_of_rows_longer_than_a_program_holds(backend, device):
    x, ids = activations(3, 65536 + 48), torch.tensor([[0, 1], [1, 2], [-1, 0]])
    got, _ = nvfp4.moe_dispatch(x.to(device), ids.to(device), 3, backend=backend)
    same_rows(got, nvfp4.moe_dispatch(x, ids, 3, backend="reference")[0])


@pytest.mark.op("moe_dispatch")
def test_routing_of_many_tokens(backend, device):
    """Enough for larger chunks of the sort (8192 ids), with few experts and with many."""
    for experts in (3, 300):
        ids = torch.randint(-1, experts + 9, (1040, 8))
        x = torch.ones(1040, 16)
        want = nvfp4.moe_dispatch(x, ids, experts, backend="reference")
        got = nvfp4.moe_dispatch(x.to(device), ids.to(device), experts, backend=backend)
        same_bits(got[1], want[1])
        same_bits(got[0].offsets, want[0].offsets)


@pytest.mark.op("moe_dispatch")
@BY_PATTERN
def test_scale_tiles_that_experts_take_are_written_whole(backend, device, pattern):
    """The launchers get outputs full of NaN bytes; nobody's rows keep theirs."""
    ids, _ = pattern.route()
    x = activations(pattern.tokens, H).to(device)
    want = OPS.moe_dispatch(
        x, ids.to(device), pattern.experts, None, pattern.offset, backend="reference"
    )
    rows, used = want[0].shape[0], tiles_taken(want[3].cpu())
    gate_up = activations(rows, 2 * H).to(device)
    h = OPS.glu_quantize(gate_up, None, want[3], backend="reference")
    for call, expected, routing in (
        (
            MoeDispatch(x, ids.to(device), pattern.experts, None, pattern.offset, backend=backend),
            Dispatched(*want),
            want[3:],
        ),
        (GluQuantize(gate_up, None, want[3], backend=backend), Quantized(*h), ()),
    ):
        outputs = expected._make(torch.empty_like(w) for w in expected)
        for output in outputs:
            output.view(torch.uint8).fill_(0x7F)
        fill(call, outputs)
        for got, w in zip(outputs[3:], routing, strict=True):
            same_bits(got, w)
        end = int(want[3][-1])
        same_bits(outputs[0][:end], expected[0][:end])
        same_bits(outputs[2][:end], expected[2][:end])
        assert (outputs[0][end:] == 0x7F).all()
        for tile in used:
            part = slice(128 * tile, 128 * tile + 128)
            same_bits(outputs[1][part], expected[1][part])


def tiles_taken(offsets: Tensor) -> list[int]:
    return [
        begin // 128 + e + i
        for e, (begin, end) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:], strict=False))
        for i in range(-(-(end - begin) // 128))
    ]


# grouped_mm


def by_expert(rows: ExpertRows, weights: ExpertWeights, bias: Tensor | None, dtype) -> Tensor:
    """grouped_mm by the reference's mm, one expert at a time; nobody's rows zero."""
    out = torch.zeros(rows.shape[0], weights.shape[1], dtype=dtype)
    linear = rows.linear_scales()
    for e, (begin, end) in enumerate(edges(rows)):
        if begin < end:
            part = slice(begin, end)
            alpha = rows.row_scale[part, None] * weights.global_scale[e].view(1, -1)
            scales = nvfp4.swizzle_scales(linear[part])
            args = (rows.data[part], weights.data[e], scales, weights.scales[e], alpha)
            added = None if bias is None else bias[e]
            out[part] = OPS.mm(*args, None, added, dtype, "reference")
    return out


@pytest.mark.op("grouped_mm")
@BY_PATTERN
def test_grouped_mm_equal_where_sums_are_exact(backend, device, pattern):
    rows, _ = dispatched(pattern, exact=True)
    n = 72 if pattern.experts > 100 else 200
    weights = exact_experts(pattern.experts, n, H, segments=2)
    got = nvfp4.grouped_mm(moved(rows, device), moved(weights, device), backend=backend)
    same_bits(got, by_expert(rows, weights, None, torch.bfloat16))


@pytest.mark.op("grouped_mm")
@pytest.mark.parametrize("pattern, dtype", list(zip(FEW, FLOAT_DTYPES, strict=True)), ids=str)
def test_grouped_mm_with_a_bias(backend, device, pattern, dtype):
    rows, _ = dispatched(pattern, exact=True)
    weights = exact_experts(pattern.experts, 132, H)
    bias = (torch.randint(-8, 9, (pattern.experts, 132)) / 8).to(dtype)
    args = (moved(rows, device), moved(weights, device), bias.to(device), dtype, backend)
    same_bits(nvfp4.grouped_mm(*args), by_expert(rows, weights, bias, dtype))


@pytest.mark.op("grouped_mm")
@pytest.mark.parametrize("pattern, dtype", list(zip(FEW, FLOAT_DTYPES, strict=True)), ids=str)
def test_grouped_mm_within_the_bound_for_any_scales(backend, device, pattern, dtype):
    rows, _ = dispatched(pattern, exact=False)
    weights = nvfp4.quantize_experts(torch.randn(pattern.experts, 96, H) / 1024)
    got = nvfp4.grouped_mm(
        moved(rows, device), moved(weights, device), out_dtype=dtype, backend=backend
    ).cpu()
    x = decode(rows.data, rows.linear_scales()).double()
    for e, (begin, end) in enumerate(edges(rows)):
        part, w = slice(begin, end), weights[e]
        values = decode(w.data, w.linear_scales()).double()
        alpha = (rows.row_scale[part, None] * w.global_scale).double()
        exact = x[part] @ values.T * alpha
        bound = gemm_bound(x[part], values, alpha, exact, dtype)
        assert ((got[part].double() - exact).abs() <= bound).all(), f"expert {e}"
    assert not got[edges(rows)[-1][1] :].any()


# glu_quantize


def name(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


GLU_FORMS = [
    ("own", "silu"), ("one", "relu2"), ("expert", "swiglu_oai"),
    ("own", "relu2"), ("one", "gelu_tanh"), ("expert", "silu"),
]  # fmt: skip


def scales_of_h(kind: str, experts: int) -> Tensor | None:
    if kind == "own":
        return None
    return torch.tensor(0.004) if kind == "one" else torch.rand(experts) * 0.01 + 1e-3


@pytest.mark.op("glu_quantize")
@pytest.mark.parametrize("pattern, form", in_turn(GLU_FORMS, every=FEW[:1]), ids=name)
def test_grouped_glu_quantize(backend, device, pattern, form):
    """The grouped scales hold what the dense op gives row by row."""
    kind, activation = form
    limit = 7.0 if activation in ("silu", "swiglu_oai") else None
    rows, _ = dispatched(pattern, exact=True)
    gate_up = activations(rows.shape[0], columns_per_output(activation) * H)
    p, end = scales_of_h(kind, pattern.experts), edges(rows)[-1][1]
    args = (gate_up.to(device), rows.offsets.to(device), moved(p, device), limit)
    got = nvfp4.grouped_glu_quantize(*args, activation=activation, backend=backend)
    of_row = p
    if kind == "expert":
        of_row = p.repeat_interleave(rows.offsets.diff())
    options = {"activation": activation, "backend": "reference"}
    dense = nvfp4.glu_quantize(gate_up[:end], of_row, limit, "linear", **options)
    zeros = torch.zeros(rows.shape[0] - end, H // 2, dtype=torch.uint8)
    same_bits(got.data, torch.cat([dense.data, zeros]))
    same_bits(got.scales, swizzle_grouped_scales(dense.scales, rows.offsets, rows.shape[0]))
    same_bits(got.row_scale[:end], dense.global_scale)


@pytest.mark.op("glu_quantize")
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["swizzled", "linear"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_glu_quantize(backend, device, dtype, layout, activation):
    """Each row's own scale: what quantize_dynamic finds in the product."""
    gate_up = activations(33, 192, dtype)
    for limit in (None, 0.5)[: columns_per_output(activation)]:  # relu2 has no limit
        args = (None, None, limit, layout)
        want = OPS.glu_quantize(gate_up, *args, activation=activation, backend="reference")
        there = gate_up.to(device)
        got = OPS.glu_quantize(there, *args, activation=activation, backend=backend)
        product = activate(gate_up.float(), limit, activation)
        of_product = OPS.quantize_dynamic(product, layout, backend="reference")
        for g, p, w in zip(got, of_product, want, strict=True):
            same_bits(g, w)
            same_bits(p, w)


@pytest.mark.op("glu_quantize")
def test_glu_quantize_of_rows_longer_than_a_program_holds(backend, device, monkeypatch):
    longest = 65536
    if device == "cpu" and backend == "triton":  # interpreted, rows that long take seven minutes
        longest = 4096  # what one pass of plan_row_scales reads
        monkeypatch.setattr("nvfp4.backends.triton.glu_quantize.LONGEST_ROW", longest)
    columns = 2 * (longest + 48)
    gate_up = activations(7, columns)[3:]  # none of zeros: each row has a scale of its own
    offsets = torch.tensor([0, 1, 3], dtype=torch.int32)
    want = nvfp4.glu_quantize(gate_up, backend="reference")
    got = nvfp4.glu_quantize(gate_up.to(device), backend=backend)
    same_bits(got.data, want.data)
    same_bits(got.scales, want.scales)
    grouped = nvfp4.grouped_glu_quantize(gate_up.to(device), offsets.to(device), backend=backend)
    same_bits(grouped.data[:3], want.data[:3])
    same_bits(grouped.linear_scales()[:3], want.linear_scales()[:3])


# moe_combine


def test_combine_is_what_a_loop_would_do():
    for pattern in PATTERNS:
        _, positions = dispatched(pattern, exact=True)
        _, weights = pattern.route()
        y = activations(positions.numel(), H)
        got = nvfp4.moe_combine(y, weights, positions, torch.float32, "reference")
        for token, choices in enumerate(positions.tolist()):
            acc = torch.zeros(H)
            for j, row in enumerate(choices):
                if row >= 0:
                    acc = acc + weights[token, j] * y[row].float()
            same_bits(got[token], acc)


@pytest.mark.op("moe_combine")
@pytest.mark.parametrize("pattern, dtype", in_turn(FLOAT_DTYPES, every=FEW), ids=str)
def test_combine(backend, device, pattern, dtype):
    _, positions = dispatched(pattern, exact=True)
    _, weights = pattern.route()
    y = activations(positions.numel(), H, dtype)
    weights = (weights * 1.37).to(dtype)
    want = nvfp4.moe_combine(y, weights, positions, backend="reference")
    args = (weights.to(device), positions.to(device))
    same_bits(nvfp4.moe_combine(y.to(device), *args, backend=backend), want)
    assert torch.isfinite(want).all(), "a NaN weight of a choice that is nobody's is not looked at"


@pytest.mark.op("moe_combine")
@pytest.mark.parametrize("position", [4, 77, 2**31 - 1, -1, -77, -(2**31)])
def test_combine_reads_no_foreign_memory_for_a_position_out_of_range(backend, device, position):
    y, weights = torch.ones(4, 8, device=device), torch.ones(2, 2, device=device)
    positions = torch.tensor([[0, 1], [2, position]], dtype=torch.int32, device=device)
    got = nvfp4.moe_combine(y, weights, positions, backend=backend)
    assert got.tolist() == [[2.0] * 8, [1.0] * 8]
