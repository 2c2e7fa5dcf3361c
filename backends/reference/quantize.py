from nvfp4.backends.reference.layout import store_scales
from nvfp4.calls import Packed, Quantize, takes
from nvfp4.spec import quantize as spec


@takes(Quantize.prepared)
def quantize(call: Quantize, out: Packed) -> None:
    linear = spec.quantize(call.x, call.global_scale, out.data, call.scale_rule)
    store_scales(linear, call.scale_layout, out.scales)
