from torch import Tensor

from nvfp4.backends.reference.layout import load_scales
from nvfp4.spec import quantize as spec


def dequantize(
    data: Tensor, scales: Tensor, global_scale: Tensor, scale_layout: str, out: Tensor
) -> None:
    spec.dequantize(data, load_scales(scales, scale_layout, *out.shape), global_scale, out)
