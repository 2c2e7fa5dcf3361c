"""One small problem for each form of each Triton and Gluon kernel.

A form is a kernel with constants that change its path: a tile, split-K, a scale layout, a dtype.
Every sum of a GEMM's problem is exact in float32, so the order of summation changes no bit.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from cases import activations, specials
from close_scales import close_blocks
from torch import Tensor

from nvfp4.backends.target import target_of
from nvfp4.backends.triton import (
    glu_quantize,
    grouped_mm,
    linear,
    mm,
    quantize,
    quantize_dynamic,
    rmsnorm_quantize,
    weight_only_linear,
    weight_only_moe,
)
from nvfp4.backends.triton.device.tile_config import Tile
from nvfp4.backends.triton.gemm.config import (
    COST,
    DECODE_8X64,
    DECODE_16X32,
    GROUPED,
    TILE_16X64,
    TILE_32X64,
    TILE_64X64,
    TILE_64X128,
    TILE_128X128,
    HopperConfig,
    MmConfig,
)
from nvfp4.backends.triton.runtime.architecture import multiplies_nvfp4
from nvfp4.backends.triton.runtime.program import run
from nvfp4.calls import (
    GluQuantize,
    GroupedMm,
    Linear,
    Mm,
    Moe,
    Packed,
    Quantize,
    QuantizeDynamic,
    RmsnormQuantize,
)
from nvfp4.spec.format import FLOAT_DTYPES, SCALE_DTYPE
from nvfp4.spec.glu import columns_per_output
from nvfp4.spec.grouped import swizzle_grouped_scales
from nvfp4.spec.swizzle import swizzle_scales

OPS = torch.ops.nvfp4
BF16, F16, F32 = FLOAT_DTYPES

Outputs = tuple[Tensor, ...]


class Form(NamedTuple):
    """A problem that runs one form of a kernel.

    run: fills outputs by the backend of that name; the reference's must have the same bits.
    on: whether an architecture has the form.
    """

    name: str
    run: Callable[[str], Outputs]
    on: Callable[[int], bool]

    def __str__(self) -> str:
        return self.name

    @property
    def op(self) -> str:
        """The op whose kernels run."""
        name = self.name.split()[0].rstrip(",")
        return f"weight_only_{name}" if "W4A16" in self.name else name


FORMS: list[Form] = []

SMALL = (
    "quantize bf16",
    "quantize_dynamic fp16, linear scales, several warps a row",
    "quantize_dynamic of long rows: their scales",
    "dequantize to fp32, a scale a row",
    "glu_quantize of experts, scales found",
    "glu_quantize of long rows: their scales",
    "rmsnorm_quantize bf16 with a residual",
    "rmsnorm_quantize of long rows, scales found",
    "mm 16x64, rows masked",
    "mm 16x32, split-K",
    "mm 64 per_sm=2 stages=2",
    "mm block-scaled 32",
    "linear, scales found",
    "linear W4A16",
    "grouped_mm 16x64",
    "grouped_mm 32 per_sm=2 stages=4",
    "grouped_mm block-scaled 16",
    "moe_dispatch of several chunks of ids",
    "moe_combine float16, top 8",
    "moe W4A16, relu2",
)
"""Names of forms that have every kernel of every architecture between them."""


RULE_ALONE = (90, 120)
"""Where a form that differs from another by its scale rule alone is executed."""


def everywhere(sm: int) -> bool:
    return True


def decoding(sm: int) -> bool:
    """Whether mm's GEMM multiplies decoded operands by mma.sync."""
    return not multiplies_nvfp4(sm)


def portable(sm: int) -> bool:
    return decoding(sm) and sm != 90


def hopper(sm: int) -> bool:
    return sm == 90


def form(name: str, on: Callable[[int], bool] = everywhere) -> Callable[..., Any]:
    """Register a function of a backend's name as a form."""

    def register(run: Callable[[str], Any]) -> Callable[[str], Any]:
        def outputs(backend: str) -> Outputs:
            torch.manual_seed(0)
            out = run(backend)
            return out if isinstance(out, tuple) else (out,)

        FORMS.append(Form(name, outputs, on))
        return run

    return register


# ---- quantizers -----------------------------------------------------------------------------


