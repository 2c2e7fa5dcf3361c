from torch import Tensor

from nvfp4.backends.reference.layout import from_linear
from nvfp4.spec import quantize as spec


def quantize(x: Tensor, global_scale: Tensor, scale_layout: str) -> tuple[Tensor, Tensor]:
    data, scales = spec.quantize(x, global_scale)
    return data, from_linear(scales, scale_layout)
