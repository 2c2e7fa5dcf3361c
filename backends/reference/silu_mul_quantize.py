from torch import Tensor

from nvfp4.backends.reference.layout import store_scales
from nvfp4.spec import quantize as spec
from nvfp4.spec.swiglu import silu_mul


def silu_mul_quantize(
    gate_up: Tensor,
    global_scale: Tensor,
    limit: float | None,
    scale_layout: str,
    data: Tensor,
    scales: Tensor,
) -> None:
    def product(rows: slice) -> Tensor:
        gate, up = gate_up[rows].float().chunk(2, dim=-1)
        return silu_mul(gate, up, limit)

    store_scales(spec.quantize_rows(product, global_scale, data), scale_layout, scales)
