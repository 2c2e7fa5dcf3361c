"""Two 4-bit codes a byte, along K only: even k in the low nibble. N is never halved or doubled."""

import torch
from torch import Tensor

from nvfp4.spec.format import DATA_DTYPE


def pack(codes: Tensor) -> Tensor:
    """uint8 codes [..., K] -> uint8 data [..., K/2]."""
    return codes[..., 1::2].bitwise_left_shift(4).bitwise_or_(codes[..., 0::2])


def unpack(data: Tensor) -> Tensor:
    """uint8 data [..., K/2] -> uint8 codes [..., K]."""
    return torch.stack([data & 0xF, data >> 4], dim=-1).flatten(-2)


def as_bytes(data: Tensor) -> Tensor:
    """The uint8 view of packed data given as uint8 or as torch.float4_e2m1fn_x2."""
    return data if data.dtype == DATA_DTYPE else data.view(DATA_DTYPE)
