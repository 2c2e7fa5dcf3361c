"""Random weights and activations of a model's sizes, seeded."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distribution:
    """Weights: Gaussian of variance 1/K, so that what they make of unit inputs has unit size; of
    their entries a fraction `outlier_entries` is `entry_factor` times larger. Activations: Gaussian
    of variance 1; of their channels a fraction `outlier_channels`, the same for all tokens, is
    `channel_factor` times larger.
    """

    name: str
    outlier_entries: float = 0.0
    entry_factor: float = 1.0
    outlier_channels: float = 0.0
    channel_factor: float = 1.0


GAUSSIAN = Distribution("gaussian")

OUTLIERS = Distribution("outliers", 1e-3, 8.0, 1e-3, 20.0)
"""One channel in 1,000 at 20 times the others is what Dettmers et al. found in large language
models' activations (LLM.int8(), arXiv:2208.07339: about 0.1 % of the features, up to 20 times
larger). Trained weights are near Gaussian, with a few entries far out.
"""

DISTRIBUTIONS = (GAUSSIAN, OUTLIERS)


class Source:
    """A seeded stream of tensors in bf16 on a device."""

    def __init__(self, distribution: Distribution, device: str, seed: int) -> None:
        self.distribution = distribution
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def weight(self, n: int, k: int) -> Tensor:
        """[N, K]."""
        w = torch.randn(n, k, generator=self.generator, device=self.device) * k**-0.5
        count = int(n * k * self.distribution.outlier_entries)
        at = torch.randint(n * k, (count,), generator=self.generator, device=self.device)
        w.view(-1)[at] *= self.distribution.entry_factor
        return w.bfloat16()

    def weights(self, experts: int, n: int, k: int) -> Tensor:
        """[E, N, K]."""
        return torch.stack([self.weight(n, k) for _ in range(experts)])

    def gains(self, k: int) -> Tensor:
        """How large each channel is, [K]; at least one is an outlier where there are any."""
        share = self.distribution.outlier_channels
        count = max(1, round(k * share)) if share else 0
        gains = torch.ones(k, device=self.device)
        order = torch.randperm(k, generator=self.generator, device=self.device)
        gains[order[:count]] = self.distribution.channel_factor
        return gains

    def activations(self, tokens: int, gains: Tensor) -> Tensor:
        """[M, K], K channels of these sizes."""
        shape = (tokens, gains.numel())
        return (torch.randn(shape, generator=self.generator, device=self.device) * gains).bfloat16()

    def routing(self, tokens: int, experts: int, top_k: int) -> tuple[Tensor, Tensor]:
        """topk_weights and topk_ids [M, top_k] of a router that knows nothing."""
        shape = (tokens, experts)
        scores = torch.randn(shape, generator=self.generator, device=self.device)
        scores, ids = torch.topk(scores, top_k)
        return scores.softmax(-1), ids
