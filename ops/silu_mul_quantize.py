"""nvfp4::silu_mul_quantize: SwiGLU's elementwise half and the quantization of its result with a
known global scale, in one pass: nvfp4::glu_quantize's plainest form.
"""

import torch
from torch import Tensor

from nvfp4.dispatch import launcher
from nvfp4.ops.checks import Checker, matrix, valid_values, vector
from nvfp4.ops.library import define
from nvfp4.ops.quantize import empty_quantized
from nvfp4.ops.tensor import QuantizedTensor
from nvfp4.spec.format import BLOCK, SWIZZLED
from nvfp4.spec.glu import SILU

SIGNATURE = """(Tensor gate_up, Tensor global_scale, float? limit=None, str scale_layout="swizzled",
    str backend="") -> (Tensor data, Tensor scales)"""


def _outputs(
    gate_up: Tensor,
    global_scale: Tensor,
    limit: float | None = None,
    scale_layout: str = SWIZZLED,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    check = Checker("silu_mul_quantize", gate_up)
    rows, both = check.floats("gate_up", gate_up, multiple=2 * BLOCK)
    check.layout(scale_layout)
    check.global_scale("global_scale", global_scale, rows)
    check.glu(limit)
    return empty_quantized(gate_up, gate_up.shape[:-1], both // 2, scale_layout)


def _run(
    gate_up: Tensor,
    global_scale: Tensor,
    limit: float | None = None,
    scale_layout: str = SWIZZLED,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    data, scales = _outputs(gate_up, global_scale, limit, scale_layout)
    valid_values("silu_mul_quantize", "global_scale", global_scale)
    launch = launcher("glu_quantize", gate_up.device, backend)
    if data.numel():
        p = vector(global_scale)
        launch(
            matrix(gate_up), p, None, limit, SILU, scale_layout, matrix(data), matrix(scales), None
        )
    return data, scales


define("silu_mul_quantize", SIGNATURE, _outputs, _run)


def silu_mul_quantize(
    gate_up: Tensor,
    global_scale: Tensor,
    limit: float | None = None,
    scale_layout: str = SWIZZLED,
    backend: str = "",
) -> QuantizedTensor:
    """Quantize silu(gate) * up, with gate = gate_up[..., :I] and up = gate_up[..., I:].

    Args:
        gate_up: [..., 2I] bfloat16, float16 or float32, I a multiple of 16.
        global_scale: of the product; float32 [], [1] or [M] (one per row).
        limit: with a limit L, gate is min(gate, L) *before* SiLU and up is clamp(up, -L, L).

    The arithmetic is float32 throughout and the same to the bit on every backend (spec/glu.py).
    Returns data [..., I/2] and its scales.
    """
    data, scales = torch.ops.nvfp4.silu_mul_quantize(
        gate_up, global_scale, limit, scale_layout, backend
    )
    return QuantizedTensor(data, scales, global_scale, scale_layout)
