"""Experts shared out over processes: each computes its own, the sum is the single process's.

A rank's rows have the bits that they have in one process; what may differ is the sum over a token's
choices. In one process it is float32 in the order of choices, rounded once to x's dtype; over ranks
each partial sum is rounded, and their sum again. So the results are equal to the bit where a
token's choices live on one rank (the others add zeros), and where every sum is exact; elsewhere
they are within those roundings.
"""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import same_bits
from torch import Tensor

import nvfp4
from nvfp4.layers import MoE

EXPERTS, TOP_K, TOKENS, HIDDEN, INTERMEDIATE = 8, 4, 37, 64, 32
WORLD = 4
DTYPES = (torch.bfloat16, torch.float32)


def _layer(device: str) -> MoE:
    gen = torch.Generator().manual_seed(1)
    shapes = ((INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
    w = (torch.randn(EXPERTS, *shape, generator=gen).to(device) for shape in shapes)
    h = torch.linspace(0.1, 0.2, EXPERTS, device=device)
    return MoE.from_float(*w, h_global_scale=h, swiglu_limit=7.0)


def _exact_layer(device: str) -> MoE:
    """Everything that the second GEMM adds is a multiple of 2^-10 and small: float32 holds any sum
    of it. Its weights are multiples of 1/2 up to 6 with scales of 1; the gated product, small by
    its limit, is quantized with a global scale of 2 into scales that are multiples of 2^-9.
    """
    gen = torch.Generator().manual_seed(2)
    one = torch.ones(EXPERTS, device=device)
    whole = lambda *shape: torch.randint(-1, 2, shape, generator=gen).float().to(device)  # noqa: E731
    w13 = whole(EXPERTS, 2 * INTERMEDIATE, HIDDEN)
    w2 = whole(EXPERTS, HIDDEN, INTERMEDIATE)
    w13[..., ::16] = w2[..., ::16] = 6.0
    w13, w2 = (
        nvfp4.stack_experts([nvfp4.quantize_weight(w, global_scale=one[0]) for w in each])
        for each in (w13, w2)
    )
    return MoE(w13, w2, h_global_scale=2 * one, swiglu_limit=2.0)


def _tokens(device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, weights, ids: the choices of the first third of the tokens neighbours, so that they live
    on one rank for the smaller worlds; -1 here and there.
    """
    gen = torch.Generator().manual_seed(3)
    x = torch.randn(TOKENS, HIDDEN, generator=gen).to(device, dtype)
    weights, ids = torch.topk(torch.rand(TOKENS, EXPERTS, generator=gen).softmax(-1), TOP_K)
    near = TOKENS // 3
    ids[:near] = ids[:near, :1] // 4 * 4 + torch.arange(TOP_K)
    ids[5:8] = ids[5:8, :1] // 2 * 2 + torch.arange(TOP_K) % 2
    ids[::7, 2] = -1
    return x, weights.to(device), ids.to(device)


def _cases(device: str):
    """name, layer, inputs: what every process computes."""
    for dtype in DTYPES:
        yield str(dtype), _layer(device), _tokens(device, dtype)
    x, weights, ids = _tokens(device, torch.float32)
    yield "exact", _exact_layer(device), (x, torch.exp2(-torch.ceil(weights * 8)), ids)


def _rank(rank: int, world: int, folder: str, nccl: bool) -> None:
    torch.set_num_threads(1)
    device = f"cuda:{rank}" if nccl else "cpu"
    if nccl:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if nccl else "gloo",
        init_method=f"file://{folder}/{world}.meeting",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    results = {}
    for name, layer, inputs in _cases(device):
        out = layer.local(rank, world)(*inputs)
        dist.all_reduce(out)
        results[name] = out.cpu()
    dist.destroy_process_group()
    torch.save(results, f"{folder}/{world}.{rank}.pt")


def _over_ranks(world: int, folder: Path, nccl: bool) -> dict[str, Tensor]:
    mp.spawn(_rank, (world, str(folder), nccl), nprocs=world)
    results = [torch.load(folder / f"{world}.{rank}.pt") for rank in range(world)]
    for other in results[1:]:
        for name, out in results[0].items():
            same_bits(other[name], out)
    return results[0]


def _homes(ids: Tensor, world: int) -> Tensor:
    """How many ranks each token's choices live on."""
    rank = torch.where(ids >= 0, ids // (EXPERTS // world), -1)
    return sum((rank == r).any(1).int() for r in range(world))


def _bound(layer: MoE, x: Tensor, weights: Tensor, ids: Tensor, world: int) -> Tensor:
    """How far apart the two sums may be, [M, H]: two sums of the same top_k products in float32,
    in each of which a term meets top_k + 1 roundings; then, in x's dtype, one rounding of the
    single process's sum, one of each partial and world - 1 of their sum.
    """
    rows, positions = nvfp4.moe_dispatch(x, ids, EXPERTS)
    w13, w2 = layer.packed()
    h = nvfp4.grouped_mm_glu_quantize(
        rows, w13, None, layer.h_global_scale, layer.swiglu_limit, gate_up_dtype=x.dtype
    )
    y = nvfp4.grouped_mm(h, w2, out_dtype=x.dtype)
    size = nvfp4.moe_combine(y.abs(), weights, positions, torch.float32).double()
    unit32, unit = (torch.finfo(dtype).eps / 2 for dtype in (torch.float32, x.dtype))
    roundings = 2 * (TOP_K + 1) * unit32 + (1 + world) * unit
    return size * roundings * (1 + 8 * unit)  # the last factor: their products with each other


def _check(world: int, folder: Path, nccl: bool = False) -> None:
    device = "cuda" if nccl else "cpu"
    got = _over_ranks(world, folder, nccl)
    for name, layer, (x, weights, ids) in _cases(device):
        want, out = layer(x, weights, ids).cpu(), got[name]
        homes = _homes(ids, world).cpu()
        assert (homes == 1).sum() >= 3 and (homes > 1).sum() >= 3
        same_bits(out[homes <= 1], want[homes <= 1])
        apart = (out.double() - want.double()).abs()
        assert (apart <= _bound(layer, x, weights, ids, world).cpu()).all()
        if name == "exact":
            same_bits(out, want)
        else:
            assert apart.any()  # or the cases are too easy to say anything


@pytest.mark.slow
def test_processes_add_up_to_one(tmp_path):
    _check(WORLD, tmp_path)


def test_the_exact_case_is_exact():
    """Every product is a multiple of 2^-12 and all of them together are below 2^12, so that any
    part of a sum, in any order, is a float32.
    """
    (*_, (_, layer, (x, weights, ids))) = _cases("cpu")
    parts = [layer(x, weights[:, [j]], ids[:, [j]]).double() for j in range(TOP_K)]
    assert all(torch.equal(part * 2**12, (part * 2**12).round()) for part in parts)
    assert 1 < sum(part.abs() for part in parts).max() < 2**12
    same_bits(layer(x, weights, ids), sum(parts).float())


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 GPUs")
def test_gpus_add_up_to_one(tmp_path):
    _check(min(4, 1 << (torch.cuda.device_count().bit_length() - 1)), tmp_path, nccl=True)
