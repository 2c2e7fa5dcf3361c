"""nvfp4::mm and nvfp4::linear against float64, within the derived bound, and exactly where
arithmetic allows.
"""

from itertools import cycle

import oracle
import pytest
import torch
from bounds import gemm_bound
from cases import (
    GEMM_SHAPES,
    Shape,
    activations,
    from_numpy,
    same_bits,
)

import nvfp4
from nvfp4.backends.environment import BATCH_INVARIANT
from nvfp4.backends.target import target_of
from nvfp4.backends.triton.device.tile_config import choose_rounding_tile
from nvfp4.backends.triton.gemm.config import (
    COST,
    GROUPED,
    K_GROUP,
    SMS,
    HopperConfig,
    choose_config,
)
from nvfp4.backends.triton.hopper.stream_k import make_schedule
from nvfp4.backends.triton.mm import plan
from nvfp4.backends.workload import Workload
from nvfp4.calls import Mm
from nvfp4.spec.format import FLOAT_DTYPES

pytestmark = pytest.mark.op("mm")

OPS = torch.ops.nvfp4
BY_SHAPE = pytest.mark.parametrize(
    "shape, dtype", list(zip(GEMM_SHAPES, cycle(FLOAT_DTYPES), strict=False)), ids=str
)
"""Each shape with one dtype, in turn: an epilogue's store does not depend on K."""


def _values(q: nvfp4.QuantizedTensor) -> torch.Tensor:
    """e2m1 * sf, float64, by the oracle."""
    scales = q.linear_scales().view(torch.uint8).cpu().numpy()
    return from_numpy(oracle.decode(q.data.cpu().numpy(), scales))


def _operands(shape: Shape) -> tuple[nvfp4.QuantizedTensor, nvfp4.QuantizedTensor]:
    a = nvfp4.quantize_dynamic(activations(shape.m, shape.k), backend="reference")
    b = nvfp4.quantize(activations(shape.n, shape.k), backend="reference")
    return a, b


