from torch import Tensor

from nvfp4.backends.reference.layout import store_scales
from nvfp4.spec import quantize as spec


def quantize(
    x: Tensor, global_scale: Tensor, scale_layout: str, data: Tensor, scales: Tensor
) -> None:
    store_scales(spec.quantize(x, global_scale, data), scale_layout, scales)
