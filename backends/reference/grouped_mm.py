from torch import Tensor

from nvfp4.backends.reference.mm import multiply
from nvfp4.calls import GroupedMm, takes
from nvfp4.spec.grouped import unswizzle_grouped_scales
from nvfp4.spec.quantize import decode
from nvfp4.spec.swizzle import unswizzle_scales


@takes(GroupedMm.prepared)
def grouped_mm(call: GroupedMm, out: Tensor) -> None:
    """Multiply expert by expert; the host waits for the offsets."""
    (_, n, half_k), edges = call.b.shape, call.offsets.tolist()
    linear = unswizzle_grouped_scales(call.a_scales, call.offsets, edges[-1], 2 * half_k)
    for e, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
        rows = slice(begin, end)
        alpha = call.alpha[e : e + 1]
        if begin < end:
            multiply(
                decode(call.a[rows], linear[rows]),
                call.b[e],
                unswizzle_scales(call.b_scales[e], n, 2 * half_k),
                alpha if call.row_scale is None else call.row_scale[rows, None] * alpha,
                None if call.bias is None else call.bias[e],
                out[rows],
            )
