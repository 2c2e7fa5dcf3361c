"""The methods by name, behind one function."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nvfp4.quantization.gptq import gptq
from nvfp4.quantization.mse import best_scales
from nvfp4.spec.format import BLOCK, DATA_DTYPE, SCALE_DTYPE
from nvfp4.spec.quantize import encode, global_scale_of_amax, row_chunks
from nvfp4.spec.scale_rules import AMAX_OVER_SIX, amax_over_six, four_over_six
from nvfp4.spec.scale_rules import FOUR_OVER_SIX as FOUR_OVER_SIX_RULE

RTN, FOUR_OVER_SIX, MSE, GPTQ = "rtn", "four_over_six", "mse", "gptq"
METHODS = (RTN, FOUR_OVER_SIX, MSE, GPTQ)

SCALES_OF = {RTN: amax_over_six, FOUR_OVER_SIX: four_over_six, MSE: best_scales}
"""The methods that choose each block's scale by the block alone."""


class Packed(NamedTuple):
    """data uint8 [N, K/2] and linear scales float8_e4m3fn [N, K/16]."""

    data: Tensor
    scales: Tensor


def global_scale_of(weights: Sequence[Tensor], method: str) -> Tensor:
    """The global scale, float32 [], that weights share: amax / 2688 for rtn, else amax / 1536.

    The smaller divisor leaves room for block scales above the largest block's own, as these methods
    choose them.
    """
    rule = AMAX_OVER_SIX if method == RTN else FOUR_OVER_SIX_RULE
    amax = torch.stack([torch.stack(torch.aminmax(w)).abs().amax().float() for w in weights])
    return global_scale_of_amax(amax.amax(), rule)


def quantize_matrix(
    w: Tensor, p: Tensor, method: str, hessian: Tensor | None = None, act_order: bool = False
) -> Packed:
    """Quantize w [N, K] of any float dtype with the global scale p, float32 of 1 or N elements.

    hessian: float32 [K, K], the sum of x^T x over inputs x of the layer; gptq alone needs it.
    act_order: gptq starts with the blocks of K whose inputs are largest.
    """
    if method == GPTQ:
        if hessian is None:
            raise ValueError(f"quantize_matrix: method {GPTQ!r} needs a hessian, got None")
        return Packed(*gptq(w.float(), hessian, p.view(-1, 1), act_order=act_order))
    n, k = w.shape
    p, scales_of = p.view(-1, 1), SCALES_OF[method]
    data = torch.empty(n, k // 2, dtype=DATA_DTYPE, device=w.device)
    scales = torch.empty(n, k // BLOCK, dtype=SCALE_DTYPE, device=w.device)
    for rows in row_chunks(n, k):
        part, p_part = w[rows].float().contiguous(), p if p.shape[0] == 1 else p[rows]
        scales[rows] = scales_of(part.view(part.shape[0], -1, BLOCK), p_part)
        data[rows] = encode(part, scales[rows], p_part)
    return Packed(data, scales)
