"""The grouped kernel for sm_100 with its gated linear unit, emulated: equal to the bit to the spec
on what the unfused kernel gives, with any scales.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from cases import same_bits
from grouped_problems import (
    BYTE,
    FUSED,
    MIXED,
    PAIR,
    POISON,
    ROUTINGS,
    SQUARE,
    Routing,
    eighths,
    expected,
    operands,
    runs,
)
from torch import Tensor

from nvfp4.backends import cutedsl
from nvfp4.backends.cutedsl.gemm.choose import GLU
from nvfp4.backends.cutedsl.gemm.config import Tile
from nvfp4.backends.cutedsl.gemm.launch import run_or_emulate
from nvfp4.backends.cutedsl.gemm.launch_grouped import (
    glu_kernel_of,
    plan_glu,
    plan_grouped,
)
from nvfp4.backends.cutedsl.gemm.layouts import layout_of
from nvfp4.backends.cutedsl.grouped_mm_glu_quantize import grouped_mm_glu_quantize
from nvfp4.backends.cutedsl.runtime import emulated
from nvfp4.backends.cutedsl.runtime.compile import FUNCTION, compiled
from nvfp4.backends.problem import Problem
from nvfp4.backends.target import Target
from nvfp4.bench import cubin
from nvfp4.calls import GroupedMm, GroupedMmGluQuantize, Quantized
from nvfp4.emulator import Options, load
from nvfp4.spec.format import FLOAT_DTYPES
from nvfp4.spec.glu import EXP2_COEFFICIENTS, SILU, glu
from nvfp4.spec.grouped import (
    expert_of_rows,
    swizzle_grouped_scales,
    unswizzle_grouped_scales,
)
from nvfp4.spec.quantize import quantize_rows
from nvfp4.spec.scale_rules import AMAX_OVER_SIX, FOUR_OVER_SIX
from nvfp4.spec.swizzle import swizzle_scales


class GluCase(NamedTuple):
    intermediate: int = 128
    k: int = 64
    tile: Tile | None = Tile(128, 256)
    segments: int = 1
    limit: float | None = None
    activation: str = SILU
    dtype: torch.dtype = torch.bfloat16
    scale_each: bool = False
    exact: bool = True
    special: bool = False
    size: float = 2.0**-6
    scale_rule: str = AMAX_OVER_SIX


def check_glu(routing: Routing, case: GluCase, sms: int = 3) -> None:
    """The fused kernel against the spec on what the unfused one, emulated, gives."""
    x, i = operands(routing, 2 * case.intermediate, case.k, case.exact), case.intermediate
    experts, rows = len(routing.counts), routing.rows
    alpha, row_scale = eighths(experts, case.segments) * case.size, eighths(rows)
    if case.special:
        row_scale[::7], row_scale[1::9], row_scale[2::11] = torch.inf, 0.0, 1e30
        x.a_linear.view(torch.uint8)[::5, 0] = 0x7F
        x = x._replace(a_scales=swizzle_grouped_scales(x.a_linear, x.offsets))
    p = torch.rand(experts if case.scale_each else 1) / 16 + 1e-3
    inputs = (x.a, x.b, x.a_scales, x.b_scales, alpha, x.offsets, row_scale)

    gate_up = torch.zeros(rows, 2 * i, dtype=case.dtype)
    run_or_emulate(plan_grouped(GroupedMm(*inputs), gate_up, SQUARE, sms))
    if not case.special:  # NaN times 0 in other rows' products is of no interest here
        want = expected(x, routing, alpha, row_scale, None, case.dtype)
        mine = expert_of_rows(x.offsets, rows) < experts
        if case.exact:
            same_bits(gate_up[mine], want[mine])

    own, end = expert_of_rows(x.offsets, rows), routing.edges[-1]
    row_p = p[own[:end]] if case.scale_each else p.expand(end)
    data = torch.full((rows, i // 2), BYTE, dtype=torch.uint8)

    def product(part: slice) -> Tensor:
        gate, up = gate_up[:end][part].float().chunk(2, dim=1)
        return glu(gate, up, case.limit, case.activation)

    linear = quantize_rows(product, row_p.contiguous(), data[:end], case.scale_rule)
    scales = swizzle_grouped_scales(linear, x.offsets, rows)
    global_scale = torch.full((rows,), POISON)
    global_scale[:end] = row_p

    got = [torch.full_like(data, BYTE), torch.zeros_like(scales.view(torch.uint8))]
    got = Quantized(got[0], got[1].view(scales.dtype), torch.full((rows,), POISON))
    form = case.limit, case.dtype, rows, case.scale_rule, case.activation
    call = GroupedMmGluQuantize(*inputs, None, p, *form)
    if case.tile is None:
        grouped_mm_glu_quantize(call, got)
    else:
        run_or_emulate(plan_glu(call, got, case.tile, sms))
    for one, other in zip(got, (data, scales, global_scale), strict=True):
        same_bits(one, other)


@runs
@pytest.mark.parametrize("tile, activation, limit", FUSED, ids=str)
def test_fused_equals_unfused(tile, activation, limit):
    """Several tiles of rows and of columns, more than clusters; K in two stages."""
    routing = Routing("fused", (5, 0, 290, 33), 3)
    case = GluCase(256, 320, tile, 2, limit, activation, torch.float32, scale_each=True)
    check_glu(routing, case)


@runs
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "any scales"])
def test_fused_rounds_as_unfused(dtype, exact):
    check_glu(MIXED, GluCase(128, 80, PAIR, dtype=dtype, exact=exact))


@runs
@pytest.mark.parametrize(
    "size, dtype",
    [
        (2.0**-40, torch.float32),
        (2.0**-3, torch.bfloat16),
        (2.0**6, torch.float32),
        (2.0**100, torch.bfloat16),
    ],
    ids=str,
)
def test_fused_with_nans_infinities_and_any_size(dtype, size):
    check_glu(MIXED, GluCase(dtype=dtype, special=True, size=size))


@runs
@pytest.mark.parametrize("special, size", [(False, 2.0**-6), (True, 1.0), (False, 2.0**-66)])
def test_fused_by_four_over_six(special, size):
    """Also with NaN and Inf, and where the squares of what is lost are subnormal."""
    case = GluCase(256, 64, GLU[0], 2, dtype=torch.float32, special=special, size=size)
    check_glu(MIXED, case._replace(scale_rule=FOUR_OVER_SIX))


@runs
def test_a_tie_of_the_fused_kernel_took_four():
    """Every product is 64 * 6, which both scales hold exactly; with <= for < it would take 4."""
    x = operands(Routing("five", (5,)), 256, 64)
    x.a.zero_()[:, 0] = 0x02  # 1 at k = 0
    x.b.zero_()[:, :, 0] = torch.tensor([0x06] * 128 + [0x07] * 128)  # a gate of 4, up of 6
    x.a_scales.fill_(1.0)
    b_scales = torch.tensor([16.0] * 128 + [1.0] * 128).view(1, 256, 1).expand(1, 256, 4)
    b_scales = swizzle_scales(b_scales[0].to(x.b_scales.dtype))[None]
    inputs = (x.a, x.b, x.a_scales, b_scales, torch.ones(1, 1), x.offsets)
    call = GroupedMmGluQuantize(
        *inputs,
        row_scale=torch.ones(5),
        global_scale=torch.ones(1),
        gate_up_dtype=torch.float32,
        scale_rule=FOUR_OVER_SIX,
    )
    out = call.outputs()
    launch = plan_glu(call, out, GLU[0], 1)
    launch.run()
    scales = unswizzle_grouped_scales(out.scales, x.offsets, 5, 128).float()
    assert (out.data == 0x77).all() and (scales == 64).all()
    code = compiled(launch.kernel, "sm_100a")
    ptx = code.ptx.replace("setp.lt.f32 less", "setp.le.f32 less")
    load(code.object_code, FUNCTION, ptx)(*launch.args, 0, memory=launch.tensors, options=Options())
    scales = unswizzle_grouped_scales(out.scales, x.offsets, 5, 128).float()
    assert (out.data == 0x66).all() and (scales == 96).all()


@runs
@pytest.mark.parametrize("routing", ROUTINGS[:12:2], ids=str)
def test_fused_with_every_routing(routing):
    check_glu(routing, GluCase(tile=PAIR, k=32))


@runs
@pytest.mark.parametrize("tile", GLU, ids=str)
def test_fused_under_every_schedule(tile, monkeypatch):
    for seed, delay in enumerate((30, 300, 1000)):
        options = Options(seed=seed, delay=delay, quantum=512 if seed % 2 else 64)
        monkeypatch.setattr(emulated, "Options", lambda options=options, **_: options)
        check_glu(MIXED, GluCase(256, 1296, tile))


@runs
def test_scale_tiles_are_written_whole():
    """The padding rows of the tiles that an expert's rows take; not a byte of the others."""
    routing = Routing("two", (130, 5), 250)
    x = operands(routing, 256, 32)
    scales = torch.full((128 * 5, 8), BYTE, dtype=torch.uint8).view(torch.float8_e4m3fn)
    outputs = Quantized(torch.zeros(385, 64, dtype=torch.uint8), scales, torch.zeros(385))
    inputs = (x.a, x.b, x.a_scales, x.b_scales, torch.ones(2, 1), x.offsets)
    call = GroupedMmGluQuantize(*inputs, global_scale=torch.ones(1))
    for tile in GLU:
        scales.view(torch.uint8).fill_(BYTE)
        run_or_emulate(plan_glu(call, outputs, tile, 2))
        tiles = scales.view(torch.uint8).view(5, 2, 32, 4, 4).permute(0, 3, 2, 1, 4).reshape(5, -1)
        used = [(tile != BYTE).all().item() for tile in tiles]
        assert used == [True, True, True, False, False] and (tiles[3:] == BYTE).all()
        rows = tiles.view(5, 128, 8)
        assert (rows[1, 2:] == 0).all() and (rows[2, 5:] == 0).all() and (rows[0] != 0).any()


