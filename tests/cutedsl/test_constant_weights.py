"""Weights that the kernel before does not write: loaded before that kernel has ended (PDL)."""

from typing import Any

import pytest
import torch
from cases import activations, same_bits

import nvfp4
from nvfp4.backends.cutedsl import mm as launcher
from nvfp4.backends.cutedsl.gemm.config import Epilogue, Kernel, Tile
from nvfp4.backends.cutedsl.gemm.launch import Launch, plan
from nvfp4.backends.cutedsl.runtime import emulated
from nvfp4.backends.cutedsl.runtime.warmup import kernels_for
from nvfp4.backends.workload import Workload
from nvfp4.calls import Mm, StageMm
from nvfp4.emulator import Hazard, Kind, Options

OPS = torch.ops.nvfp4
runs = pytest.mark.usefixtures("emulated")

TILES = [
    Tile(128, 64),
    Tile(256, 256, 2),
    Tile(256, 64, 2, 2),
    Tile(128, 16, swapped=True),
    Tile(128, 16, split_k=4, swapped=True),
]


def call_of(kind: type[Mm], m: int, n: int, k: int) -> Mm:
    torch.manual_seed(m + n + k)
    a = nvfp4.quantize_dynamic(activations(m, k), backend="reference")
    b = nvfp4.quantize(activations(n, k), backend="reference")
    return kind(a.data, b.data, a.scales, b.scales, torch.tensor([[0.5]]))


def launch_of(kind: type[Mm], tile: Tile, m: int, n: int, k: int) -> Launch:
    call, out = call_of(kind, m, n, k).prepared(torch.empty(m, n, dtype=torch.bfloat16))
    return plan(call, out, tile, 2 * tile.cluster)


def problem(tile: Tile) -> tuple[int, int, int]:
    """Ragged, with more tiles than clusters; K fills the ring of a tile of 256 columns twice."""
    rows, columns = tile.cluster_tile
    if tile.swapped:
        return tile.columns - 1, 264, max(3, 1 + tile.split_k) * 256 + 32
    return rows + 8, columns + 8, 1568 if tile.columns == 256 else 544


@runs
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_the_bits_do_not_depend_on_when_weights_are_loaded(tile):
    want, got = (launch_of(kind, tile, *problem(tile)) for kind in (Mm, StageMm))
    assert got.kernel.constant_weights and not want.kernel.constant_weights
    emulated.run(want)
    emulated.run(got, Options(delay=300, constants=got.constants))
    same_bits(got.tensors["out"], want.tensors["out"])


@runs
def test_weights_that_the_kernel_before_writes_are_a_hazard():
    """The emulator takes every tensor for the work of the kernel before, unless it is told."""
    tile = Tile(128, 16, swapped=True)
    launch = launch_of(StageMm, tile, *problem(tile))
    for written in ("b", "b_scales"):
        with pytest.raises(Hazard) as raised:
            emulated.run(launch, Options(constants=launch.constants - {written}))
        assert raised.value.kind is Kind.GRID_DEPENDENCY and "cp.async" in raised.value.text
    emulated.run(launch_of(Mm, tile, *problem(tile)), Options())


@pytest.fixture
def launched(monkeypatch) -> list[Launch]:
    """The launches of mm, in order."""
    found: list[Launch] = []
    run = launcher.run_or_emulate

    def spied(launch: Launch) -> None:
        found.append(launch)
        run(launch)

    monkeypatch.setattr(launcher, "run_or_emulate", spied)
    return found


@runs
def test_stages_of_linear_and_swiglu_mlp_load_weights_early(launched):
    """mm alone does not: whoever calls it may have quantized b just before."""
    x, w = torch.randn(5, 256, dtype=torch.bfloat16), nvfp4.quantize(torch.randn(256, 256))
    weights: tuple[Any, ...] = w.data, w.scales, w.global_scale
    got = OPS.linear(x, *weights, backend="cutedsl")
    a = nvfp4.quantize_dynamic(x)
    operands = a.data, w.data, a.scales, w.scales, w.global_scale[None, None], a.global_scale
    same_bits(OPS.mm(*operands, backend="cutedsl"), got)
    down = nvfp4.quantize(torch.randn(64, 128))
    OPS.swiglu_mlp(x, *weights, down.data, down.scales, down.global_scale, backend="cutedsl")
    assert [launch.kernel.constant_weights for launch in launched] == [True, False, True, True]


def test_copied_weights_are_not_constant():
    """The copy is then the kernel before: of rows that TMA cannot load, of what is strided."""
    tile, out = Tile(128, 64), torch.empty(72, 72, dtype=torch.bfloat16)
    call = call_of(StageMm, 72, 72, 80)
    assert not plan(*call.prepared(out), tile, 2).kernel.constant_weights
    call = call_of(StageMm, 72, 72, 64)
    assert plan(*call.prepared(out), tile, 2).kernel.constant_weights
    for name in ("b", "b_scales"):
        whole = getattr(call, name)
        strided = call._replace(
            **{name: whole.view(torch.uint8).T.contiguous().T.view(whole.dtype)}
        )
        assert type(strided) is StageMm
        assert not plan(*strided.prepared(out), tile, 2).kernel.constant_weights
    shifted = torch.zeros(call.b_scales.numel() + 1, dtype=torch.uint8)[1:]
    shifted = shifted.view(call.b_scales.dtype).view(call.b_scales.shape)
    odd = call._replace(b_scales=shifted)
    assert not plan(*odd.prepared(out), tile, 2).kernel.constant_weights


def test_kernels_compiled_ahead_are_those_of_linear():
    for k, constant in ((512, 2), (528, 0)):
        kernels = kernels_for(Workload(264, k, 1))
        assert sum(kernel.constant_weights for kernel in kernels) == constant
        assert all(k.epilogue.row_scale for k in kernels if k.constant_weights)


def test_a_grouped_kernel_has_no_constant_weights():
    with pytest.raises(ValueError, match="constant_weights needs an ungrouped kernel"):
        Kernel(Tile(128, 128), Epilogue(), grouped=True, constant_weights=True)
