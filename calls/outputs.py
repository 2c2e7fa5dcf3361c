"""What ops return that return several tensors."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from nvfp4.spec.format import DATA_DTYPE, SCALE_DTYPE
from nvfp4.spec.swizzle import scales_shape


class Packed(NamedTuple):
    """A quantized tensor whose global scale is known: data uint8 [..., K/2], even k in the low
    nibble, and block scales float8_e4m3fn in the layout asked for.
    """

    data: Tensor
    scales: Tensor


class Quantized(NamedTuple):
    """A quantized matrix, with the global scale of each of its M rows: row_scale float32 [M]."""

    data: Tensor
    scales: Tensor
    row_scale: Tensor


class Normalized(NamedTuple):
    """A quantized matrix with its rows' global scales, and what was normalized.

    row_scale is float32 [M]. residual has x's shape and dtype, or is empty, [0], if none was given.
    """

    data: Tensor
    scales: Tensor
    row_scale: Tensor
    residual: Tensor


class Dispatched(NamedTuple):
    """Tokens as the experts' rows, R = M * top_k of them.

    data uint8 [R, K/2], scales grouped (spec/grouped.py), row_scale float32 [R]; offsets int32
    [E + 1], where each expert's rows begin; positions int32 [M, top_k], each choice's row or -1.
    """

    data: Tensor
    scales: Tensor
    row_scale: Tensor
    offsets: Tensor
    positions: Tensor


def empty_packed(like: Tensor, lead: Sequence[int], k: int, scale_layout: str) -> Packed:
    """Unwritten outputs for a logical [*lead, k] tensor, on the device of `like`."""
    data = like.new_empty((*lead, k // 2), dtype=DATA_DTYPE)
    return Packed(data, like.new_empty(scales_shape((*lead, k), scale_layout), dtype=SCALE_DTYPE))
