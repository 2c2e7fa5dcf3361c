"""The grouped kernels for sm_100, emulated: their code, their tensor maps, their launches.

Against the spec in float64, equal to the bit: scales are 1/2, 1 and 2, so that every float32 sum is
exact. What is nobody's is poisoned, and must stay so. The fused kernel against the unfused ones,
with any scales.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cases import same_bits
from torch import Tensor

from nvfp4.backends import cutedsl
from nvfp4.backends.contract import Problem, Target, Workload
from nvfp4.backends.cutedsl import compile as compiler
from nvfp4.backends.cutedsl import cubin, emulated
from nvfp4.backends.cutedsl.compile import compiled
from nvfp4.backends.cutedsl.emulator.floats import fma32
from nvfp4.backends.cutedsl.gemm.choose import GLU, GROUPED, choose_grouped_config
from nvfp4.backends.cutedsl.gemm.config import Epilogue, Glu, Kernel, Tile
from nvfp4.backends.cutedsl.gemm.launch_grouped import (
    clusters_of,
    glu_kernel_of,
    grouped_kernel_of,
    plan_glu,
)
from nvfp4.backends.cutedsl.gemm.layouts import SHARED_BYTES, layout_of
from nvfp4.backends.cutedsl.grouped_mm import grouped_mm
from nvfp4.backends.cutedsl.grouped_mm_glu_quantize import grouped_mm_glu_quantize
from nvfp4.backends.cutedsl.warmup import kernels_for
from nvfp4.spec.format import FLOAT_DTYPES
from nvfp4.spec.glu import ACTIVATIONS, EXP2_COEFFICIENTS, GELU_TANH, SILU, glu
from nvfp4.spec.grouped import expert_of_rows, swizzle_grouped_scales
from nvfp4.spec.quantize import decode, quantize_rows
from nvfp4.spec.swizzle import swizzle_scales

REASONS = cutedsl.BACKEND.reasons(Problem("grouped_mm", Target("cpu")))
runs = pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))

POISON = 7.25
BYTE = 0x5A
SQUARE, SWAPPED, PAIR = Tile(128, 128), Tile(128, 32, swapped=True), Tile(256, 256, 2)


@dataclass(frozen=True)
class Routing:
    """Rows of each expert, and rows of nobody after them."""

    name: str
    counts: tuple[int, ...]
    nobodys: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def edges(self) -> list[int]:
        return [sum(self.counts[:e]) for e in range(len(self.counts) + 1)]

    @property
    def rows(self) -> int:
        return sum(self.counts) + self.nobodys


MIXED = Routing("mixed", (5, 0, 130, 33), 3)
ROUTINGS = [
    Routing("uniform", (40, 40, 40, 40)),
    Routing("skewed", (257, 1, 3, 2), 1),
    Routing("the first empty", (0, 17, 20)),
    Routing("the last empty", (17, 20, 0), 5),
    Routing("many empty", (*[0] * 20, 9, *[0] * 30, 31, *[0] * 12), 7),
    Routing("one has all", (0, 0, 200, 0)),
    Routing("within a warp", (1, 31, 32, 33, 30)),
    Routing("128 rows", (128, 128), 128),
    Routing("129 rows", (129, 129)),
    Routing("one row", (1,)),
    Routing("one row of eight", (0, 0, 0, 0, 0, 1, 0, 0)),
    Routing("one expert", (150,), 10),
    Routing("nobody's rows alone", (0, 0, 0), 4),
]


class Operands(NamedTuple):
    """Launchers' operands, and the linear scales that theirs were made of."""

    a: Tensor
    b: Tensor
    a_scales: Tensor
    b_scales: Tensor
    offsets: Tensor
    a_linear: Tensor
    b_linear: Tensor


