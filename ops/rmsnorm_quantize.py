"""Residual add, RMSNorm and quantization in one pass (nvfp4::rmsnorm_quantize)."""

import torch
from torch import Tensor

from nvfp4.calls import RmsnormQuantize
from nvfp4.ops.library import define
from nvfp4.spec.format import SWIZZLED
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.tensors import QuantizedTensor


def rmsnorm_quantize(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    global_scale: Tensor | None = None,
    scale_layout: str = SWIZZLED,
    scale_rule: str = AMAX_OVER_SIX,
    backend: str = "",
) -> tuple[QuantizedTensor, Tensor]:
    """Quantize RMSNorm(x + residual) * weight; return it and the new residual, x + residual.

    Args:
        x: [..., K] bfloat16, float16 or float32, K a multiple of 16.
        weight: [K] of any of these dtypes. Gemma's layers multiply by 1 + weight: pass that sum.
        eps: added to the mean of the squares; at least 2^-126.
        residual: of x's shape and dtype. The sum is rounded to that dtype, then normalized. None:
            x is normalized, and is itself the new residual.
        global_scale: of the normalized rows; float32 [], [1] or [M] (one per row). None: each row
            its own, amax_row / 2688 (amax_row / 1536 with four_over_six), found in the same pass.
        scale_rule: as nvfp4.quantize.

    The arithmetic is float32 throughout and the same to the bit on every backend
    (spec/rmsnorm.py). The result's global_scale is float32 [M]. No input is changed.
    """
    data, scales, p, total = torch.ops.nvfp4.rmsnorm_quantize(
        x, weight, eps, residual, global_scale, scale_layout, scale_rule, backend
    )
    return QuantizedTensor(data, scales, p, scale_layout), x if residual is None else total


define(RmsnormQuantize)
