from torch import Tensor

from nvfp4.backends.reference.layout import store_scales
from nvfp4.calls import GluQuantize, Packed, Quantized, takes
from nvfp4.spec import quantize as spec
from nvfp4.spec.glu import activate
from nvfp4.spec.grouped import expert_of_rows, swizzle_grouped_scales


@takes(GluQuantize.prepared)
def glu_quantize(call: GluQuantize, out: Packed | Quantized) -> None:
    gate_up, p, offsets = call.gate_up, call.global_scale, call.offsets
    rows = gate_up.shape[0] if offsets is None else int(offsets[-1])
    data = out.data[:rows]

    def product(chunk: slice) -> Tensor:
        return activate(gate_up[:rows][chunk].float(), call.swiglu_limit, call.activation)

    if p is None:
        p = spec.row_global_scales_of(product, data, 2 * data.shape[1], call.scale_rule)
    elif offsets is not None and p.numel() > 1:
        p = p[expert_of_rows(offsets, rows)]
    if isinstance(out, Quantized):
        out.row_scale[:rows] = p
    linear = spec.quantize_rows(product, p, data, call.scale_rule)
    if offsets is None:
        store_scales(linear, call.scale_layout, out.scales)
    else:
        out.scales.copy_(swizzle_grouped_scales(linear, offsets, len(out.data)))