def operands(routing: Routing, n: int, k: int, exact: bool = True) -> Operands:
    torch.manual_seed(routing.rows + n + k)
    experts, rows = len(routing.counts), routing.rows

    def scales(*shape: int) -> Tensor:
        if not exact:
            return (torch.rand(shape) * 3).to(torch.float8_e4m3fn)
        return torch.tensor([0.5, 1.0, 2.0])[torch.randint(0, 3, shape)].to(torch.float8_e4m3fn)

    def data(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8)

    offsets = torch.tensor(routing.edges, dtype=torch.int32)
    a_linear, b_linear = scales(rows, k // 16), scales(experts, n, k // 16)
    return Operands(
        data(rows, k // 2),
        data(experts, n, k // 2),
        swizzle_grouped_scales(a_linear, offsets),
        torch.stack([swizzle_scales(own) for own in b_linear]),
        offsets,
        a_linear,
        b_linear,
    )


def eighths(*shape: int) -> Tensor:
    return torch.randint(1, 9, shape) / 8


def expected(x: Operands, routing: Routing, alpha, row_scale, bias, dtype) -> Tensor:
    """Expert by expert in float64; what is nobody's keeps its poison."""
    edges, n = routing.edges, x.b.shape[1]
    out = torch.full((routing.rows, n), POISON, dtype=dtype)
    for e in range(len(routing.counts)):
        own = slice(edges[e], edges[e + 1])
        if edges[e] == edges[e + 1]:
            continue
        tokens = decode(x.a[own], x.a_linear[own]).double()
        sums = (tokens @ decode(x.b[e], x.b_linear[e]).double().T).float()
        factor = alpha[e].repeat_interleave(n // alpha.shape[1])
        if row_scale is not None:
            factor = row_scale[own, None] * factor
        result = sums.double() * factor.double()
        if bias is not None:
            result += bias[e].double()
        out[own] = result.float().to(dtype)
    return out


def check(
    routing: Routing,
    n: int = 136,
    k: int = 320,
    tile: Tile | None = SQUARE,
    segments: int = 1,
    row_scale: bool = False,
    bias: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    sms: int = 4,
) -> None:
    x = operands(routing, n, k)
    experts = len(routing.counts)
    alpha = eighths(experts, segments)
    factor = eighths(routing.rows) if row_scale else None
    added = eighths(experts, n).to(dtype) if bias else None
    out = torch.full((routing.rows, n), POISON, dtype=dtype)
    grouped_mm(
        x.a, x.b, x.a_scales, x.b_scales, alpha, factor, added, x.offsets, out, tile=tile, sms=sms
    )
    same_bits(out, expected(x, routing, alpha, factor, added, dtype))


@runs
@pytest.mark.parametrize("tile", GROUPED, ids=str)
def test_every_tile(tile):
    """More tiles than clusters, K in three stages, of which the last is ragged."""
    check(MIXED, 328, 576, tile, segments=2, row_scale=tile.columns != 128, sms=3)


@runs
@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
@pytest.mark.parametrize("tile", [SQUARE, Tile(256, 128, 2), SWAPPED], ids=str)
def test_every_routing(tile, routing):
    check(routing, tile=tile, k=64)


@runs
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("tile", [PAIR, Tile(128, 64, swapped=True)], ids=str)
def test_every_epilogue(tile, dtype):
    for segments, row_scale, bias in ((1, False, True), (2, True, False), (4, True, True)):
        check(MIXED, 136, 80, tile, segments, row_scale, bias, dtype)


@runs
@pytest.mark.parametrize("k", [16, 32, 48, 256, 272])
def test_short_and_ragged_k(k):
    check(MIXED, 72, k)


@runs
@pytest.mark.parametrize("n", [8, 33, 132])
def test_outputs_that_tma_cannot_write(n):
    check(MIXED, n, 64, bias=True)


@runs
def test_512_experts_and_the_tile_that_is_chosen():
    counts = [0] * 512
    for e, count in ((0, 3), (15, 1), (16, 40), (17, 2), (300, 1), (511, 33)):
        counts[e] = count
    check(Routing("512", tuple(counts), 2), 24, 32, None, sms=148)


def test_more_experts_are_refused():
    x = operands(Routing("513", (*[0] * 512, 1)), 8, 16)
    out = torch.zeros(1, 8)
    with pytest.raises(ValueError, match="needs up to 512 experts, got 513"):
        grouped_mm(x.a, x.b, x.a_scales, x.b_scales, eighths(513, 1), None, None, x.offsets, out)


@runs
def test_one_compiled_kernel_serves_any_routing_and_allocation(monkeypatch, tmp_path):
    """Nothing of a call is baked in: not the offsets, nor how many experts or rows there are."""
    compilations = []
    compile_ = compiler._compile
    monkeypatch.setenv("NVFP4_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "_compile", lambda *a: compilations.append(a) or compile_(*a))
    emulated._loaded.cache_clear()
    keep = []
    for routing, n, k in ((MIXED, 136, 288), (ROUTINGS[4], 264, 48), (ROUTINGS[9], 72, 1040)):
        keep.append(torch.empty(4096 * len(keep) + 7, dtype=torch.uint8))  # other addresses
        check(routing, n, k)
    assert len(compilations) == 1


# Fused with the gated linear unit.


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
    inputs = (x.a, x.b, x.a_scales, x.b_scales, alpha, row_scale)

    gate_up = torch.zeros(rows, 2 * i, dtype=case.dtype)
    grouped_mm(*inputs, None, x.offsets, gate_up, tile=SQUARE, sms=sms)
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

    linear = quantize_rows(product, row_p.contiguous(), data[:end])
    scales = swizzle_grouped_scales(linear, x.offsets, rows)
    global_scale = torch.full((rows,), POISON)
    global_scale[:end] = row_p

    got = [torch.full_like(data, BYTE), torch.zeros_like(scales.view(torch.uint8))]
    got = [got[0], got[1].view(scales.dtype), torch.full((rows,), POISON)]
    grouped_mm_glu_quantize(
        *inputs, x.offsets, p, case.limit, case.activation, case.dtype, *got, case.tile, sms
    )
    for one, other in zip(got, (data, scales, global_scale), strict=True):
        same_bits(one, other)


@runs
@pytest.mark.parametrize(
    "tile, activation, limit",
    [
        (GLU[0], SILU, None),
        (GLU[0], GELU_TANH, 3.0),
        (GLU[1], SILU, 3.0),
        (GLU[1], GELU_TANH, None),
    ],
    ids=str,
)
def test_fused_equals_unfused(tile, activation, limit):
    """Several tiles of rows and of columns, more than clusters; K in two stages."""
    routing = Routing("fused", (5, 0, 290, 33), 3)
    check_glu(routing, GluCase(256, 320, tile, 2, limit, activation, scale_each=True))


@runs
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "any scales"])
def test_fused_rounds_as_unfused(dtype, exact):
    check_glu(MIXED, GluCase(128, 80, PAIR, dtype=dtype, exact=exact))


@runs
@pytest.mark.parametrize("size", [2.0**-40, 2.0**-3, 2.0**6, 2.0**100], ids=lambda s: f"{s:g}")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_fused_with_nans_infinities_and_any_size(dtype, size):
    check_glu(MIXED, GluCase(dtype=dtype, special=True, size=size))


@runs
@pytest.mark.parametrize("routing", ROUTINGS[:12:2], ids=str)
def test_fused_with_every_routing(routing):
    check_glu(routing, GluCase(tile=PAIR, k=32))


@runs
def test_scale_tiles_are_written_whole():
    """The padding rows of the tiles that an expert's rows take; not a byte of the others."""
    routing = Routing("two", (130, 5), 250)
    x = operands(routing, 256, 32)
    scales = torch.full((128 * 5, 8), BYTE, dtype=torch.uint8).view(torch.float8_e4m3fn)
    outputs = (torch.zeros(385, 64, dtype=torch.uint8), scales, torch.zeros(385))
    inputs = (x.a, x.b, x.a_scales, x.b_scales, torch.ones(2, 1), None, x.offsets)
    for tile in GLU:
        scales.view(torch.uint8).fill_(BYTE)
        grouped_mm_glu_quantize(
            *inputs, torch.ones(1), None, SILU, torch.bfloat16, *outputs, tile, 2
        )
        tiles = scales.view(torch.uint8).view(5, 2, 32, 4, 4).permute(0, 3, 2, 1, 4).reshape(5, -1)
        used = [(tile != BYTE).all().item() for tile in tiles]
        assert used == [True, True, True, False, False] and (tiles[3:] == BYTE).all()
        rows = tiles.view(5, 128, 8)
        assert (rows[1, 2:] == 0).all() and (rows[2, 5:] == 0).all() and (rows[0] != 0).any()


def test_what_the_fused_kernel_cannot_do_is_said():
    ask = Problem("grouped_mm_glu_quantize", Target("cpu"), 192)
    need = "needs an intermediate size that is a multiple of 128, got 192"
    assert need in cutedsl.BACKEND.reasons(ask)
    assert not [r for r in cutedsl.BACKEND.reasons(ask._replace(intermediate=256)) if "128" in r]
    x = operands(Routing("one", (3,)), 384, 32)
    outputs = (torch.zeros(3, 96, dtype=torch.uint8), torch.zeros(128, 12), torch.zeros(3))
    inputs = (x.a, x.b, x.a_scales, x.b_scales, torch.ones(1, 1), None, x.offsets, torch.ones(1))
    with pytest.raises(ValueError, match="in multiples of 128, got I = 192"):
        plan_glu(*inputs, None, SILU, torch.bfloat16, *outputs, GLU[0], 1)


# As compiled.


def every_kernel() -> list[Kernel]:
    """The fullest of each tile."""
    full = [
        grouped_kernel_of(tile, torch.bfloat16, True, True, torch.float32, True) for tile in GROUPED
    ]
    fused = [
        glu_kernel_of(tile, torch.float32, True, activation, True)
        for tile in GLU
        for activation in ACTIVATIONS
    ]
    return [*full, *fused]


@runs
@pytest.mark.parametrize("kernel", every_kernel(), ids=str)
def test_nothing_spills_and_the_loops_stay_short(kernel):
    code = compiled(kernel, "sm_100a").cubin
    resources, sass = cubin.resources(code), cubin.sass(code)
    assert resources.spill_stores == resources.local == resources.stack == 0
    assert resources.registers <= (232 if kernel.epilogue.glu else 192)
    assert cubin.mma_loop(sass).sass <= (60 if kernel.tile.columns <= 128 else 68)
    assert cubin.tma_loop(sass).sass <= (44 if kernel.epilogue.glu else 36)
    assert not [i for i in sass if i.opcode.startswith("BRA.U.ANY")], "a loop over lanes"


@runs
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_product_is_contracted_into_a_sum(activation):
    """ptxas 12.9 makes one fused multiply-add of mul.rn.f32x2 and add.rn.f32x2, which the emulator,
    running PTX, cannot see.
    """
    kernel = glu_kernel_of(GLU[0], torch.float32, True, activation, True)
    sass = cubin.sass(compiled(kernel, "sm_100a").cubin)
    pairs, terms = layout_of(kernel).subtile // 2, len(EXP2_COEFFICIENTS)
    # The polynomial is there twice: where divisions are simple, and where they are not.
    products = 2 * terms + (activation != SILU)
    assert sum(i.opcode == "FMUL2.FTZ" for i in sass) == pairs * products
    assert sum(i.is_a("FFMA2") for i in sass) == pairs * 4, "a simple division's, and no other"


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


# Before it is compiled: for every machine.


@pytest.mark.parametrize("kernel", every_kernel(), ids=str)
def test_everything_fits(kernel):
    layout = layout_of(kernel)
    assert layout.stages >= 3 and layout.shared_bytes <= SHARED_BYTES
    assert layout.table % 16 == 0 and layout.table > layout.tmem_holder
    assert layout.token_step & (layout.token_step - 1) == 0
    overlapped = (layout.release_after + 1) * layout.subtile
    assert overlapped >= layout.overlap


def test_kernels_that_there_are_not():
    for tile, message in (
        (Tile(128, 128, 2), "no cluster but a pair's"),
        (Tile(128, 16, swapped=True), "32 columns or more"),
        (Tile(128, 64, split_k=2, swapped=True), "no split_k"),
    ):
        with pytest.raises(ValueError, match=message):
            Kernel(tile, Epilogue(tma_store=False), grouped=True)
    fused = Epilogue(tma_store=False, glu=Glu())
    for kernel in ({"tile": SQUARE, "grouped": True}, {"tile": PAIR}):
        with pytest.raises(ValueError, match="a glu needs a grouped, unswapped tile of 256"):
            Kernel(epilogue=fused, **kernel)
    limited = replace(fused, glu=Glu(limited=True))
    text = "grouped 256x256 cluster 2x1: bfloat16, alpha one, silu with a limit, quantized"
    assert str(Kernel(PAIR, limited, grouped=True)) == text


@pytest.mark.parametrize("tile", GROUPED, ids=str)
def test_there_are_clusters_for_all_tiles(tile):
    kernel = grouped_kernel_of(tile, torch.bfloat16, False, False, None, True)
    layout = layout_of(kernel)
    for routing in ROUTINGS:
        token_tiles = sum(-(-count // layout.token_step) for count in routing.counts)
        most = clusters_of(kernel, routing.rows, len(routing.counts), layout.weight_step, 10**6)
        assert most >= max(1, token_tiles)
    assert clusters_of(kernel, 10**5, 64, 4096, 148) == 148 // tile.cluster


def test_choices():
    """Few tokens an expert: on the MMA's N. Many: the pair's largest tile."""
    for experts in (8, 64, 256):
        for n, k in ((4096, 4096), (7168, 2048)):
            few = choose_grouped_config(4 * experts, experts, n, k)
            many = choose_grouped_config(1024 * experts, experts, n, k)
            assert few.tile.swapped and few.tile.columns == 32
            assert many.tile.rows == 256 and many.tile.columns in (192, 256)
            fused = choose_grouped_config(1024 * experts, experts, n, k, glu=True)
            assert fused.tile in GLU and fused.time <= 1.1 * many.time
    assert choose_grouped_config(1, 256, 4096, 4096).hbm < 2e-6, "one expert's weights"


def test_warmup_covers_every_choice():
    n, k, experts = 4096, 2048, 32
    for glu_ in (False, True):
        kernels = kernels_for(Workload(n, k, 3000, experts=experts, glu=glu_))
        tiles = {kernel.tile for kernel in kernels}
        chosen = (choose_grouped_config(m, experts, n, k, glu=glu_) for m in range(1, 3001))
        assert {choice.tile for choice in chosen} <= tiles
        assert len(kernels) == len(set(kernels)) == (4 if glu_ else 2) * len(tiles)
        assert all(
            kernel.grouped and (kernel.epilogue.glu is not None) == glu_ for kernel in kernels
        )
    unfused = kernels_for(Workload(2 * 192, k, 64, experts=experts, glu=True))
    assert all(kernel.epilogue.glu is None for kernel in unfused), "I = 192 is not fused"