def _exact_operands(shape: Shape) -> tuple[nvfp4.QuantizedTensor, nvfp4.QuantizedTensor]:
    """Scales of 1/2, 1 and 2 make every partial sum a float32."""

    def operand(rows: int) -> nvfp4.QuantizedTensor:
        data = torch.randint(0, 256, (rows, shape.k // 2), dtype=torch.uint8)
        scales = torch.tensor([0.5, 1.0, 2.0])[torch.randint(0, 3, (rows, shape.k // 16))]
        swizzled = nvfp4.swizzle_scales(scales.to(torch.float8_e4m3fn))
        return nvfp4.QuantizedTensor(data, swizzled, torch.tensor(1.0))

    return operand(shape.m), operand(shape.n)


def _check(
    got: torch.Tensor, a, b, alpha: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> None:
    x, w = _values(a), _values(b)
    exact = (x @ w.T) * alpha.double()
    bound = gemm_bound(x, w, alpha.double(), exact, dtype)
    if bias is not None:
        exact = exact + bias.double()
        bound = bound + bias.double().abs() * torch.finfo(dtype).eps
    error = (got.cpu().double() - exact).abs()
    worst = (error / bound).nan_to_num(0).argmax()
    assert (error <= bound).all(), (
        f"at {divmod(int(worst), exact.shape[1])}: error {error.flatten()[worst]}"
    )


def _run(a, b, alpha, bias, dtype, device, backend):
    tensors = [t.to(device) for t in (a.data, b.data, a.scales, b.scales, alpha)]
    return OPS.mm(*tensors, None, None if bias is None else bias.to(device), dtype, backend)


@BY_SHAPE
def test_mm(backend, device, shape, dtype):
    a, b = _operands(shape)
    alpha = torch.tensor(3e-5) / a.shape[1]
    got = _run(a, b, alpha, None, dtype, device, backend)
    assert got.dtype == dtype and got.is_contiguous()
    _check(got, a, b, alpha.expand(shape.m, shape.n), None, dtype)


ALPHAS = {
    "scalar": lambda m, n: torch.tensor(0.3),
    "one": lambda m, n: torch.tensor([0.3]),
    "rows": lambda m, n: torch.rand(m) + 0.1,
    "two segments": lambda m, n: torch.rand(1, 2) + 0.1,
    "columns": lambda m, n: torch.rand(1, n) + 0.1,
    "rows x segments": lambda m, n: torch.rand(m, 4) + 0.1,
}


@pytest.mark.parametrize("form, with_bias", list(zip(ALPHAS, cycle([False, True]), strict=False)))
def test_every_form_of_alpha(backend, device, form, with_bias):
    shape = Shape(20, 72, 96)
    a, b = _operands(shape)
    alpha = ALPHAS[form](shape.m, shape.n)
    bias = torch.randn(shape.n) if with_bias else None
    got = _run(a, b, alpha, bias, torch.float32, device, backend)
    rows = alpha.reshape(-1, 1) if alpha.dim() < 2 else alpha
    full = rows.repeat_interleave(shape.n // rows.shape[1], 1).expand(shape.m, shape.n)
    _check(got, a, b, full, bias, torch.float32)


CONFIGS = {choose_config(m, n, k, sm) for m in (1, 9, 17, 33, 65, 257, 513, 4096)
           for n in (64, 9216, 16384) for k in (4000, 4096) for sm in (80, 90)}  # fmt: skip
CONFIGS |= {
    config._replace(stream_k=split)
    for config in (*COST, *GROUPED.values())
    for split in (False, True)
}


@pytest.mark.parametrize("n", [64, 2048, 9216, 14336, 16384, 20480, 65536])
@pytest.mark.parametrize("k", [256, 512, 2048, 3584, 8192])
def test_programs_of_few_tokens_all_have_steps_and_run_in_full_waves(n, k):
    config = choose_config(8, n, k, 90)
    steps = k // config.BK
    share = -(-steps // config.splits)
    assert (config.splits - 1) * share < steps
    tiles, squeezed = n // config.BN, config.maxnreg is not None
    assert squeezed == (5 * SMS < 3 * tiles <= 6 * SMS)
    assert not squeezed or tiles * config.splits <= 6 * SMS


TILES = [(config, k) for config in sorted(CONFIGS, key=str)
         for k in (16, 64, 176, 256, 576, 1408)
         if k % K_GROUP == 0 or not isinstance(config, HopperConfig)]  # fmt: skip


@pytest.mark.parametrize("sm", [80, 90, 100])
@pytest.mark.parametrize("n, k", [(7168, 2048), (9216, 3584), (576, 960), (4096, 4000), (128, 128)])
@pytest.mark.parametrize("may_split", [False, True])
def test_warming_up_meets_every_tile(sm, n, k, may_split):
    """What a number of tokens runs by was compiled for one of those that are warmed up."""

    def tiles(m: int):
        return choose_config(m, n, k, sm, may_split), choose_rounding_tile(m, k)

    warm = {tiles(m) for m in Workload(n, k, 3000).token_counts()}
    assert {tiles(m) for m in range(1, 3001)} == warm


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("config, k", TILES, ids=str)
def test_every_tile_of_triton(device, config, k):
    """Whatever the tile, decoded before or not: the same bits, also where K is no whole step."""
    sm = target_of(torch.device(device)).sm
    if isinstance(config, HopperConfig) and sm != 90:
        pytest.skip(f"needs sm_90, got sm_{sm}")
    shape = Shape(19, 72, k)
    if isinstance(config, HopperConfig):
        shape = Shape(300, 392, k)  # several tiles for some programs, several programs for some
    a, b = _exact_operands(shape)
    out = torch.full((shape.m, shape.n), float("nan"), device=device)
    operands = (a.data, b.data, a.scales, b.scales, torch.full((1, 1), 0.25))
    for launch in plan(Mm(*(t.to(device) for t in operands)), out, sm, config):
        launch.run()
    same_bits(out, (_values(a) @ _values(b).T * 0.25).float())


def test_steps_that_32_bits_do_not_count_are_not_shared_out():
    config = HopperConfig(16, 8, 8, stream_k=True)
    assert make_schedule(16, 2**16, 2**16, config, torch.device("cpu")).programs > 1
    with pytest.raises(ValueError, match="too many steps"):
        make_schedule(2**16, 2**16, 2**16, config, torch.device("cpu"))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_bias_of_any_dtype(backend, device, dtype):
    a, b = _operands(Shape(5, 32, 64))
    bias = torch.randn(32).to(dtype)
    got = _run(a, b, torch.tensor(0.1), bias, torch.float32, device, backend)
    _check(got, a, b, torch.full((5, 32), 0.1), bias, torch.float32)


EXACT_SHAPES = [Shape(m, 72, k) for m, k in [(1, 16), (17, 576), (33, 1024), (65, 128), (129, 272)]]


@pytest.mark.parametrize(
    "shape, dtype", list(zip(EXACT_SHAPES, cycle(FLOAT_DTYPES), strict=False)), ids=str
)
def test_exact_where_float32_sums_are_exact(backend, device, shape, dtype):
    """Where every partial sum is a float32, no backend may be off by a bit."""

    a, b = _exact_operands(shape)
    exact = _values(a) @ _values(b).T
    got = _run(a, b, torch.tensor(0.25), None, dtype, device, backend)
    same_bits(got, (exact * 0.25).float().to(dtype))


def test_dirty_padding_is_not_read(backend, device):
    """The spec says padding is zero; a GEMM that does not trust it cannot be poisoned by it."""
    if backend == "cutedsl":
        pytest.skip("cutedsl: the tensor cores read whole scale tiles, padding included")
    a, b = _operands(Shape(3, 40, 48))
    want = _run(a, b, torch.tensor(1.0), None, torch.float32, device, backend)
    dirty = []
    for q in (a, b):
        scales = torch.full_like(q.scales.view(torch.uint8), 0x7F)
        clean = nvfp4.swizzle_scales(torch.ones_like(q.linear_scales())).view(torch.uint8) != 0
        scales[clean] = q.scales.view(torch.uint8)[clean]
        dirty.append(
            nvfp4.QuantizedTensor(q.data, scales.view(torch.float8_e4m3fn), q.global_scale)
        )
    same_bits(_run(*dirty, torch.tensor(1.0), None, torch.float32, device, backend), want)


def test_a_nan_block_makes_its_row_nan_and_no_other(backend, device):
    x = torch.randn(4, 64)
    x[2, 40] = float("nan")
    a = nvfp4.quantize_dynamic(x, backend="reference")
    b = nvfp4.quantize(torch.randn(24, 64), backend="reference")
    got = _run(a, b, torch.tensor(1.0), None, torch.float32, device, backend)
    assert got[2].isnan().all() and not got[[0, 1, 3]].isnan().any()


@pytest.mark.op("linear")
@pytest.mark.parametrize(
    "shape, dtype", list(zip(GEMM_SHAPES[::2], cycle(FLOAT_DTYPES), strict=False)), ids=str
)
def test_linear_is_quantize_and_mm(backend, device, shape, dtype):
    x = activations(shape.m, shape.k, dtype)
    w = nvfp4.quantize(activations(shape.n, shape.k), backend="reference").to(device)
    bias = torch.randn(shape.n, device=device)
    got = OPS.linear(x.to(device), w.data, w.scales, w.global_scale, None, bias, backend=backend)
    q = nvfp4.quantize_dynamic(x.to(device), backend="reference")
    same_bits(got, nvfp4.mm(q, w, bias, dtype, backend))

    p = nvfp4.global_scale(x).to(device)
    static = OPS.linear(x.to(device), w.data, w.scales, w.global_scale, p, None, backend=backend)
    q = nvfp4.quantize(x.to(device), p, backend="reference")
    same_bits(static, nvfp4.mm(q, w, None, dtype, backend))


@pytest.mark.op("linear")
def test_a_token_does_not_depend_on_its_neighbours(backend, device):
    """Alone, permuted, in company and among garbage: the same bits."""
    x = activations(140, 272).to(device)
    w = nvfp4.quantize(activations(72, 272), backend="reference").to(device)

    def run(tokens: torch.Tensor) -> torch.Tensor:
        return OPS.linear(tokens, w.data, w.scales, w.global_scale, backend=backend)

    together = run(x)
    order = torch.randperm(140).to(device)
    same_bits(run(x[order]), together[order])
    for token in (0, 1, 77, 139):
        same_bits(run(x[token : token + 1]), together[token : token + 1])
    company = torch.cat([x[:20], torch.full_like(x[:13], float("nan")), x[:1] * 1e30])
    same_bits(run(company)[:20], together[:20])


@pytest.mark.op("linear")
def test_fused_parts_keep_their_own_global_scales(backend, device, monkeypatch):
    """q, k, v (and gate, up) of different sizes, fused: each part equals itself run alone, bit for
    bit.
    """
    monkeypatch.setenv(BATCH_INVARIANT, "1")
    parts = [
        nvfp4.quantize(torch.randn(n, 64) * scale, backend="reference")
        for n, scale in [(48, 1), (16, 30), (16, 0.01)]
    ]
    fused = nvfp4.concatenate(parts).validate().to(device)
    assert fused.global_scale.numel() == 5
    x = activations(9, 64).to(device)
    got = OPS.linear(x, fused.data, fused.scales, fused.global_scale, None, None, backend=backend)
    alone = [
        OPS.linear(x, w.data, w.scales, w.global_scale, backend=backend)
        for w in (part.to(device) for part in parts)
    ]
    same_bits(got, torch.cat(alone, 1))
    same_bits(fused.dequantize(), torch.cat([p.to(device).dequantize() for p in parts]))


@pytest.mark.op("linear")
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_linear_keeps_leading_dimensions(backend, device, lead):
    w = nvfp4.quantize(torch.randn(24, 32), backend="reference").to(device)
    x = torch.randn(*lead, 32, device=device)
    got = OPS.linear(x, w.data, w.scales, w.global_scale, backend=backend)
    assert got.shape == (*lead, 24) and got.dtype == x.dtype
    same_bits(
        got.reshape(-1, 24),
        OPS.linear(x.reshape(-1, 32), w.data, w.scales, w.global_scale, backend=backend),
    )
