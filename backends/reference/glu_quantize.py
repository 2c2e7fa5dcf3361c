from torch import Tensor

from nvfp4.backends.reference.layout import store_scales
from nvfp4.spec import quantize as spec
from nvfp4.spec.glu import glu
from nvfp4.spec.grouped import expert_of_rows, swizzle_grouped_scales


def glu_quantize(
    gate_up: Tensor,
    p: Tensor | None,
    offsets: Tensor | None,
    limit: float | None,
    activation: str,
    scale_layout: str,
    data: Tensor,
    scales: Tensor,
    row_scales: Tensor | None,
) -> None:
    """gate_up [M, 2I], p float32 [1], [M], or with offsets [E]; None: each row's own."""
    rows = gate_up.shape[0] if offsets is None else int(offsets[-1])

    def product(chunk: slice) -> Tensor:
        gate, up = gate_up[:rows][chunk].float().chunk(2, dim=-1)
        return glu(gate, up, limit, activation)

    if p is None:
        p = spec.row_global_scales_of(product, data[:rows], gate_up.shape[1] // 2)
    elif offsets is not None and p.numel() > 1:
        p = p[expert_of_rows(offsets, rows)]
    if row_scales is not None:
        row_scales[:rows] = p
    linear = spec.quantize_rows(product, p, data[:rows])
    if offsets is None:
        store_scales(linear, scale_layout, scales)
    else:
        scales.copy_(swizzle_grouped_scales(linear, offsets, len(data)))
