from torch import Tensor

from nvfp4.backends.reference.layout import from_linear
from nvfp4.spec import quantize as spec
from nvfp4.spec.swiglu import silu_mul


def silu_mul_quantize(
    gate_up: Tensor, global_scale: Tensor, limit: float | None, scale_layout: str
) -> tuple[Tensor, Tensor]:
    gate, up = gate_up.float().chunk(2, dim=-1)
    data, scales = spec.quantize(silu_mul(gate, up, limit), global_scale)
    return data, from_linear(scales, scale_layout)
