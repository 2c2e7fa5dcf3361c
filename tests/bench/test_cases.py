"""What the benchmark takes for right, and says was launched; the tiles that a sweep is told."""

import torch

import nvfp4
from nvfp4.backends.target import target_of
from nvfp4.backends.triton.gemm.config import HopperConfig, MmConfig, choose_config
from nvfp4.bench.run import configuration_of
from nvfp4.bench.sweep import tiles_from
from nvfp4.tuning.sweep import largest_column_error


def test_one_step_of_one_wrong_row_of_weights_is_found():
    torch.manual_seed(0)
    x, w = torch.randn(256, 3584), torch.randn(1000, 3584)
    want = (x @ w.T).bfloat16()
    assert largest_column_error(want, want) == 0
    w[7, :64] = torch.randn(64)
    got = (x @ w.T).bfloat16()
    assert (got.double() - want.double()).norm() < 2**-7 * want.double().norm()  # too few to matter
    assert largest_column_error(got, want) > 2**-4


def test_outputs_a_step_of_bfloat16_apart_are_right():
    want = torch.randn(1, 4096).bfloat16()
    got = (want.view(torch.int16) + 1).view(torch.bfloat16)
    assert 0 < largest_column_error(got, want) <= 2**-7


def test_a_row_of_nan_is_not_right():
    want = torch.randn(3, 8)
    assert not largest_column_error(want.clone().fill_(float("nan")), want) <= 2**-7


def test_tiles_that_a_sweep_is_told():
    told = "[[16, 2, 2, true, 2], [128, 4, 4], [16, 32, 256, 2, 3, 3], [8, 64, 256, 4, 3, 4, 64]]"
    assert tiles_from(told) == [
        HopperConfig(16, 2, 2, stream_k=True, per_sm=2),
        HopperConfig(128, 4, 4),
        MmConfig(16, 32, 256, 2, 3, splits=3),
        MmConfig(8, 64, 256, 4, 3, splits=4, maxnreg=64),
    ]


def test_the_tile_that_was_launched_is_told(device):
    a = nvfp4.quantize(torch.randn(3, 128, device=device), torch.ones(1, device=device))
    b = nvfp4.quantize_weight(torch.randn(64, 128, device=device))
    assert configuration_of(lambda: nvfp4.mm(a, b, backend="reference")) == ""
    tile = choose_config(3, 64, 128, target_of(torch.device(device)).sm)
    for _ in range(2):  # where calls are replayed, the second would be
        told = configuration_of(lambda: nvfp4.mm(a, b, backend="triton"))
        assert "mm(" in told and f"BM={tile.BM}, " in told
