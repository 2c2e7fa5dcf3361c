from torch import Tensor

from nvfp4.backends.reference.layout import store_scales
from nvfp4.calls import GluQuantize, Packed, Quantized, takes
from nvfp4.spec import quantize as spec
from nvfp4.spec.glu import glu
from nvfp4.spec.grouped import expert_of_rows, swizzle_grouped_scales


@takes(GluQuantize.prepared)
def glu_quantize(call: GluQuantize, out: Packed | Quantized) -> None:
    gate_up, p, offsets = call.gate_up, call.global_scale, call.offsets
    rows = gate_up.shape[0] if offsets is None else int(offsets[-1])
    data = out.data[:rows]

    def product(chunk: slice) -> Tensor:
        gate, up = gate_up[:rows][chunk].float().chunk(2, dim=-1)
        return glu(gate, up, call.swiglu_limit, call.activation)

    if p is None:
        p = spec.row_global_scales_of(product, data, gate_up.shape[1] // 2)
    elif offsets is not None and p.numel() > 1:
        p = p[expert_of_rows(offsets, rows)]
    if isinstance(out, Quantized):
        out.row_scale[:rows] = p
    linear = spec.quantize_rows(product, p, data)
    if offsets is None:
        store_scales(linear, call.scale_layout, out.scales)
    else:
        out.scales.copy_(swizzle_grouped_scales(linear, offsets, len(out.data)))
