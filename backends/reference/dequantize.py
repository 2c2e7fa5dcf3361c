from torch import Tensor

from nvfp4.backends.reference.layout import load_scales
from nvfp4.calls import Dequantize, takes
from nvfp4.spec import quantize as spec


@takes(Dequantize.prepared)
def dequantize(call: Dequantize, out: Tensor) -> None:
    scales = load_scales(call.scales, call.scale_layout, *out.shape)
    spec.dequantize(call.data, scales, call.global_scale, out)
