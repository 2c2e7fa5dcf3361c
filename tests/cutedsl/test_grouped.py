"""The grouped kernels for sm_100, emulated: their code, their tensor maps, their launches.

Against the spec in float64, equal to the bit: scales are 1/2, 1 and 2, so that every float32 sum is
exact. What is nobody's is poisoned, and must stay so.
"""

from dataclasses import replace

import pytest
import torch
from cases import same_bits
from grouped_problems import (
    FUSED,
    MIXED,
    PAIR,
    POISON,
    ROUTINGS,
    SQUARE,
    SWAPPED,
    Routing,
    eighths,
    expected,
    operands,
    runs,
)

from nvfp4.backends.cutedsl.gemm.choose import (
    GLU,
    GROUPED,
    choose_grouped_config,
    predict_grouped,
)
from nvfp4.backends.cutedsl.gemm.config import Epilogue, Glu, Kernel, Tile
from nvfp4.backends.cutedsl.gemm.launch import run_or_emulate
from nvfp4.backends.cutedsl.gemm.launch_grouped import (
    clusters_of,
    glu_kernel_of,
    grouped_kernel_of,
    plan_grouped,
    sized_for_rows,
)
from nvfp4.backends.cutedsl.gemm.layouts import layout_of
from nvfp4.backends.cutedsl.gemm.sizes import SHARED_BYTES
from nvfp4.backends.cutedsl.grouped_mm import grouped_mm
from nvfp4.backends.cutedsl.runtime import compile as compiler
from nvfp4.backends.cutedsl.runtime import emulated
from nvfp4.backends.cutedsl.runtime.compile import compiled
from nvfp4.backends.cutedsl.runtime.warmup import kernels_for
from nvfp4.backends.workload import Workload
from nvfp4.bench import cubin
from nvfp4.calls import GroupedMm
from nvfp4.emulator import Options
from nvfp4.spec.format import FLOAT_DTYPES
from nvfp4.spec.glu import SILU


def check(
    routing: Routing,
    n: int = 136,
    k: int = 320,
    tile: Tile | None = SQUARE,
    segments: int = 1,
    row_scale: bool = False,
    bias: torch.dtype | None = None,
    dtype: torch.dtype = torch.bfloat16,
    sms: int = 4,
) -> None:
    x = operands(routing, n, k)
    experts = len(routing.counts)
    alpha = eighths(experts, segments)
    factor = eighths(routing.rows) if row_scale else None
    added = None if bias is None else eighths(experts, n).to(bias)
    out = torch.full((routing.rows, n), POISON, dtype=dtype)
    call = GroupedMm(
        *(x.a, x.b, x.a_scales, x.b_scales, alpha, x.offsets, factor, added),
        expected_rows=routing.rows,
    )
    if tile is None:
        grouped_mm(call, out)
    else:
        run_or_emulate(plan_grouped(call, out, tile, sms))
    same_bits(out, expected(x, routing, alpha, factor, added, dtype))


@runs
@pytest.mark.parametrize("tile", GROUPED, ids=str)
def test_every_tile(tile):
    """More tiles than clusters, K in three stages, of which the last is ragged. The kernels are
    those that must not spill.
    """
    check(MIXED, 328, 576, tile, segments=2, row_scale=True, bias=torch.float32, sms=3)


@runs
@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
@pytest.mark.parametrize("tile", [SQUARE, Tile(256, 128, 2), SWAPPED], ids=str)
def test_every_routing(tile, routing):
    check(routing, tile=tile, k=64)


