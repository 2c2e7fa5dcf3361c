"""The GEMM of two quantized matrices (nvfp4::mm)."""

import torch
from torch import Tensor

from nvfp4.calls import Mm
from nvfp4.ops.library import define
from nvfp4.tensors import QuantizedTensor


def mm(
    a: QuantizedTensor,
    b: QuantizedTensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    backend: str = "",
) -> Tensor:
    """Multiply two quantized matrices [M, K] and [N, K], A B^T: [M, N] in out_dtype.

    The sum is float32. Then acc * alpha + bias [N] is one fused multiply-add in float32, where
    alpha is the product of the global scales, and one rounding gives out_dtype. Linear scales are
    swizzled first, which costs a copy of them at each call.
    """
    a, b = a.swizzled(), b.swizzled()
    alpha = a.global_scale.reshape(-1, 1) * b.global_scale.reshape(1, -1)
    operands = a.data, b.data, a.scales, b.scales, alpha
    return torch.ops.nvfp4.mm(*operands, None, bias, out_dtype, backend)


define(Mm)
