"""A mixture of experts beside torch's bf16 grouped matmul and humming's grouped W4A16 GEMM.

Routing and combination are included. For the peers, torch does both.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import nvfp4
from nvfp4.bench import humming
from nvfp4.bench.cases import Case, poison
from nvfp4.tuning.timing import Call

OPS = torch.ops.nvfp4

Product = Callable[[Tensor, Tensor], Tensor]
"""A grouped product; it takes rows sorted by expert, and each expert's end, int32 [E]."""


CHECK_ALL_ROUTINGS = 16
"""The most tokens with which all copies are checked; with more, only the first is."""


class Sizes(NamedTuple):
    """A mixture's sizes; `experts` are held here, of `of` from which a router chooses top_k."""

    hidden: int
    intermediate: int
    experts: int
    of: int
    top_k: int

    def __str__(self) -> str:
        here = f"{self.experts} of {self.of}" if self.of != self.experts else f"{self.of}"
        return f"{self.hidden}/{self.intermediate}, {here} experts, top {self.top_k}"


def moe(tokens: int, sizes: Sizes, device: str) -> Case:
    """Make the case of nvfp4::moe (W4A4) on bf16 tokens with random routing.

    The weights of all experts are far larger than a GPU's cache, so there is one copy of them. Each
    copy of the ids makes a call read other experts.
    """
    hidden, intermediate, experts, of, top_k = sizes
    copies = 4 if device == "cuda" else 2
    w13, w2, peers = _weights(sizes, device)
    x = torch.randn(tokens, hidden, device=device, dtype=torch.bfloat16)
    weights = torch.rand(tokens, top_k, device=device)
    routings = [
        torch.rand(tokens, of, device=device).argsort(1)[:, :top_k].int() for _ in range(copies)
    ]

    def run(index: int, backend: str = "") -> Tensor:
        ids = routings[index]
        return nvfp4.moe(x, weights, ids, w13, w2, backend=backend, global_num_experts=of)

    def check() -> None:
        for index in range(copies if tokens <= CHECK_ALL_ROUTINGS else 1):
            poison(device, tokens * hidden * 2)
            got, want = run(index).double(), run(index, "reference").double()
            # Both round gate and up to bf16. A difference in the last bit may move a 4-bit code.
            # Both are 0 if no choice is of an expert that is here.
            error, allowed = float((got - want).norm()), 2**-6 * float(want.norm())
            if not error <= allowed:
                raise AssertionError(
                    f"moe {tokens}, {sizes}: error {error:.1e} against the reference, at most "
                    f"{allowed:.1e} is right"
                )

    variants: dict[str, Sequence[Call]] = {
        "nvfp4": [partial(run, index) for index in range(copies)]
    }
    for peer, products in peers.items():
        variants[peer] = [
            partial(_by_torch, x, weights, ids, experts, *products) for ids in routings
        ]
    local = sum(int((ids < experts).sum()) for ids in routings) / copies
    active = sum(len(ids[ids < experts].unique()) for ids in routings) / copies
    weight_bytes = active * 3 * hidden * intermediate * (1 / 2 + 1 / 16)
    flops = int(local * 6 * hidden * intermediate)
    moved = int(weight_bytes + 2 * x.nbytes)
    return Case("moe", f"{tokens}: {sizes}", moved, flops, variants, check)


Peers = dict[str, tuple[Product, Product]]


@functools.lru_cache(maxsize=1)
def _weights(sizes: Sizes, device: str) -> tuple[nvfp4.ExpertWeights, nvfp4.ExpertWeights, Peers]:
    """Make w13, w2, and the products of each peer with both."""
    gate_up = _floats(sizes.experts, 2 * sizes.intermediate, sizes.hidden, device)
    down = _floats(sizes.experts, sizes.hidden, sizes.intermediate, device)
    peers: Peers = {"bf16 grouped": (partial(_grouped, gate_up), partial(_grouped, down))}
    if humming.available(device):
        share = sizes.experts / sizes.of
        peers["humming"] = humming.grouped(gate_up, share), humming.grouped(down, share)
    return nvfp4.quantize_experts(gate_up, segments=2), nvfp4.quantize_experts(down), peers


def _floats(experts: int, n: int, k: int, device: str) -> Tensor:
    return torch.randn(experts, n, k, device=device, dtype=torch.bfloat16).mul_(k**-0.5)


def _by_torch(
    x: Tensor, weights: Tensor, ids: Tensor, experts: int, gate_up: Product, down: Product
) -> Tensor:
    """Run a mixture with torch: sort rows by expert, two grouped products, a weighted sum."""
    top_k = ids.shape[1]
    expert = torch.where(ids < experts, ids, experts).flatten()
    by_expert, order = torch.sort(expert, stable=True)
    edges = torch.arange(1, experts + 1, device=x.device)
    ends = torch.searchsorted(by_expert, edges).int()
    gate, up = gate_up(x[order // top_k], ends).chunk(2, 1)
    y = down(F.silu(gate) * up, ends)
    scale = weights.flatten()[order] * (by_expert < experts)
    # Unassigned rows may hold anything, NaN included.
    y = torch.where(scale[:, None] > 0, y * scale[:, None], 0)
    return torch.zeros_like(x).index_add_(0, order // top_k, y.to(x.dtype))


def _grouped(weights: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    if rows.is_cuda:
        return torch._grouped_mm(rows, weights.mT, offs=ends)
    out, begin = rows.new_zeros(len(rows), weights.shape[1]), 0
    for w, end in zip(weights, ends.tolist(), strict=True):
        out[begin:end] = rows[begin:end] @ w.T
        begin = end
    return out
