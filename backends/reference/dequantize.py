import torch
from torch import Tensor

from nvfp4.backends.reference.layout import to_linear
from nvfp4.spec import quantize as spec


def dequantize(
    data: Tensor, scales: Tensor, global_scale: Tensor, out_dtype: torch.dtype, scale_layout: str
) -> Tensor:
    rows, k = data.shape[0], data.shape[1] * 2
    return spec.dequantize(data, to_linear(scales, scale_layout, rows, k), global_scale, out_dtype)
