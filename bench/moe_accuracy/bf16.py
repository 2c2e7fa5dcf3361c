"""Layers in bf16, as a model without NVFP4 runs them, for comparison."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Expert = Callable[[int], tuple[Tensor, Tensor]]
"""A function from an expert's index to its w13 [2I, H] and w2 [H, I]."""


def hidden(x: Tensor, w13: Tensor) -> Tensor:
    """Compute silu(gate) * up, [M, I], of x [M, H]."""
    gate, up = F.linear(x, w13).chunk(2, dim=-1)
    return F.silu(gate) * up


def as_they_are(x: Tensor) -> Tensor:
    return x


def mlp(
    x: Tensor, w13: Tensor, w2: Tensor, rounded: Callable[[Tensor], Tensor] = as_they_are
) -> Tensor:
    """Run an MLP; `rounded` is applied to the input of each of its two layers."""
    return F.linear(rounded(hidden(rounded(x), w13)), w2)


def moe(
    x: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    expert: Expert,
    experts: int,
    rounded: Callable[[Tensor], Tensor] = as_they_are,
) -> Tensor:
    """Run a mixture of the local experts 0 .. experts - 1, with sums in float32."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for e in range(experts):
        token, choice = torch.nonzero(topk_ids == e, as_tuple=True)
        y = mlp(x[token], *expert(e), rounded)
        out.index_add_(0, token, topk_weights[token, choice, None] * y.float())
    return out.to(x.dtype)
