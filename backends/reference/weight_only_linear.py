"""A linear layer of activations in 16 bits, in float64."""

import torch
from torch import Tensor

from nvfp4.backends.reference.mm import multiply
from nvfp4.spec.swizzle import unswizzle_scales


def weight_only_linear(
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    """out [M, N] = (x W^T) * alpha[0, segment of n] + bias[n]; float32 x is rounded to bfloat16."""
    if x.dtype == torch.float32:
        x = x.bfloat16()
    n, k = weight.shape[0], x.shape[1]
    multiply(x, weight, unswizzle_scales(weight_scales, n, k), alpha, bias, out)
