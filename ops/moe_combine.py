"""The experts' rows back to tokens, weighted (nvfp4::moe_combine).

Deterministic: a token's sum is over its own choices, in their order, in float32.
"""

import torch
from torch import Tensor

from nvfp4.calls import MoeCombine
from nvfp4.ops.library import define


def moe_combine(
    y: Tensor,
    topk_weights: Tensor,
    positions: Tensor,
    out_dtype: torch.dtype | None = None,
    backend: str = "",
) -> Tensor:
    """out[t] = sum over j of topk_weights[t, j] * y[positions[t, j]]: [M, N].

    Args:
        y: [R, N] bfloat16, float16 or float32, R = M * top_k expert-major rows.
        topk_weights: [M, top_k], any float dtype. A weight whose position is -1 is not read:
            a padded token's NaN does no harm.
        positions: int32 [M, top_k], of moe_dispatch. A choice whose position is not a row of y, 0
            to R - 1, adds nothing.
        out_dtype: default y's.

    Products and sums are float32, each rounded, in the order of j; one rounding to out_dtype.
    """
    return torch.ops.nvfp4.moe_combine(y, topk_weights, positions, out_dtype, backend)


define(MoeCombine)
