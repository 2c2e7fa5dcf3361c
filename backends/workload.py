"""Calls that kernels are compiled for before the first one."""

from typing import NamedTuple

import torch

from nvfp4.spec.format import W4A4, W4A16
from nvfp4.spec.scale_rules import AMAX_OVER_SIX

TOKEN_STEP = 128
"""Up to so many tokens, each number may have a kernel of its own; beyond, each step of so many."""


def warmed_up(m: int) -> int:
    """The number of tokens, m or a little more, whose kernels a call with m tokens runs."""
    return m if m <= TOKEN_STEP else -(-m // TOKEN_STEP) * TOKEN_STEP


class Workload(NamedTuple):
    """GEMMs out [M, n] with K = k, for every M from 1 to max_m."""

    n: int
    k: int
    max_m: int
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)
    """The outputs' dtypes; with `glu`, what gate and up are rounded to."""
    bias: torch.dtype | None = None
    """The bias's dtype; None for calls without one."""
    experts: int = 0
    """0 for mm and linear. Else grouped_mm with so many experts, where M counts all their rows."""
    glu: bool = False
    """Whether the n columns go into grouped_mm_glu_quantize with a known global scale."""
    scale_rule: str = AMAX_OVER_SIX
    """How block scales are chosen: of the activations in `linear`, and with `glu` of its result."""
    activation: str = ""
    """With `glu`, the activation that follows; "" is each of them."""
    activation_format: str = W4A4
    """What a linear layer multiplies its weight by: 4 bits, or 16."""
    segments: int = 1
    """Global scales of a linear layer's weight: one for each of its fused parts."""
    calibrated: bool = False
    """Whether a linear layer's input has a static global scale."""

    @property
    def op(self) -> str:
        """The op or stage whose backend runs these GEMMs."""
        if self.experts:
            return "grouped_mm"
        return "weight_only_linear" if self.activation_format == W4A16 else "mm"

    def token_counts(self) -> list[int]:
        """Every M that another kernel may run."""
        few = range(1, min(self.max_m, TOKEN_STEP) + 1)
        many = range(TOKEN_STEP + 1, self.max_m + 1, TOKEN_STEP)
        return [*few, *many, *{self.max_m} - set(many)]
