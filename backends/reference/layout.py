"""Between the spec's linear scales and the layout that a call asks for."""

from torch import Tensor

from nvfp4.spec.format import LINEAR
from nvfp4.spec.swizzle import swizzle_scales, unswizzle_scales


def store_scales(linear: Tensor, scale_layout: str, scales: Tensor) -> None:
    """Write linear scales [M, K/16] to a buffer of the layout named, padding included."""
    scales.copy_(linear if scale_layout == LINEAR else swizzle_scales(linear))


def load_scales(scales: Tensor, scale_layout: str, rows: int, k: int) -> Tensor:
    """The linear scales [rows, k/16] in a buffer of the layout named."""
    return scales if scale_layout == LINEAR else unswizzle_scales(scales, rows, k)