@form("quantize bf16")
def _(backend: str) -> Outputs:
    return OPS.quantize(activations(21, 96), torch.tensor(0.03), backend=backend)


@form("quantize fp16, a scale a row, linear scales")
def _(backend: str) -> Outputs:
    x = activations(5, 208, F16)
    return OPS.quantize(x, torch.rand(5) + 0.01, "linear", backend=backend)


@form("quantize fp32 with NaN and Inf")
def _(backend: str) -> Outputs:
    return OPS.quantize(specials(80), torch.tensor(0.7), "linear", backend=backend)


@form("quantize many rows")
def _(backend: str) -> Outputs:
    x, p = activations(9, 128), torch.tensor(0.03)
    if backend == "reference":
        return OPS.quantize(x, p, backend=backend)
    call = Quantize(x, p.view(1))
    out = call.outputs()
    run(quantize.plan(call, out, target_of(x.device).sm, Tile(16, 128, 1)))
    return out


@form("quantize_dynamic bf16")
def _(backend: str) -> Outputs:
    return OPS.quantize_dynamic(activations(21, 96), backend=backend)


@form("quantize_dynamic fp16, linear scales, several warps a row")
def _(backend: str) -> Outputs:
    return OPS.quantize_dynamic(activations(2, 4112, F16), "linear", backend=backend)


@form("quantize_dynamic fp32 with NaN and Inf")
def _(backend: str) -> Outputs:
    return OPS.quantize_dynamic(specials(80), "linear", backend=backend)


@form("quantize_dynamic of long rows: their scales")
def _(backend: str) -> Outputs:
    call = QuantizeDynamic(activations(3, 8192 + 48, F16))
    if backend == "reference":
        return (OPS.quantize_dynamic(call.x, backend=backend)[2],)
    row_scale = torch.empty(3)
    run(quantize_dynamic.plan_row_scales(call.x, row_scale, call.scale_rule))
    return (row_scale,)


@form("quantize by four_over_six")
def _(backend: str) -> Outputs:
    x = specials()
    x = torch.cat([x, close_blocks()[:48].view(-1, 64).to(x.device)])
    return OPS.quantize(x, torch.ones(1), "linear", "four_over_six", backend)


@form("quantize_dynamic by four_over_six")
def _(backend: str) -> Outputs:
    return OPS.quantize_dynamic(activations(21, 96, F16), "swizzled", "four_over_six", backend)


@form("quantize_dynamic of long rows: scales for four_over_six", RULE_ALONE.__contains__)
def _(backend: str) -> Outputs:
    call = QuantizeDynamic(activations(3, 8192 + 48, F16), scale_rule="four_over_six")
    if backend == "reference":
        return (OPS.quantize_dynamic(*call[:3], backend=backend)[2],)
    row_scale = torch.empty(3)
    run(quantize_dynamic.plan_row_scales(call.x, row_scale, call.scale_rule))
    return (row_scale,)


@form("dequantize to bf16")
def _(backend: str) -> Outputs:
    packed = OPS.quantize(activations(21, 96), torch.tensor(0.03), backend="reference")
    return OPS.dequantize(*packed, torch.tensor(0.03), BF16, backend=backend)


@form("dequantize to fp16, linear scales")
def _(backend: str) -> Outputs:
    p = torch.tensor(0.03)
    packed = OPS.quantize(activations(5, 208), p, "linear", backend="reference")
    return OPS.dequantize(*packed, p, F16, "linear", backend=backend)


@form("dequantize to fp32, a scale a row")
def _(backend: str) -> Outputs:
    p = torch.rand(8) + 0.01
    packed = OPS.quantize(specials(80), p, backend="reference")
    return OPS.dequantize(*packed, p, F32, backend=backend)


@form("glu_quantize SiLU with a limit, scales found")
def _(backend: str) -> Outputs:
    return OPS.glu_quantize(activations(5, 192), None, None, 7.0, backend=backend)


@form("glu_quantize GELU, one scale, linear scales")
def _(backend: str) -> Outputs:
    gate_up = activations(5, 416, F16)
    p = torch.tensor(0.03)
    return OPS.glu_quantize(
        gate_up, p, None, None, "linear", activation="gelu_tanh", backend=backend
    )


