"""The E4M3 scale with the smallest squared error for each block, by an exact search.

RTN's scale comes first. Then smaller scales are tried, then larger ones, one E4M3 step at a time,
and only for those blocks for which the next scale can still win:

    A smaller scale sf saturates the block's largest magnitude, which alone costs (amax - 6 sf)^2.
    It cannot win once that is more than the best error.

    A scale with amax < 3.5 sf uses no E2M1 value above 3. Each of its values is then also one of
    sf / 2, so that half the scale does as well. Below 2^-5 half of an E4M3 scale need not be one;
    there the search ends where all elements round to zero.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nvfp4.spec.format import BLOCK, NAN_SCALE, SCALE_DTYPE
from nvfp4.spec.rounding import from_e4m3, round_to_e2m1
from nvfp4.spec.scale_rules import amax_over_six

HALVES_FROM = 0x10
"""The first E4M3 byte from which on half of every scale is a scale too: 2^-5."""

PHASES = 8
"""The number of global scales that are tried in one octave."""

SAMPLE = 4096
"""The number of blocks on which global scales are compared."""


def best_scales(blocks: Tensor, p: Tensor, weight: Tensor | None = None) -> Tensor:
    """The best E4M3 scales [m, K/16] of float32 blocks [m, K/16, 16], with p [m or 1, 1].

    weight: float32 [K/16, 16], the weight of each element's squared error; None weighs all alike.
    Equal errors go to the scale that is tried first. A block with NaN or Inf keeps RTN's scale.
    """
    first = amax_over_six(blocks, p)
    # In units of p a scale is its E4M3 value, and no square underflows.
    a = (blocks.abs() / p.unsqueeze(-1)).view(-1, BLOCK)
    if weight is not None:
        weight = weight.expand(blocks.shape).reshape(-1, BLOCK)
    byte = first.view(torch.uint8).view(-1).short()
    return _search(a, byte, weight)[0].to(torch.uint8).view(SCALE_DTYPE).view(first.shape)


def _search(a: Tensor, byte: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Search for magnitudes [B, 16] from the bytes [B] on; return the best bytes and errors."""
    amax, where = a.max(dim=-1)
    peak = 1.0 if weight is None else weight.gather(1, where.unsqueeze(1)).squeeze(1)
    best, error = byte.clone(), _error(a, byte, weight)
    for step in (-1, 1):
        at = torch.arange(len(a), device=a.device)
        tried = byte
        while True:
            tried = tried + step
            sf = _value(tried)
            if step < 0:
                top = peak if isinstance(peak, float) else peak[at]
                wins = (tried >= 0) & (top * (amax[at] - 6 * sf).square() < error[at])
            else:
                wins = (amax[at] >= 3.5 * sf) | ((tried < HALVES_FROM) & (sf <= 4 * amax[at]))
                wins &= (tried < NAN_SCALE) & amax[at].isfinite()
            at, tried = at[wins], tried[wins]
            if not len(at):
                break
            found = _error(a[at], tried, None if weight is None else weight[at])
            better = found < error[at]
            winners = at[better]
            best[winners], error[winners] = tried[better], found[better]
    return best, error


def _value(byte: Tensor) -> Tensor:
    return from_e4m3(byte.clamp(0, NAN_SCALE).to(torch.uint8).view(SCALE_DTYPE))


def _error(a: Tensor, byte: Tensor, weight: Tensor | None) -> Tensor:
    """The squared error [B], in units of p^2, of magnitudes [B, 16] with these scales."""
    sf = _value(byte).unsqueeze(-1)
    inverse = torch.where(sf == 0, torch.zeros_like(sf), sf.reciprocal())
    difference = round_to_e2m1(a * inverse).mul_(sf).sub_(a).square_()
    return (difference if weight is None else difference.mul_(weight)).sum(dim=-1)


def search_global_scale(weights: Sequence[Tensor], p: Tensor) -> Tensor:
    """Return the best of the global scales p, p * 2^(1/8), ... p * 2^(7/8) for weights [N, K].

    They are compared by the squared error of SAMPLE blocks of the weights, each with its best
    scales. A whole octave changes nothing but the exponents of block scales.
    """
    each = [w.reshape(-1, BLOCK) for w in weights]
    stride = max(1, sum(map(len, each)) // SAMPLE)
    blocks = torch.cat([blocks[::stride] for blocks in each]).float()
    tried = [p * 2 ** (phase / PHASES) for phase in range(PHASES)]
    errors = []
    for scale in tried:
        byte = amax_over_six(blocks.unsqueeze(0), scale.view(1, 1)).view(torch.uint8).view(-1)
        errors.append(_search(blocks.abs() / scale, byte.short(), None)[1].sum() * scale.square())
    return torch.stack(tried)[torch.stack(errors).argmin()]
