"""Between the spec's linear scales and the layout that a call asks for."""

from torch import Tensor

from nvfp4.spec.format import LINEAR
from nvfp4.spec.swizzle import swizzle_scales, unswizzle_scales


def from_linear(scales: Tensor, scale_layout: str) -> Tensor:
    return scales if scale_layout == LINEAR else swizzle_scales(scales)


def to_linear(scales: Tensor, scale_layout: str, rows: int, k: int) -> Tensor:
    return scales.view(rows, -1) if scale_layout == LINEAR else unswizzle_scales(scales, rows, k)
