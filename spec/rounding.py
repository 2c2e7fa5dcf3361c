"""Rounding of float32 to E2M1 and E4M3: to nearest, ties to even, saturating; and conversion back.

It uses no tables: a table is a tensor made on the host, which a CUDA graph capture forbids.
"""

import torch
from torch import Tensor

from nvfp4.spec.format import E2M1_MAX, E4M3_MAX, SCALE_DTYPE


def to_e2m1(x: Tensor) -> Tensor:
    """Round float32 [...] to uint8 codes 0..15 [...].

    |x| > 5 gives 6, also for Inf, and -0.0 keeps its sign. A code is the number of midpoints below
    |x|. A midpoint itself goes to its even neighbour. NaN gives 0, so callers treat it themselves.
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
    """Convert uint8 codes 0..15 [...] to float32 [...].

    The sign goes to bit 15 of a float16, and the other three bits to bits 11:9. That float16 is the
    value times 2^(1 - 15), because the exponent biases are 1 and 15.
    """
    bits = codes.to(torch.int16)
    bits = (bits & 0x7).bitwise_left_shift_(9) | (bits & 0x8).bitwise_left_shift_(12)
    return bits.view(torch.float16).float().mul_(2.0**14)


def round_to_e2m1(x: Tensor) -> Tensor:
    """Round float32 [...] to the nearest E2M1 values, float32 [...], as from_e2m1(to_e2m1(x)).

    It makes no codes, which is several times faster where only the values are needed. NaN stays
    NaN.
    """
    # Between 2^e and 2^(e + 1) the values are 2^(e - 1) apart, and below 1 as far as from 1 on.
    # torch.round takes ties to even multiples, which are the even codes.
    a = x.abs().clamp_(max=E2M1_MAX)
    twice = torch.where(a < 2, 1.0, torch.where(a < 4, 2.0, 4.0))
    steps = a.mul_(2).div_(twice).round_()
    return torch.copysign(steps.mul_(twice).mul_(0.5), x)


def to_e4m3(x: Tensor) -> Tensor:
    """Round float32 [...], not negative, to float8_e4m3fn [...].

    It saturates at 448, also for infinity. NaN stays NaN.
    """
    return x.clamp(max=E4M3_MAX).to(SCALE_DTYPE)


def from_e4m3(scales: Tensor) -> Tensor:
    """Convert float8_e4m3fn [...] to float32 [...]; the bytes 0x7F and 0xFF are NaN."""
    return scales.to(torch.float32)
