from torch import Tensor

from nvfp4.backends.reference.layout import store_scales
from nvfp4.calls import Normalized, RmsnormQuantize, takes
from nvfp4.spec import quantize as spec
from nvfp4.spec.rmsnorm import add_residual, rms_norm


@takes(RmsnormQuantize.prepared)
def rmsnorm_quantize(call: RmsnormQuantize, out: Normalized) -> None:
    h = add_residual(call.x, call.residual)
    if call.residual is not None:
        out.residual.copy_(h)

    def normalized(chunk: slice) -> Tensor:
        return rms_norm(h[chunk], call.weight, call.eps)

    p = call.global_scale
    if p is None:
        p = spec.row_global_scales_of(normalized, h, h.shape[1], call.scale_rule)
    out.row_scale.copy_(p)
    linear = spec.quantize_rows(normalized, p, out.data, call.scale_rule)
    store_scales(linear, call.scale_layout, out.scales)
