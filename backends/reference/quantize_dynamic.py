from nvfp4.backends.reference.layout import store_scales
from nvfp4.calls import Quantized, QuantizeDynamic, takes
from nvfp4.spec import quantize as spec


@takes(QuantizeDynamic.prepared)
def quantize_dynamic(call: QuantizeDynamic, out: Quantized) -> None:
    out.row_scale.copy_(spec.row_global_scales(call.x, call.scale_rule))
    linear = spec.quantize(call.x, out.row_scale, out.data, call.scale_rule)
    store_scales(linear, call.scale_layout, out.scales)