@form("glu_quantize fp32 with NaN and Inf, a scale a row")
def _(backend: str) -> Outputs:
    return OPS.glu_quantize(specials(160), torch.rand(8) + 0.01, None, 7.0, backend=backend)


@form("glu_quantize of long rows: their scales")
def _(backend: str) -> Outputs:
    call = GluQuantize(activations(2, 2 * (4096 + 48)), swiglu_limit=7.0)
    if backend == "reference":
        return (OPS.glu_quantize(*call[:4], backend=backend)[2],)
    row_scale = torch.empty(2)
    run(glu_quantize.plan_row_scales(call, row_scale))
    return (row_scale,)


@form("glu_quantize of long rows by four_over_six", RULE_ALONE.__contains__)
def _(backend: str) -> Outputs:
    call = GluQuantize(activations(2, 2 * (4096 + 48)), scale_rule="four_over_six")
    if backend == "reference":
        return OPS.glu_quantize(*call[:6], backend=backend)
    out = call.outputs()
    run(glu_quantize.plan_row_scales(call, out.row_scale))
    static = call._replace(global_scale=out.row_scale)
    sm, packed = target_of(out.data.device).sm, Packed(out.data, out.scales)
    run(glu_quantize.plan(static, packed, sm, scale_per_row=True))
    return out


def _rmsnorm(x: Tensor, add: bool, p: Tensor | None, layout: str = "swizzled") -> RmsnormQuantize:
    residual = torch.randn_like(x) if add else None
    return RmsnormQuantize(x, torch.randn(x.shape[1]).to(x.dtype), 1e-6, residual, p, layout)


@form("rmsnorm_quantize bf16 with a residual")
def _(backend: str) -> Outputs:
    call = _rmsnorm(activations(5, 96), True, None)
    return OPS.rmsnorm_quantize(*call[:6], backend=backend)


@form("rmsnorm_quantize fp16, one scale, linear scales, several warps a row")
def _(backend: str) -> Outputs:
    call = _rmsnorm(activations(2, 4112, F16), False, torch.tensor(0.03), "linear")
    return OPS.rmsnorm_quantize(*call[:6], backend=backend)


@form("rmsnorm_quantize fp32 with NaN and Inf, a scale a row")
def _(backend: str) -> Outputs:
    call = _rmsnorm(specials(80), True, torch.rand(8) + 0.01, "linear")
    return OPS.rmsnorm_quantize(*call[:6], backend=backend)


def _rmsnorm_of_long_rows(backend: str, call: RmsnormQuantize) -> Outputs:
    """The kernel for rows that no program holds, on rows of a few parts."""
    if backend == "reference":
        return OPS.rmsnorm_quantize(*call[:7], backend=backend)
    out = call.outputs()
    sm = target_of(call.x.device).sm
    run(rmsnorm_quantize.plan(*call.prepared(out), sm, Tile(1, 64, 1), longest_held=0))
    return out


@form("rmsnorm_quantize of long rows, scales found")
def _(backend: str) -> Outputs:
    return _rmsnorm_of_long_rows(backend, _rmsnorm(activations(3, 176), True, None))


@form("rmsnorm_quantize by four_over_six", RULE_ALONE.__contains__)
def _(backend: str) -> Outputs:
    call = _rmsnorm(activations(5, 96), True, None)._replace(scale_rule="four_over_six")
    return OPS.rmsnorm_quantize(*call[:7], backend=backend)


@form("rmsnorm_quantize of long rows by four_over_six", RULE_ALONE.__contains__)
def _(backend: str) -> Outputs:
    call = _rmsnorm(activations(3, 176), True, None)._replace(scale_rule="four_over_six")
    return _rmsnorm_of_long_rows(backend, call)


@form("rmsnorm_quantize of long rows, one scale")
def _(backend: str) -> Outputs:
    call = _rmsnorm(activations(3, 176, F16), False, torch.tensor([0.03]), "linear")
    return _rmsnorm_of_long_rows(backend, call)


# ---- GEMMs ----------------------------------------------------------------------------------


