"""Packing of two 4-bit codes into a byte, along K only, with even k in the low nibble."""

import torch
from torch import Tensor

from nvfp4.spec.format import DATA_DTYPE


def pack(codes: Tensor) -> Tensor:
    """Pack uint8 codes [..., K] into uint8 data [..., K/2]."""
    return codes[..., 1::2].bitwise_left_shift(4).bitwise_or_(codes[..., 0::2])


def unpack(data: Tensor) -> Tensor:
    """Unpack uint8 data [..., K/2] into uint8 codes [..., K]."""
    return torch.stack([data & 0xF, data >> 4], dim=-1).flatten(-2)


def as_bytes(data: Tensor) -> Tensor:
    """View packed data, given as uint8 or as torch.float4_e2m1fn_x2, as uint8."""
    return data if data.dtype == DATA_DTYPE else data.view(DATA_DTYPE)
