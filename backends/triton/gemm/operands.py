"""What GEMMs multiply and scale, as their launches take it."""

from typing import NamedTuple

from torch import Tensor


class Operand(NamedTuple):
    """An operand [R, K] of mm or [E, N, K] of grouped_mm, packed or decoded."""

    data: Tensor
    """uint8 [..., K/2], uint16 [..., K/4] or decoded float16 [..., K]."""
    scales: Tensor
    """uint8, swizzled; those of experts one after the other."""


class Factors(NamedTuple):
    """What the epilogue applies to the sums."""

    alpha: Tensor
    """float32 [1 or M, S], or [E, S] for experts."""
    row_scale: Tensor | None
    """float32 [1] or [M]."""
    bias: Tensor | None
    """[N], or [E, N] for experts."""
