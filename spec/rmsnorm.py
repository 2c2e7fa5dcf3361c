"""RMSNorm, y = h / sqrt(mean(h^2) + eps) * weight, with the same bits on every machine.

All arithmetic is float32, each operation rounded once, and none contracted to an FMA:

    h    = x, or x + residual rounded to their dtype
    mean = (sum of h * h) / K
    y    = (h * (1 / sqrt(mean + eps))) * weight

The sum goes by a balanced tree: neighbours are added first, then neighbouring pairs, and so on. The
row is extended by zeros to a power of two, which changes no sum. So a kernel may hold any power of
two that covers the row, and each step adds two numbers, in either order.
"""

import torch
from torch import Tensor

from nvfp4.spec.format import FLOAT32_MIN_NORMAL

SMALLEST_EPS = FLOAT32_MIN_NORMAL
"""With it a row of zeros gives zeros: 1 / sqrt(eps) stays finite."""


def add_residual(x: Tensor, residual: Tensor | None) -> Tensor:
    """Compute h = x + residual in float32, rounded to x's dtype; x itself without a residual."""
    return x if residual is None else (x.float() + residual.float()).to(x.dtype)


def sum_of_squares(h: Tensor) -> Tensor:
    """Sum h * h over the last dimension of h float32 [M, K] by the tree: float32 [M, 1]."""
    sums = h * h
    while sums.shape[-1] > 1:
        if sums.shape[-1] % 2:
            sums = torch.nn.functional.pad(sums, (0, 1))
        sums = sums[:, 0::2] + sums[:, 1::2]
    return sums


def rms_norm(h: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalize h [M, K], any float dtype, by weight [K]: float32 [M, K]."""
    h = h.float()
    total = sum_of_squares(h)
    # Divide by a tensor: on CUDA, torch divides by a number by multiplying with its inverse.
    mean = torch.div(total, torch.full_like(total, h.shape[-1]))
    # On some CPUs torch's float32 square root is off by a bit. A float64's error is too small to
    # move the float32 that it is rounded to.
    root = torch.sqrt((mean + eps).double()).float()
    return h.mul(torch.div(torch.ones_like(root), root)).mul_(weight.float())
