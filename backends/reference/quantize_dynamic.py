from torch import Tensor

from nvfp4.backends.reference.layout import store_scales
from nvfp4.spec import quantize as spec


def quantize_dynamic(
    x: Tensor, scale_layout: str, data: Tensor, scales: Tensor, global_scale: Tensor
) -> None:
    global_scale.copy_(spec.row_global_scales(x))
    store_scales(spec.quantize(x, global_scale, data), scale_layout, scales)
