"""SwiGLU's elementwise half and the quantization of its result with a known global scale, in one
pass (nvfp4::silu_mul_quantize): nvfp4::glu_quantize in its plainest form.
"""

import torch
from torch import Tensor

from nvfp4.calls import GluQuantize, Packed, SiluMulQuantize
from nvfp4.dispatch import fill
from nvfp4.ops.library import define
from nvfp4.spec.format import SWIZZLED
from nvfp4.tensors import QuantizedTensor


def silu_mul_quantize(
    gate_up: Tensor,
    global_scale: Tensor,
    swiglu_limit: float | None = None,
    scale_layout: str = SWIZZLED,
    backend: str = "",
) -> QuantizedTensor:
    """Quantize silu(gate) * up, with gate = gate_up[..., :I] and up = gate_up[..., I:].

    Args:
        gate_up: [..., 2I] bfloat16, float16 or float32, I a multiple of 16.
        global_scale: of the product; float32 [], [1] or [M] (one per row).
        swiglu_limit: with a limit L, gate is min(gate, L) *before* SiLU and up is clamp(up, -L, L).

    The arithmetic is float32 throughout and the same to the bit on every backend (spec/glu.py).
    Returns data [..., I/2] and its scales.
    """
    data, scales = torch.ops.nvfp4.silu_mul_quantize(
        gate_up, global_scale, swiglu_limit, scale_layout, backend
    )
    return QuantizedTensor(data, scales, global_scale, scale_layout)


def _run(call: SiluMulQuantize, out: Packed) -> None:
    glu = call.global_scale, None, call.swiglu_limit, call.scale_layout
    fill(GluQuantize(call.gate_up, *glu, backend=call.backend), out)


define(SiluMulQuantize, _run)