def codes(*shape: int) -> Tensor:
    """Packed codes of every value."""
    return torch.randint(0, 256, (*shape[:-1], shape[-1] // 2), dtype=torch.uint8)


def small_scales(*shape: int) -> Tensor:
    """Linear scales of 1/2, 1 and 2: sums of a few thousand products are exact in float32."""
    chosen = torch.randint(0, 3, (*shape[:-1], shape[-1] // 16))
    return torch.tensor([0.5, 1.0, 2.0])[chosen].to(SCALE_DTYPE)


def operand(rows: int, k: int) -> tuple[Tensor, Tensor]:
    return codes(rows, k), swizzle_scales(small_scales(rows, k))


def exact_rows(rows: int, k: int, dtype: torch.dtype) -> Tensor:
    """Activations whose rows' own scales are powers of two, and whose blocks' are near the top."""
    x = torch.randint(-8, 9, (rows, k)).float() * 128
    x[:, ::16] = 2688.0 / 2
    x[:, 3] = -2688.0
    return x.to(dtype)


def _mm(
    backend: str,
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    config: MmConfig | HopperConfig | None,
    factors: str = "",
) -> Outputs:
    """An mm by this tile. factors: the names of those that it has besides one alpha."""
    (a, a_scales), (b, b_scales) = operand(m, k), operand(n, k)
    alpha = torch.tensor([[0.5, 0.25]]) if "segments" in factors else torch.tensor([[0.5]])
    if "alpha of rows" in factors:
        alpha = 2.0 ** torch.randint(-3, 1, (m, 1))
    row_scale = 2.0 ** torch.randint(-3, 1, (m,)) if "row_scale" in factors else None
    bias = torch.randint(-8, 9, (n,)).to(BF16) if "bias" in factors else None
    call = Mm(a, b, a_scales, b_scales, alpha, row_scale, bias, dtype)
    if config is None or backend == "reference":
        return OPS.mm(*call[:8], backend=backend)
    out = call.outputs()
    run(*mm.plan(*call.prepared(out), target_of(out.device).sm, config))
    return (out,)


def mm_form(
    name: str,
    on: Callable[[int], bool],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    config: MmConfig | HopperConfig | None = None,
    factors: str = "",
) -> None:
    form(f"mm {name}", on)(lambda backend: _mm(backend, *shape, dtype, config, factors))


mm_form("16x64, rows masked", portable, (3, 80, 256), BF16, TILE_16X64)
mm_form("16x64", portable, (15, 72, 272), F16, TILE_16X64, "row_scale bias")
mm_form("32x64", portable, (20, 80, 512), F32, TILE_32X64, "segments bias")
mm_form("64x64", portable, (40, 144, 272), BF16, TILE_64X64, "alpha of rows")
mm_form("64x128", portable, (70, 144, 128), F16, TILE_64X128, "row_scale")
mm_form("128x128", portable, (130, 80, 144), F32, TILE_128X128, "row_scale bias")

mm_form("8x64, split-K", hopper, (5, 80, 768), BF16, DECODE_8X64._replace(splits=3), "row_scale")
mm_form("16x32, split-K", hopper, (12, 40, 784), F16, DECODE_16X32, "segments bias")
mm_form("64x64 unaligned", hopper, (40, 136, 272), F32, TILE_64X64, "row_scale bias")
for i, (tile, dtype) in enumerate(zip(COST, FLOAT_DTYPES * len(COST), strict=False)):
    stream_k = i % 3 != 1
    mm_form(
        f"{tile.BM} per_sm={tile.per_sm} stages={tile.a_stages}{' stream-K' * stream_k}",
        hopper,
        (min(tile.BM + 1, 20), 144, 384),
        dtype,
        tile._replace(stream_k=stream_k),
        "row_scale bias" if i % 2 else "alpha of rows",
    )

for bm, dtype in ((16, BF16), (32, F16), (64, F32), (128, BF16)):
    mm_form(
        f"block-scaled {bm}",
        multiplies_nvfp4,
        (bm - 3, 144 if bm != 16 else 136, 272 if bm == 32 else 256),
        dtype,
        None,
        "row_scale bias" if bm > 16 else "segments",
    )


def _linear(
    backend: str,
    activation: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    config: MmConfig | None,
    static: bool = False,
    bias: bool = False,
    rule: str = "amax_over_six",
) -> Outputs:
    m, n, k = shape
    x, (w, w_scales) = exact_rows(m, k, dtype), operand(n, k)
    b = torch.randint(-8, 9, (n,)).to(F32) if bias else None
    p = torch.tensor([2.0]) if static else None
    call = Linear(x, w, w_scales, torch.tensor([2.0**-12]), p, b, rule, activation)
    if config is None or backend == "reference":
        return OPS.linear(*call[:8], backend=backend)
    out = call.outputs()
    plan = linear.plan if activation == "nvfp4" else weight_only_linear.plan
    run(*plan(*call.prepared(out), target_of(out.device).sm, config))
    return (out,)


@form("linear, scales found", decoding)
def _(backend: str) -> Outputs:
    return _linear(backend, "nvfp4", (3, 72, 272), BF16, TILE_16X64, bias=True)


@form("linear, one scale", decoding)
def _(backend: str) -> Outputs:
    return _linear(backend, "nvfp4", (20, 80, 256), F32, TILE_32X64, static=True)


@form("linear by four_over_six", decoding)
def _(backend: str) -> Outputs:
    rule = "four_over_six"
    return _linear(backend, "nvfp4", (20, 80, 256), F32, TILE_32X64, static=True, rule=rule)


@form("linear W4A16")
def _(backend: str) -> Outputs:
    return _linear(backend, "bf16", (3, 72, 272), BF16, TILE_16X64, bias=True)


@form("linear W4A16 of long rows")
def _(backend: str) -> Outputs:
    return _linear(backend, "bf16", (1, 8, 8192 + 128), F32, TILE_16X64)


# ---- mixtures of experts --------------------------------------------------------------------

COUNTS = (5, 0, 17, 1)
"""Rows of each expert; two more rows are unassigned."""


def _offsets() -> Tensor:
    return torch.tensor([0, *torch.tensor(COUNTS).cumsum(0).tolist()], dtype=torch.int32)


def _grouped(
    backend: str,
    n: int,
    k: int,
    dtype: torch.dtype,
    config: MmConfig | HopperConfig | None,
    factors: bool,
    rows: int = sum(COUNTS) + 2,
    expected_rows: int = 0,
) -> Outputs:
    experts, offsets = len(COUNTS), _offsets()
    a, a_scales = codes(rows, k), small_scales(rows, k)
    b = codes(experts, n, k)
    b_scales = torch.stack([swizzle_scales(small_scales(n, k)) for _ in range(experts)])
    alpha = 2.0 ** torch.randint(-3, 1, (experts, 2 if factors else 1))
    row_scale = 2.0 ** torch.randint(-3, 1, (rows,)) if factors else None
    bias = torch.randint(-8, 9, (experts, n)).to(BF16) if factors else None
    grouped = swizzle_grouped_scales(a_scales, offsets)
    call = GroupedMm(a, b, grouped, b_scales, alpha, offsets, row_scale, bias, dtype, expected_rows)
    if config is None or backend == "reference":
        return OPS.grouped_mm(*call[:10], backend=backend)
    out = call.outputs()
    run(*grouped_mm.plan(*call.prepared(out), target_of(out.device).sm, config))
    return (out,)


def grouped_form(
    name: str,
    on: Callable[[int], bool],
    k: int,
    dtype: torch.dtype,
    config: MmConfig | HopperConfig | None,
    factors: bool,
    expected_rows: int = 0,
) -> None:
    form(f"grouped_mm {name}", on)(
        lambda backend: _grouped(
            backend, 144, k, dtype, config, factors, expected_rows=expected_rows
        )
    )


grouped_form("16x64", portable, 272, BF16, TILE_16X64, True)
grouped_form("32x64", portable, 256, F16, TILE_32X64, False)
grouped_form("64x128", portable, 128, F32, TILE_64X128, True)
grouped_form("128x128", portable, 144, BF16, TILE_128X128, False)
grouped_form("64x128 unaligned", hopper, 272, F32, TILE_64X128, True)
for tile, dtype in zip(GROUPED.values(), FLOAT_DTYPES * 2, strict=False):
    grouped_form(
        f"{tile.BM} per_sm={tile.per_sm} stages={tile.b_stages}",
        hopper,
        384,
        dtype,
        tile,
        tile.BM != 16,
    )
grouped_form("block-scaled 16", multiplies_nvfp4, 272, BF16, None, True, 20)
grouped_form("block-scaled 64", multiplies_nvfp4, 256, F32, None, False, 4 * 64)
grouped_form("block-scaled 128", multiplies_nvfp4, 256, F16, None, True, 4 * 128)


def _ids(tokens: int, top_k: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(-1, 7, (tokens, top_k), dtype=dtype)


@form("moe_dispatch, scales found")
def _(backend: str) -> Outputs:
    x, ids = activations(9, 96), _ids(9, 2, torch.int32)
    return OPS.moe_dispatch(x, ids, 4, None, 1, backend=backend)


@form("moe_dispatch, one scale")
def _(backend: str) -> Outputs:
    x, ids = activations(9, 208, F16), _ids(9, 2, torch.int64)
    return OPS.moe_dispatch(x, ids, 4, torch.tensor(0.03), 1, backend=backend)


@form("moe_dispatch by four_over_six", RULE_ALONE.__contains__)
def _(backend: str) -> Outputs:
    x, ids = activations(9, 96), _ids(9, 2, torch.int32)
    return OPS.moe_dispatch(x, ids, 4, None, 1, "four_over_six", backend)


@form("moe_dispatch of several chunks of ids")
def _(backend: str) -> Outputs:
    x, ids = activations(70, 16, F32), _ids(70, 8, torch.int32)
    return OPS.moe_dispatch(x, ids, 4, None, 0, backend=backend)


def _grouped_glu(
    backend: str,
    dtype: torch.dtype,
    p: Tensor | None,
    activation: str,
    rule: str = "amax_over_six",
) -> Outputs:
    gate_up = activations(sum(COUNTS) + 2, 192, dtype)
    limit = None if activation == "relu2" else 7.0
    call = GluQuantize(gate_up, p, _offsets(), limit, "swizzled", rule, activation)
    return OPS.glu_quantize(*call[:7], backend=backend)


@form("glu_quantize of experts, scales found")
def _(backend: str) -> Outputs:
    return _grouped_glu(backend, BF16, None, "silu")


@form("glu_quantize of experts, one scale")
def _(backend: str) -> Outputs:
    return _grouped_glu(backend, F16, torch.tensor(0.03), "gelu_tanh")


@form("glu_quantize of experts, a scale each")
def _(backend: str) -> Outputs:
    return _grouped_glu(backend, F32, torch.rand(len(COUNTS)) + 0.01, "silu")


@form("glu_quantize of experts, swiglu_oai")
def _(backend: str) -> Outputs:
    return _grouped_glu(backend, BF16, None, "swiglu_oai")


@form("glu_quantize of experts by four_over_six", RULE_ALONE.__contains__)
def _(backend: str) -> Outputs:
    return _grouped_glu(backend, BF16, None, "silu", "four_over_six")


@form("glu_quantize of experts, relu2")
def _(backend: str) -> Outputs:
    return _grouped_glu(backend, BF16, None, "relu2")


def _moe(
    backend: str, activation: str, dtype: torch.dtype, config: MmConfig | None, biased: bool
) -> Outputs:
    """W4A16 with exact sums: few nonzero inputs, and gates beyond 32, where act(g) is g."""
    tokens, experts, (k, intermediate) = 5, 3, (80, 48) if config else (128, 128)
    x = torch.zeros(tokens, k).scatter_(1, torch.randint(0, k, (tokens, 2)), 1.0)
    x = (x * 2.0 ** torch.randint(0, 2, (tokens, 1))).to(dtype)
    n = intermediate * columns_per_output(activation)
    w13, w13_scales = codes(experts, n, k), torch.ones(n, k // 16).to(SCALE_DTYPE)
    w2, w2_scales = codes(experts, k, intermediate), small_scales(k, intermediate)
    w13_scales, w2_scales = (
        torch.stack([swizzle_scales(scales)] * experts) for scales in (w13_scales, w2_scales)
    )
    alpha, w2_alpha = 2.0 ** torch.randint(0, 2, (experts, 1)), torch.full((experts,), 2.0**-6)
    w13_bias = torch.randint(-2, 3, (experts, n)).to(BF16)
    w13_bias[:, : n - intermediate] += 96.0
    w2_bias = torch.randint(-8, 9, (experts, k)).to(F32) if biased else None
    weights = 2.0 ** torch.randint(-2, 1, (tokens, 2))
    call = Moe(
        *(
            x,
            weights,
            _ids(tokens, 2, torch.int32),
            w13,
            w13_scales,
            alpha,
            w2,
            w2_scales,
            w2_alpha,
        ),
        w13_bias=w13_bias if biased else None,
        w2_bias=w2_bias,
        expert_offset=1,
        swiglu_limit=110.0 if activation == "silu" else None,
        activation_format="bf16",
        activation=activation,
    )
    if backend == "reference":
        return OPS.moe(*call[:-1], backend=backend)
    out = call.outputs()
    run(*weight_only_moe.plan(*call.prepared(out), target_of(out.device).sm, config))
    return (out,)


@form("moe W4A16, relu2")
def _(backend: str) -> Outputs:
    return _moe(backend, "relu2", BF16, TILE_16X64, biased=False)


@form("moe W4A16, silu with a limit and biases")
def _(backend: str) -> Outputs:
    return _moe(backend, "silu", F16, TILE_32X64, biased=True)


@form("moe W4A16, swiglu_oai by wgmma", hopper)
def _(backend: str) -> Outputs:
    return _moe(backend, "swiglu_oai", F32, None, biased=True)


def _combine(backend: str, dtype: torch.dtype, top_k: int, weights: torch.dtype) -> Outputs:
    tokens = 5
    y = activations(tokens * top_k, 48, dtype)
    positions = torch.randperm(tokens * top_k, dtype=torch.int32).view(tokens, top_k)
    positions[0, 0] = -1
    chosen = torch.rand(tokens, top_k).to(weights)
    return OPS.moe_combine(y, chosen, positions, backend=backend)


for dtype, top_k, weights in ((BF16, 1, F32), (F16, 8, BF16), (F32, 2, F16)):
    form(f"moe_combine {str(dtype).removeprefix('torch.')}, top {top_k}")(
        lambda backend, dtype=dtype, top_k=top_k, weights=weights: _combine(
            backend, dtype, top_k, weights
        )
    )


def forms_on(sm: int) -> Iterator[Form]:
    return (each for each in FORMS if each.on(sm))


def one_nan(x: Tensor) -> Tensor:
    """Give every NaN of a float the same bits: hardware's arithmetic and a CPU's choose others."""
    return torch.where(x.isnan(), torch.nan, x) if x.dtype in FLOAT_DTYPES else x


def cutedsl_forms() -> Iterator[Form]:
    """One problem for each op that CuTe DSL's kernels have; those have tests of their own."""

    def outputs(run: Callable[[str], Outputs]) -> Callable[[str], Outputs]:
        def seeded(backend: str) -> Outputs:
            torch.manual_seed(0)
            return run(backend)

        return seeded

    def fused(backend: str) -> Outputs:
        experts, k, offsets = len(COUNTS), 256, _offsets()
        rows = sum(COUNTS) + 2
        a, a_scales = codes(rows, k), small_scales(rows, k)
        b = codes(experts, 256, k)
        b_scales = torch.stack([swizzle_scales(small_scales(256, k)) for _ in range(experts)])
        alpha, p = torch.full((experts, 1), 2.0**-8), torch.tensor(2.0**-6)
        grouped = swizzle_grouped_scales(a_scales, offsets)
        return OPS.grouped_mm_glu_quantize(
            a, b, grouped, b_scales, alpha, offsets, None, None, p, backend=backend
        )

    def mm_(backend: str) -> Outputs:
        return _mm(backend, 20, 136, 272, BF16, None)

    def grouped_mm_(backend: str) -> Outputs:
        return _grouped(backend, 136, 272, F32, None, True)

    yield Form("mm", outputs(mm_), everywhere)
    yield Form("grouped_mm", outputs(grouped_mm_), everywhere)
    yield Form("grouped_mm_glu_quantize", outputs(fused), everywhere)