def test_what_the_fused_kernel_cannot_do_is_said():
    ask = Problem("grouped_mm_glu_quantize", Target("cpu"), 192)
    need = "needs an intermediate size that is a multiple of 128, got 192"
    assert need in cutedsl.BACKEND.reasons(ask)
    ask = ask._replace(intermediate=256)
    assert not [r for r in cutedsl.BACKEND.reasons(ask) if "128" in r or "fuse" in r]
    need = "needs one of silu, gelu_tanh to fuse, got relu2"
    assert need in cutedsl.BACKEND.reasons(ask._replace(activation="relu2"))
    need = "needs a first layer without a bias to fuse, got one"
    assert need in cutedsl.BACKEND.reasons(ask._replace(bias=True))
    x = operands(Routing("one", (3,)), 384, 32)
    data = torch.zeros(3, 96, dtype=torch.uint8)
    outputs = Quantized(data, torch.zeros(128, 12), torch.zeros(3))
    inputs = (x.a, x.b, x.a_scales, x.b_scales, torch.ones(1, 1), x.offsets)
    call = GroupedMmGluQuantize(*inputs, global_scale=torch.ones(1))
    with pytest.raises(ValueError, match="in multiples of 128, got I = 192"):
        plan_glu(call, outputs, GLU[0], 1)


