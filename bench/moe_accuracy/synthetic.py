"""Seeded random weights and activations at a model's sizes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distribution:
    """A distribution of weights and activations.

    Weights are Gaussian with variance 1/K, so that unit inputs give unit outputs. A fraction
    `outlier_entries` of their entries is `entry_factor` times larger. Activations are Gaussian with
    variance 1. A fraction `outlier_channels` of their channels, the same ones for all tokens, is
    `channel_factor` times larger.
    """

    name: str
    outlier_entries: float = 0.0
    entry_factor: float = 1.0
    outlier_channels: float = 0.0
    channel_factor: float = 1.0


GAUSSIAN = Distribution("gaussian")

OUTLIERS = Distribution("outliers", 1e-3, 8.0, 1e-3, 20.0)
"""Outliers as in large language models.

Dettmers et al. (LLM.int8(), arXiv:2208.07339) found about 0.1 % of the features of activations to
be up to 20 times larger. Trained weights are near Gaussian, with a few entries far out.
"""

DISTRIBUTIONS = (GAUSSIAN, OUTLIERS)


class Source:
    """A seeded stream of tensors in bf16 on a device."""

    def __init__(self, distribution: Distribution, device: str, seed: int) -> None:
        self.distribution = distribution
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def weight(self, n: int, k: int) -> Tensor:
        """Make a weight [N, K]."""
        w = torch.randn(n, k, generator=self.generator, device=self.device) * k**-0.5
        count = int(n * k * self.distribution.outlier_entries)
        at = torch.randint(n * k, (count,), generator=self.generator, device=self.device)
        w.view(-1)[at] *= self.distribution.entry_factor
        return w.bfloat16()

    def weights(self, experts: int, n: int, k: int) -> Tensor:
        """Make the weights [E, N, K] of experts."""
        return torch.stack([self.weight(n, k) for _ in range(experts)])

    def gains(self, k: int) -> Tensor:
        """Draw the size of each channel, [K]; if there are outliers, at least one channel is."""
        share = self.distribution.outlier_channels
        count = max(1, round(k * share)) if share else 0
        gains = torch.ones(k, device=self.device)
        order = torch.randperm(k, generator=self.generator, device=self.device)
        gains[order[:count]] = self.distribution.channel_factor
        return gains

    def activations(self, tokens: int, gains: Tensor) -> Tensor:
        """Make activations [M, K] whose K channels have these sizes."""
        shape = (tokens, gains.numel())
        return (torch.randn(shape, generator=self.generator, device=self.device) * gains).bfloat16()

    def routing(self, tokens: int, experts: int, top_k: int) -> tuple[Tensor, Tensor]:
        """Make random topk_weights and topk_ids [M, top_k]."""
        shape = (tokens, experts)
        scores = torch.randn(shape, generator=self.generator, device=self.device)
        scores, ids = torch.topk(scores, top_k)
        return scores.softmax(-1), ids
