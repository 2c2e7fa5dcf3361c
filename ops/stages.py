"""Stages that several ops share."""

import torch
from torch import Tensor

from nvfp4.calls import Quantize, Quantized, QuantizeDynamic
from nvfp4.calls.forms import matrix, vector
from nvfp4.calls.outputs import empty_packed
from nvfp4.dispatch import fill
from nvfp4.spec.format import SWIZZLED


def quantize_rows(
    x: Tensor, global_scale: Tensor | None, scale_rule: str, backend: str
) -> Quantized:
    """Quantize x [..., K] as a matrix [M, K].

    Returns data [M, K/2], swizzled scales, and row_scale: the static global scale [1], or [M], each
    row's own, where that is None.
    """
    x = matrix(x)
    m, k = x.shape
    packed = empty_packed(x, (m,), k, SWIZZLED)
    if global_scale is None:
        out = Quantized(*packed, x.new_empty((m,), dtype=torch.float32))
        fill(QuantizeDynamic(x, SWIZZLED, scale_rule, backend), out, stage=True)
        return out
    p = vector(global_scale)
    fill(Quantize(x, p, SWIZZLED, scale_rule, backend), packed, stage=True)
    return Quantized(*packed, p)
