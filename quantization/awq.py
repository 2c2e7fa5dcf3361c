"""AWQ: factors for the channels of a layer's input, chosen so that rounding hurts its output least.

A layer computes x W^T = (x / f) (W f)^T for any factors f [K]. Channels with large inputs get large
factors: their weights then use more of their block's range, and their inputs stand out less among
the 16 of a block. Whoever makes x has to divide by f: the norm or the layer before (Lin et al.,
2023). The candidates are

    f = mean|x|^a                          for a = 0, 0.1, ... 1
    f = mean|x|^a / mean|w|^(1 - a)        likewise, with w relative to its block's largest

scaled to a geometric mean of 1. a = 0 in the first row changes nothing.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nvfp4.spec.format import BLOCK

EXPONENTS = tuple(step / 10 for step in range(11))

LEAST = 1e-4
"""The smallest ratio of a channel's mean to the largest channel's that counts."""


def search_factors(
    x: Tensor,
    w: Tensor,
    outputs: Callable[[Tensor, Tensor], Tensor],
    tie: Callable[[Tensor], Tensor] = lambda f: f,
) -> Tensor:
    """Find the factors [K] of inputs x [T, K] and weights w [N, K], all float32.

    outputs: from x / f and w * f to the quantized layer's output [T, N], in float32.
    tie: from factors to the nearest ones that can be applied, such as equal ones for channels that
        are one channel of the layer before.
    """
    want = x @ w.T
    best, least = torch.ones_like(x[0]), torch.inf
    for f in _candidates(x, w):
        f = tie(f)
        error = (outputs(x / f, w * f) - want).square().sum().item()
        if error < least:
            best, least = f, error
    return best


def _candidates(x: Tensor, w: Tensor) -> Iterator[Tensor]:
    inputs = _positive(x.abs().mean(dim=0))
    blocks = w.abs().view(len(w), -1, BLOCK)
    weights = _positive((blocks / blocks.amax(dim=-1, keepdim=True).clamp(min=1e-30)).mean(0))
    for a in EXPONENTS:
        yield _centred(inputs**a)
        if a < 1:
            yield _centred(inputs**a / weights.view(-1) ** (1 - a))


def _positive(mean: Tensor) -> Tensor:
    """Keep channels that are never used, or hardly, from getting extreme factors."""
    return mean.clamp(min=max(LEAST * mean.max().item(), 1e-30))


def _centred(f: Tensor) -> Tensor:
    return f / f.log().mean().exp()
