from torch import Tensor

from nvfp4.backends.reference.layout import from_linear
from nvfp4.spec import quantize as spec


def quantize_dynamic(x: Tensor, scale_layout: str) -> tuple[Tensor, Tensor, Tensor]:
    global_scale = spec.row_global_scales(x)
    data, scales = spec.quantize(x, global_scale)
    return data, from_linear(scales, scale_layout), global_scale
