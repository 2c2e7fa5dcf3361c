"""Every op once, on every backend that has it, against the independent NVFP4 of oracle.py.

The inputs are such that every sum is exact in float32. So results are compared bit for bit.
"""

from typing import NamedTuple

import numpy as np
import oracle
import pytest
import torch
from numpy.typing import NDArray
from oracle import F32

import nvfp4

OPS = torch.ops.nvfp4
TOKENS, K, N, INTERMEDIATE, EXPERTS = 5, 64, 24, 128, 3
P = 0.125
"""A global scale: a power of two, with which nothing is rounded."""

quantizers = pytest.mark.parametrize("backend", ["reference", "triton"])
compositions = quantizers  # their GEMMs are emulated by the other tests: it takes seconds
gemms = pytest.mark.parametrize("backend", ["reference", "triton", "cutedsl"])


class Packed(NamedTuple):
    """A tensor in NVFP4, as ops take it, and the numbers that it holds."""

    data: torch.Tensor
    scales: torch.Tensor
    global_scale: torch.Tensor
    values: NDArray


def _floats8(scales: NDArray) -> torch.Tensor:
    return torch.from_numpy(scales).view(torch.float8_e4m3fn)


def _packed(rows: int, k: int, seed: int) -> Packed:
    """Random codes with scales 0.5, 1 and 2; each block has its largest code."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 16, (rows, k), np.uint8)
    codes[:, ::16] = 7
    scales = random.choice(np.array([0x30, 0x38, 0x40], np.uint8), (rows, k // 16))
    data = oracle.pack(codes)
    values = oracle.decode(data, scales) * P
    swizzled = _floats8(oracle.swizzle(scales))
    return Packed(torch.from_numpy(data), swizzled, torch.tensor(P), values)


def _experts(n: int, k: int, seed: int) -> Packed:
    each = [_packed(n, k, seed + expert) for expert in range(EXPERTS)]
    data, scales, p, values = zip(*each, strict=True)
    return Packed(torch.stack(data), torch.stack(scales), torch.stack(p), np.stack(values))


def _exact(values: NDArray) -> NDArray:
    """The numbers in float32, if that holds them."""
    assert (values.astype(F32) == values).all() and np.abs(values).max() > 0
    return values.astype(F32)


def _same(got: torch.Tensor, want: NDArray) -> None:
    got = got.view(torch.uint8) if got.dtype == torch.float8_e4m3fn else got
    np.testing.assert_array_equal(got.numpy(), want, strict=True)


def _floats(rows: int, k: int, seed: int) -> NDArray:
    """float32 that no quantizer returns unchanged."""
    return np.random.default_rng(seed).standard_normal((rows, k)).astype(F32)


def _glu(gate_up: NDArray, p: float, limit: float | None) -> tuple[NDArray, NDArray]:
    """Codes and scale bytes of silu(gate) * up."""
    gate, up = np.split(gate_up, 2, axis=1)
    h = oracle.silu_mul(gate, up, limit).astype(F32)
    return oracle.quantize(h, np.full(len(h), p))


def _mlp(x: NDArray, w13: NDArray, w2: NDArray, p: float, limit: float) -> NDArray:
    codes, scales = _glu(_exact(x @ w13.T), p, limit)
    return _exact(oracle.decode(oracle.pack(codes), scales) * p @ w2.T)


X = _packed(TOKENS, K, seed=1)
IDS = np.array([[2, 0], [0, 2], [1, 2], [0, -1], [2, 1]])
ROUTING = np.array([[0.5, 0.25], [0.25, 0.5], [1, 0.5], [0.5, 2], [0.25, 0.25]], F32)


def _x() -> torch.Tensor:
    """Activations that are numbers of NVFP4 already."""
    return torch.from_numpy(_exact(X.values))


def _rows_of_experts() -> tuple[nvfp4.ExpertRows, NDArray]:
    """The rows in the order of experts, then tokens; and whose token each is."""
    p = torch.tensor(P)
    rows, positions = nvfp4.moe_dispatch(_x(), torch.from_numpy(IDS), EXPERTS, p)
    tokens = np.concatenate([np.nonzero((e == IDS).any(1))[0] for e in range(EXPERTS)])
    return rows, tokens


def _expert_of_rows() -> NDArray:
    return np.repeat(range(EXPERTS), [(e == IDS).sum() for e in range(EXPERTS)])


def test_every_op_is_tested():
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()
             if name.startswith("nvfp4::")}  # fmt: skip
    assert len(names) > 10
    assert {f"test_{name}" for name in names} <= set(globals())


@quantizers
def test_quantize(backend):
    x = _floats(TOKENS, K, seed=2)
    codes, scales = oracle.quantize(x, np.full(TOKENS, 0.003))
    data, swizzled = OPS.quantize(torch.from_numpy(x), torch.tensor(0.003), backend=backend)
    _same(data, oracle.pack(codes))
    _same(swizzled, oracle.swizzle(scales))


@quantizers
def test_quantize_dynamic(backend):
    x = _floats(TOKENS, K, seed=3)
    p = oracle.row_global_scale(x)
    codes, scales = oracle.quantize(x, p)
    data, linear, row_scale = OPS.quantize_dynamic(torch.from_numpy(x), "linear", backend=backend)
    _same(data, oracle.pack(codes))
    _same(linear, scales)
    _same(row_scale, p)


@quantizers
def test_rmsnorm_quantize(backend):
    x, residual, weight = _floats(TOKENS, K, 5), _floats(TOKENS, K, 6), _floats(1, K, 7)[0]
    rows, norm, added = (torch.from_numpy(each) for each in (x, weight, residual))
    got = OPS.rmsnorm_quantize(rows, norm, 1e-6, added, None, "linear", backend=backend)
    normalized = oracle.rms_norm(x + residual, weight, 1e-6)
    p = oracle.row_global_scale(normalized)
    codes, scales = oracle.quantize(normalized, p)
    for each, want in zip(got, (oracle.pack(codes), scales, p, x + residual), strict=True):
        _same(each, want)


@quantizers
def test_dequantize(backend):
    _same(OPS.dequantize(*X[:3], torch.float32, backend=backend), _exact(X.values))


@quantizers
def test_glu_quantize(backend):
    gate_up = 4 * _floats(TOKENS, 2 * K, seed=4)
    p = torch.tensor(0.003)
    data, scales, row_scale = OPS.glu_quantize(torch.from_numpy(gate_up), p, backend=backend)
    codes, want = _glu(gate_up, 0.003, None)
    _same(data, oracle.pack(codes))
    _same(scales, oracle.swizzle(want))
    _same(row_scale, np.full(TOKENS, 0.003, F32))


@quantizers
def test_silu_mul_quantize(backend):
    gate_up = 4 * _floats(TOKENS, 2 * K, seed=5)
    p = torch.tensor(0.003)
    data, scales = OPS.silu_mul_quantize(torch.from_numpy(gate_up), p, 7.0, backend=backend)
    codes, want = _glu(gate_up, 0.003, 7.0)
    _same(data, oracle.pack(codes))
    _same(scales, oracle.swizzle(want))


@gemms
def test_mm(backend):
    w, bias = _packed(N, K, seed=6), np.arange(N) / 4
    alpha = torch.tensor(P * P)
    operands = (X.data, w.data, X.scales, w.scales, alpha)
    added = torch.from_numpy(bias.astype(F32))
    want = _exact(X.values @ w.values.T + bias)
    _same(OPS.mm(*operands, None, added, torch.float32, backend), want)


@pytest.mark.parametrize("sm", [80, 90, 100])
def test_triton_on_an_emulated_gpu(sm):
    """The PTX that Triton compiles for that GPU, in place of interpreted kernels."""
    with nvfp4.emulate(sm=sm):
        assert nvfp4.explain("mm", "cpu", "triton").backend == "triton"
        test_mm("triton")


@gemms
def test_linear(backend):
    w, bias = _packed(N, K, seed=7), np.arange(N) / 4
    p, added = torch.tensor(P), torch.from_numpy(bias.astype(F32))
    want = _exact(X.values @ w.values.T + bias)
    _same(OPS.linear(_x(), *w[:3], p, added, backend=backend), want)


@compositions
def test_swiglu_mlp(backend):
    w13, w2 = _packed(2 * INTERMEDIATE, K, seed=8), _packed(N, INTERMEDIATE, seed=9)
    p = torch.tensor(P)
    want = _mlp(X.values, w13.values, w2.values, P, 7.0)
    _same(OPS.swiglu_mlp(_x(), *w13[:3], *w2[:3], p, p, swiglu_limit=7.0, backend=backend), want)


@quantizers
def test_moe_dispatch(backend):
    ids, p = torch.from_numpy(IDS), torch.tensor(P)
    data, _, row_scale, offsets, positions = OPS.moe_dispatch(
        _x(), ids, EXPERTS, p, 0, backend=backend
    )
    counts = [(expert == IDS).sum() for expert in range(EXPERTS)]
    _same(offsets, np.cumsum([0, *counts], dtype=np.int32))
    assert ((positions.numpy() == -1) == (IDS == -1)).all()
    taken = positions.numpy()[IDS >= 0]
    assert sorted(taken) == list(range(len(taken)))
    assert (_expert_of_rows()[taken] == IDS[IDS >= 0]).all()
    _same(data[taken], X.data.numpy()[np.nonzero(IDS >= 0)[0]])
    _same(row_scale[taken], np.full(len(taken), P, F32))


@gemms
def test_grouped_mm(backend):
    (rows, tokens), w = _rows_of_experts(), _experts(N, K, seed=10)
    alpha = w.global_scale * P
    operands = (rows.data, w.data, rows.scales, w.scales, alpha, rows.offsets)
    want = [
        X.values[token] @ w.values[expert].T
        for token, expert in zip(tokens, _expert_of_rows(), strict=True)
    ]
    got = OPS.grouped_mm(*operands, out_dtype=torch.float32, backend=backend)
    _same(got[: len(tokens)], _exact(np.stack(want)))
    assert not got[len(tokens) :].any()


@gemms
def test_grouped_mm_glu_quantize(backend):
    (rows, tokens), w = _rows_of_experts(), _experts(2 * INTERMEDIATE, K, seed=20)
    operands = (rows.data, w.data, rows.scales, w.scales, w.global_scale * P, rows.offsets)
    glu = None, None, torch.tensor(P), 7.0, torch.float32
    h = OPS.grouped_mm_glu_quantize(*operands, *glu, backend=backend)
    gate_up = [
        X.values[token] @ w.values[expert].T
        for token, expert in zip(tokens, _expert_of_rows(), strict=True)
    ]
    codes, scales = _glu(_exact(np.stack(gate_up)), P, 7.0)
    _same(h[0][: len(tokens)], oracle.pack(codes))
    # The rows' scales start at a tile of 128 rows for each expert.
    for expert in range(EXPERTS):
        first, end = rows.offsets[expert : expert + 2].tolist()
        tile = 128 * (first // 128 + expert)
        _same(h[1][tile : tile + 128], oracle.swizzle(scales[first:end]))


@quantizers
def test_moe_combine(backend):
    y = _exact(_packed(IDS.size, K, seed=30).values)
    positions = np.array([[3, 0], [1, 2], [8, 4], [-1, -1], [9, -1]], np.int32)
    want = np.zeros((TOKENS, K))
    for token, choice in np.argwhere(positions >= 0):
        want[token] += ROUTING[token, choice] * y[positions[token, choice]]
    arguments = torch.from_numpy(y), torch.from_numpy(ROUTING), torch.from_numpy(positions)
    _same(OPS.moe_combine(*arguments, torch.float32, backend), _exact(want))


@compositions
def test_moe(backend):
    w13, w2 = _experts(2 * INTERMEDIATE, K, seed=40), _experts(K, INTERMEDIATE, seed=50)
    want = np.zeros((TOKENS, K))
    for token, choice in np.argwhere(IDS >= 0):
        expert, x = IDS[token, choice], X.values[token : token + 1]
        y = _mlp(x, w13.values[expert], w2.values[expert], P, 7.0)
        want[token] += ROUTING[token, choice] * y[0]
    routing = torch.from_numpy(ROUTING), torch.from_numpy(IDS)
    p = torch.tensor(P)
    got = OPS.moe(_x(), *routing, *w13[:3], *w2[:3], p, p, swiglu_limit=7.0, backend=backend)
    _same(got, _exact(want))