@runs
@pytest.mark.parametrize("form", [(1, False, True), (2, True, False), (4, True, True)], ids=str)
@pytest.mark.parametrize("tile", [PAIR, SWAPPED], ids=str)
def test_every_epilogue(tile, form):
    """Stored by TMA and by elements, in each dtype."""
    segments, row_scale, bias = form
    dtype = FLOAT_DTYPES[(segments // 2 + tile.swapped) % 3]
    check(MIXED, 136, 80, tile, segments, row_scale, dtype if bias else None, dtype)


@runs
@pytest.mark.parametrize("k", [16, 32, 48, 256, 272])
def test_short_and_ragged_k(k):
    check(MIXED, 72, k)


@runs
@pytest.mark.parametrize("n", [8, 33, 132])
def test_outputs_that_tma_cannot_write(n):
    check(MIXED, n, 64, bias=torch.bfloat16)


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
        grouped_mm(
            GroupedMm(
                *(x.a, x.b, x.a_scales, x.b_scales, eighths(513, 1), x.offsets), expected_rows=1
            ),
            out,
        )


@runs
@pytest.mark.parametrize("tile", [SQUARE, PAIR, SWAPPED], ids=str)
def test_under_every_schedule(tile):
    """Warps and asynchronous work in other orders: nothing relies on what happened to be first."""
    x = operands(MIXED, 264, 1296)
    alpha = eighths(4, 1)
    call = GroupedMm(x.a, x.b, x.a_scales, x.b_scales, alpha, x.offsets)
    for seed, delay in enumerate((0, 30, 300, 1000)):
        out = torch.full((MIXED.rows, 264), POISON, dtype=torch.bfloat16)
        launch = plan_grouped(call, out, tile, 3)
        emulated.run(launch, Options(seed=seed, delay=delay, quantum=512 if seed % 2 else 64))
        same_bits(out, expected(x, MIXED, alpha, None, None, torch.bfloat16))


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


# As compiled.


def every_kernel() -> list[Kernel]:
    """The fullest of each tile; fused ones with and without a limit."""
    full = [
        grouped_kernel_of(tile, torch.bfloat16, True, True, torch.float32, True) for tile in GROUPED
    ]
    fused = [
        glu_kernel_of(tile, torch.float32, True, activation, limit is not None)
        for tile, activation, limit in FUSED
    ]
    return [*full, *fused]


@runs
@pytest.mark.parametrize("kernel", every_kernel(), ids=str)
def test_nothing_spills_and_the_loops_stay_short(kernel):
    code = compiled(kernel, "sm_100a").cubin
    resources, sass = cubin.resources(code), cubin.sass(code)
    assert resources.spill_stores == resources.local == resources.stack == 0
    assert resources.registers <= (168 if kernel.epilogue.glu else 200)
    assert cubin.mma_loop(sass).sass <= (60 if kernel.tile.columns <= 128 else 68)
    assert cubin.tma_loop(sass).sass <= (44 if kernel.epilogue.glu else 36)
    assert not [i for i in sass if i.opcode.startswith("BRA.U.ANY")], "a loop over lanes"


# Before it is compiled: for every machine.


@pytest.mark.parametrize("kernel", every_kernel(), ids=str)
def test_everything_fits(kernel):
    layout = layout_of(kernel)
    assert layout.stages >= 3 and layout.shared_bytes <= SHARED_BYTES
    assert layout.table % 16 == 0 and layout.table > layout.tmem_holder
    assert layout.token_step & (layout.token_step - 1) == 0
    overlapped = (layout.release_after + 1) * layout.subtile
    assert overlapped >= layout.tmem.overlap


def test_kernels_that_there_are_not():
    for tile, message in (
        (Tile(128, 128, 2), "no cluster but a pair's"),
        (Tile(128, 16, swapped=True), "64 columns or more"),
        (Tile(128, 64, split_k=2, swapped=True), "no split_k"),
    ):
        with pytest.raises(ValueError, match=message):
            Kernel(tile, Epilogue(tma_store=False), grouped=True)
    fused = Epilogue(tma_store=False, glu=Glu())
    for epilogue in (replace(fused, bias=True), replace(fused, tma_store=True)):
        with pytest.raises(ValueError, match="without tma_store, bias and forms of alpha"):
            Kernel(PAIR, epilogue, grouped=True)
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
    """With few tokens an expert the weights' bytes set the time. Many take the pair's largest
    tile.
    """
    for experts in (8, 64, 256):
        for n, k in ((4096, 4096), (7168, 2048)):
            few = choose_grouped_config(4 * experts, experts, n, k)
            many = choose_grouped_config(1024 * experts, experts, n, k)
            assert few.time <= 4e-6 + 1.2 * few.hbm  # a launch, and little else
            assert many.tile.rows == 256 and many.tile.columns in (192, 256)
            fused = choose_grouped_config(1024 * experts, experts, n, k, glu=True)
            assert fused.tile in GLU and fused.time <= 1.1 * many.time
    assert choose_grouped_config(1, 256, 4096, 4096).hbm < 2e-6, "one expert's weights"


def test_eight_warps_hide_the_arithmetic_of_a_gated_linear_unit():
    """With four, it took longer than the MMAs of K = 2048 (modelled, from counted instructions)."""
    assert layout_of(Kernel(PAIR, Epilogue(tma_store=False, glu=Glu()), True)).epilogue_warps == 8
    for k, warps, bound in ((1024, 8, True), (1280, 8, False), (2048, 4, True), (3072, 4, False)):
        found = predict_grouped(PAIR, 8192, 8, 4096, k, glu_warps=warps)
        assert (found.glu > max(found.mma, found.l2, found.hbm)) == bound
        assert found.time >= found.glu
    half = choose_grouped_config(8192, 8, 4096, 2048, glu=True)
    assert half.time < predict_grouped(PAIR, 8192, 8, 4096, 2048, glu_warps=4).time


def test_few_rows_of_a_short_k_take_half_of_an_sm():
    """Every grouped kernel took a whole SM: the next one's CTAs could not start beside it (PDL)."""
    kernel = grouped_kernel_of(SWAPPED, torch.bfloat16, False, True, None, True)
    for rows, k, half in ((1, 768, True), (8, 768, True), (1, 1024, False), (4096, 768, False)):
        chosen = sized_for_rows(kernel, rows, 128, 2048, k, 148)
        assert chosen.half_sm == half
        layout = layout_of(chosen)
        if half:
            assert 2 * (layout.shared_bytes + 1024) <= 228 * 1024 and layout.stages == 3
            assert 2 * layout.tmem.columns <= 512


@pytest.mark.parametrize("k", [2048, 768])
def test_warmup_covers_every_choice(k):
    n, experts = 4096, 32
    for glu_ in (False, True):
        kernels = kernels_for(Workload(n, k, 3000, experts=experts, glu=glu_))
        tiles = {(kernel.tile, kernel.half_sm) for kernel in kernels}
        for m in range(1, 3001, 1 if k == 2048 else 7):
            tile = choose_grouped_config(m, experts, n, k, glu=glu_).tile
            form = glu_kernel_of if glu_ else grouped_kernel_of
            rest = (True, SILU, False) if glu_ else (False, True, None, True)
            kernel = sized_for_rows(form(tile, torch.bfloat16, *rest), m, experts, n, k, 148)
            assert (tile, kernel.half_sm) in tiles
        assert len(kernels) == len(set(kernels)) == (4 if glu_ else 2) * len(tiles)
        assert all(
            kernel.grouped and (kernel.epilogue.glu is not None) == glu_ for kernel in kernels
        )
    unfused = kernels_for(Workload(2 * 192, k, 64, experts=experts, glu=True))
    assert all(kernel.epilogue.glu is None for kernel in unfused), "I = 192 is not fused"
