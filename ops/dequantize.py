"""Packed data and scales back to floats (nvfp4::dequantize)."""

import torch
from torch import Tensor

from nvfp4.calls import Dequantize
from nvfp4.ops.library import define
from nvfp4.tensors import QuantizedTensor


def dequantize(
    q: QuantizedTensor, out_dtype: torch.dtype = torch.bfloat16, backend: str = ""
) -> Tensor:
    """Compute the values of q, [..., K] in out_dtype.

    e2m1 * scale * global_scale is rounded to float32 and then to out_dtype.
    """
    return torch.ops.nvfp4.dequantize(
        q.data, q.scales, q.row_scales(), out_dtype, q.scale_layout, backend
    )


define(Dequantize)