@runs
@pytest.mark.parametrize(
    "tile, activation, limit, rule",
    [*((*form, AMAX_OVER_SIX) for form in FUSED), (GLU[0], SILU, None, FOUR_OVER_SIX)],
    ids=str,
)
def test_no_product_is_contracted_into_a_sum(tile, activation, limit, rule):
    """ptxas 12.9 makes one fused multiply-add of mul.rn.f32x2 and add.rn.f32x2, which the emulator,
    running PTX, cannot see.
    """
    kernel = glu_kernel_of(tile, torch.float32, True, activation, limit is not None, rule)
    sass = cubin.sass(compiled(kernel, "sm_100a").cubin)
    layout, terms = layout_of(kernel), len(EXP2_COEFFICIENTS)
    pairs = layout.subtile // layout.column_parts // 2
    # The polynomial is there twice: where divisions are simple, and where they are not.
    products = 2 * terms + (activation != SILU)
    assert sum(i.opcode == "FMUL2.FTZ" for i in sass) == pairs * products
    assert sum(i.is_a("FFMA2") for i in sass) == pairs * 4, "a simple division's, and no other"


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Compute a * b + c, rounded once to float32."""
    product, wide = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + wide
    # The error of the sum (Knuth's two-sum) says how to round it to odd.
    part = total - product
    error = (product - (total - part)) + (wide - part)
    raw = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & (raw & 1 == 0)
    towards = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact, raw + towards, raw).view(np.float64).astype(np.float32)


@pytest.mark.parametrize("error", [-1, 0, 1])
def test_a_quotient_does_not_depend_on_its_reciprocals_last_bit(error):
    """The epilogue's division where it is simple: correctly rounded, from a reciprocal that is off
    by a unit in its last place, as the hardware's may be.
    """
    rng = np.random.default_rng(error + 1)
    a = np.ldexp(rng.uniform(1, 2, 200_000), rng.integers(-60, 6, 200_000)).astype(np.float32)
    b = (1 + np.exp2(rng.uniform(-60, 60, 200_000))).astype(np.float32)
    # Where rounding is hardest: quotients near the middle between two numbers.
    b[::2] = rng.integers(1 << 23, 1 << 24, 100_000).astype(np.float32) * np.float32(2.0**-23)
    middle = (rng.integers(1 << 23, 1 << 24, 100_000) + 0.5) * 2.0**-23
    a[::2] = (middle * b[::2]).astype(np.float32)
    one, r = np.ones_like(b), ((1 / b).view(np.int32) + error).view(np.float32)
    r = fma32(r, fma32(-b, r, one), r)
    q = a * r
    q = fma32(fma32(-b, q, a), r, q)
    np.testing.assert_array_equal(q, a / b)
