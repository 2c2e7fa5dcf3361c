from torch import Tensor

from nvfp4.backends.reference.mm import multiply
from nvfp4.spec.grouped import unswizzle_grouped_scales
from nvfp4.spec.quantize import decode
from nvfp4.spec.swizzle import unswizzle_scales


def grouped_mm(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    offsets: Tensor,
    out: Tensor,
    likely_rows: int | None = None,
) -> None:
    """Expert by expert, for which the host reads the offsets; nobody's rows are left alone."""
    (_, n, half_k), edges = b.shape, offsets.tolist()
    linear = unswizzle_grouped_scales(a_scales, offsets, edges[-1], 2 * half_k)
    for e, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
        rows = slice(begin, end)
        if begin < end:
            multiply(
                decode(a[rows], linear[rows]),
                b[e],
                unswizzle_scales(b_scales[e], n, 2 * half_k),
                alpha[e : e + 1] if row_scale is None else row_scale[rows, None] * alpha[e],
                None if bias is None else bias[e],
                out[rows],
            )
