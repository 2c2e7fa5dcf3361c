"""Tiles, layouts and the choice of a tile: pure functions, for every machine."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvfp4.backends.cutedsl.gemm import layouts
from nvfp4.backends.cutedsl.gemm.choose import (
    B200,
    GROUPED,
    NARROW,
    SPLIT,
    TILES,
    choose_config,
    predict,
)
from nvfp4.backends.cutedsl.gemm.config import Alpha, Epilogue, Kernel, Tile
from nvfp4.backends.cutedsl.gemm.launch import GROUP_M_BYTES, group_m_of
from nvfp4.backends.cutedsl.gemm.layouts import Layout, layout_of, sized
from nvfp4.backends.cutedsl.gemm.sizes import SHARED_BYTES, TMEM_COLUMNS
from nvfp4.backends.cutedsl.runtime.warmup import kernels_for
from nvfp4.backends.workload import Workload
from nvfp4.spec.format import FLOAT_DTYPES

SERVED = [(6144, 3584), (9216, 3584), (7168, 2048), (4096, 7168), (16384, 7168), (8192, 8192)]
EPILOGUES = [
    Epilogue(dtype, alpha, row_scale, bias, tma_store=tma)
    for dtype in FLOAT_DTYPES
    for alpha in Alpha
    for row_scale in (False, True)
    for bias in (False, True)
    for tma in (False, True)
    if not (tma and alpha is Alpha.MATRIX)
]


def sized_for(kernel: Kernel, rows: int, columns: int, k: int) -> Kernel:
    tile = kernel.tile
    return sized(kernel, tile.tiles(rows, columns), tile.clusters(rows, columns, 148), k)


@pytest.mark.parametrize("tile", [*TILES, *NARROW, *SPLIT, Tile(256, 256, 4, 4)], ids=str)
def test_everything_fits(tile):
    for epilogue in EPILOGUES:
        if tile.swapped and epilogue.tma_store:
            continue
        layout = layout_of(Kernel(tile, epilogue))
        assert layout.stages >= 3 and layout.shared_bytes <= SHARED_BYTES
        assert layout.shared_bytes + layout.stage_pitch > SHARED_BYTES - layout.output_bytes, (
            "room for one more stage"
        )
        assert layout.tmem.b_scales + 4 * layout.tmem.b_scale_columns <= layout.tmem.columns
        assert layout.tmem.columns <= TMEM_COLUMNS
        # What the second accumulator overlaps of the first is emptied before the MMAs go on.
        emptied = (layout.release_after + 1) * layout.subtile
        assert emptied >= layout.tmem.overlap and layout.tmem.second_acc >= 0


@pytest.mark.parametrize("tile", [*TILES, *NARROW, *SPLIT, Tile(256, 192, 4, 4)], ids=str)
def test_a_stage_holds_each_byte_once(tile):
    layout = layout_of(Kernel(tile, Epilogue(tma_store=False)))
    for tiles, sharers in (
        (1, layout.a_sharers),
        (layout.tmem.b_scale_tiles, layout.b_scale_sharers),
    ):
        offsets = [
            layout.scale_offset(k, t, tiles, sharers)
            for k in range(layouts.K_BLOCKS)
            for t in range(tiles)
        ]
        size = layouts.SCALE_TILE
        assert sorted(offsets) == [size * i for i in range(layouts.K_BLOCKS * tiles)]
    assert layout.b % 1024 == 0 and layout.stage_pitch % 1024 == 0, "swizzle atoms"
    assert layout.a_sharers * (128 // layout.a_sharers) == 128
    assert layout.b_rows // layout.b_sharers % 8 == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((64, 128), "rows needs 128 or 256"),
        ((128, 96), "columns needs 64, 128, 192 or 256"),
        ((128, 8), "or, swapped, 8, 16, 32 or 64"),
        ((256, 128), "cluster_rows needs 2 or 4 for a pair"),
        ((128, 128, 3), "cluster_rows and cluster_columns need 1, 2 or 4"),
        ((128, 192, 1, 1, 2), "split_k needs one CTA a tile and columns up to 128"),
        ((128, 16, 1, 1, 3, True), "split_k needs 1, 2, 4 or 8"),
    ],
)
def test_invalid_tiles(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tile(*arguments)


@given(
    m=st.integers(1, 20000),
    n=st.integers(1, 20000),
    k=st.integers(1, 1024).map(lambda blocks: 16 * blocks),
    sms=st.integers(1, 160),
)
def test_the_choice_can_be_run(m, n, k, sms):
    chosen = choose_config(m, n, k, 2, sms)
    rows, columns = (n, m) if chosen.tile.swapped else (m, n)
    assert chosen.tile.unfit(rows, columns, k) == []
    assert chosen.tile.clusters(rows, columns, sms) >= 1
    assert chosen.time >= max(chosen.mma, chosen.l2, chosen.hbm) > 0


def test_choices():
    """Few tokens: on the MMA's N, weights split along K until the machine is full. Many: the pair's
    largest tile.
    """
    for n, k in SERVED:
        assert choose_config(1, n, k).tile.swapped and choose_config(1, n, k).tile.columns == 8
        assert choose_config(33, n, k).tile.columns == 64
        assert not choose_config(257, n, k).tile.swapped
        assert choose_config(8192, n, k).tile.rows == 256
        assert choose_config(8192, n, k).tile.columns in (192, 256)
    assert choose_config(1, 4096, 7168).tile.split_k > 1
    assert choose_config(1, 16384, 7168).tile.split_k == 1, "its 128 tiles fill the machine"


def test_few_hundred_tokens_split_k_where_unsplit_tiles_leave_sms_idle():
    """128x2048x7168 ran on 64 of 148 SMs."""
    for m, least in ((65, 120), (128, 120), (200, 120), (256, 120)):
        whole, split = (choose_config(m, 2048, 7168, splits=s) for s in (False, True))
        assert whole.tile.clusters(m, 2048, 148) * whole.tile.cluster <= 64
        assert split.tile.tiles(2048, m) * split.tile.cluster >= least
        assert split.time < 0.75 * whole.time
    assert choose_config(257, 2048, 7168).tile.split_k == 1


def test_without_splitting_k():
    for n, k in SERVED:
        for m in (1, 8, 33, 64, 128):
            assert choose_config(m, n, k, splits=False).tile.split_k == 1


@pytest.mark.parametrize("m, k", [(8192, 8192), (16384, 4096), (32768, 8192), (100_000, 16384)])
def test_the_rows_of_a_group_stay_in_l2(m, k):
    """All of A was walked for each column of tiles: 141 MB of it for 32768 x 8192, and L2 has 126,
    so that each wave read it again.
    """
    tile = Tile(256, 256, 2)
    tiles = -(-m // 256)
    group_m = group_m_of(tile, m, k)
    groups = -(-tiles // group_m)
    assert group_m * 256 * k * 9 / 16 <= 1.05 * GROUP_M_BYTES
    assert (groups == 1) == (m * k * 9 / 16 <= GROUP_M_BYTES)
    assert groups * group_m - tiles < groups, "groups of nearly the same height"
    assert group_m_of(tile, 1, k) == 1


def exchange(prediction):
    partials = 128 * prediction.tile.columns * 4
    return B200.exchange + partials / 64 / B200.clock if prediction.tile.split_k > 1 else 0


def test_the_prediction_is_a_roofline():
    for m, n, k in ((1, 6144, 3584), (8192, 8192, 8192)):
        best = choose_config(m, n, k)
        assert best.hbm == pytest.approx(
            ((m + n) * k * 0.5625 + 2 * m * n) / (8e12 * 0.88), rel=1e-6
        )
        assert best.mma >= 2 * m * n * k / 9.0e15
        limits = max(best.mma, best.l2, best.hbm)
        assert best.time - limits == pytest.approx(B200.launch + best.epilogue + exchange(best))
    whole, half = (predict(Tile(128, 128), 1024, 8192, 4096, 2, sms) for sms in (148, 74))
    assert half.waves > whole.waves and half.time > whole.time


@pytest.mark.parametrize("n, k", [(6144, 3584), (7168, 2048), (2048, 512)])
def test_warmup_covers_every_choice(n, k):
    kernels = kernels_for(Workload(n, k, 1000))
    forms = {(kernel.tile, kernel.half_sm) for kernel in kernels}
    for m in range(1, 1001):
        tile = choose_config(m, n, k).tile
        rows, columns = (n, m) if tile.swapped else (m, n)
        launched = sized_for(Kernel(tile, Epilogue(tma_store=not tile.swapped)), rows, columns, k)
        assert (tile, launched.half_sm) in forms
    assert len(kernels) == len(set(kernels)) == 4 * len(forms)


@pytest.mark.parametrize("tile", [*TILES, *NARROW, *SPLIT], ids=str)
@pytest.mark.parametrize("k", [256, 1024, 3584])
def test_a_kernel_in_half_of_an_sm_has_all_the_stages_that_it_fills(tile, k):
    """Every kernel took a whole SM: the next one's CTAs could not start beside it (PDL)."""
    kernel = Kernel(tile, Epilogue(tma_store=not tile.swapped))
    rows, columns = tile.cluster_tile
    if tile.unfit(rows, columns, k):
        return
    chosen = sized_for(kernel, rows, columns, k)
    layout, fills = layout_of(chosen), -(-k // (256 * tile.split_k))
    if chosen.half_sm:
        assert 2 * (layout.shared_bytes + 1024) <= 228 * 1024, "two on an SM"
        assert 2 * layout.tmem.columns <= TMEM_COLUMNS
        assert layout.stages >= fills
    else:
        half = Layout(tile, kernel.epilogue, half_sm=True)
        assert half.stages < max(2, fills) or 2 * half.tmem.columns > TMEM_COLUMNS
        assert layout == layout_of(kernel)
    many = sized_for(kernel, 300 * rows, columns, k)
    assert tile.split_k > 1 or not many.half_sm or 3 * fills <= layout_of(many).stages


def test_a_split_sum_has_one_accumulator():
    """A cluster that splits K has one tile; a second accumulator took a power of two more."""
    for tile, columns in ((SPLIT[0], 256), (Tile(128, 64, split_k=2, swapped=True), 128)):
        layout = layout_of(Kernel(tile, Epilogue(tma_store=False)))
        assert layout.tmem.accumulators == 1 and layout.tmem.columns == columns
        assert layout.tmem.b_scales + 4 * layout.tmem.b_scale_columns == tile.columns + 32
        whole = Layout(replace(tile, split_k=1), layout.epilogue)
        assert whole.tmem.accumulators == 2 and whole.tmem.columns == 2 * columns


def test_no_tile_reads_scales_at_an_odd_column_of_tensor_memory():
    """An expert of 40 rows had 8 wrong ones: its second tile of 32 columns began at an odd column,
    which hardware cannot address.
    """
    assert all(tile.columns % 64 == 0 and not tile.ungrouped() for tile in GROUPED)
    narrow = Tile(128, 32, swapped=True)
    assert "64 columns or more" in narrow.ungrouped()[0]
    assert not narrow.unfit(128, 32, 1024) and narrow.unfit(128, 33, 1024)
