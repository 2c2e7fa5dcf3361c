"""Rounding float32 to E2M1 and E4M3 and back: nearest, ties to even, saturating.

No tables: a table is a tensor made on the host, which a CUDA graph capture forbids.
"""

import torch
from torch import Tensor

from nvfp4.spec.format import E4M3_MAX, SCALE_DTYPE


def to_e2m1(x: Tensor) -> Tensor:
    """float32 [...] -> uint8 codes 0..15 [...]; |x| > 5 (Inf too) gives 6, -0.0 keeps its sign.

    A code counts the midpoints below |x|; a midpoint itself goes to its even neighbour. NaN is
    above none of them: who needs another rule for it decides before or after.
    """
    a = x.abs()
    code = (a > 0.25).to(torch.uint8)
    code += a >= 0.75
    code += a > 1.25
    code += a >= 1.75
    code += a > 2.5
    code += a >= 3.5
    code += a > 5.0
    return code.bitwise_or_(torch.signbit(x).to(torch.uint8).bitwise_left_shift_(3))


def from_e2m1(codes: Tensor) -> Tensor:
    """uint8 codes 0..15 [...] -> float32 [...].

    E2M1 is a float16 with the middle bits cut out: with the sign at bit 15 and the other three at
    bits 11:9, the float16 reads as the value times 2^(1 - 15), the difference of the two biases.
    """
    bits = codes.to(torch.int16)
    bits = (bits & 0x7).bitwise_left_shift_(9) | (bits & 0x8).bitwise_left_shift_(12)
    return bits.view(torch.float16).float().mul_(2.0**14)


def to_e4m3(x: Tensor) -> Tensor:
    """float32 [...], not negative -> float8_e4m3fn [...], saturating at 448 (infinity too); NaN
    stays NaN.
    """
    return x.clamp(max=E4M3_MAX).to(SCALE_DTYPE)


def from_e4m3(scales: Tensor) -> Tensor:
    """float8_e4m3fn [...] -> float32 [...]; bytes 0x7F and 0xFF are NaN."""
    return scales.to(torch.float32)
