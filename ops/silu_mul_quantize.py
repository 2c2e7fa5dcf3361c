"""nvfp4::silu_mul_quantize: SwiGLU's elementwise half and the quantization of its result, in one
pass.
"""

import torch
from torch import Tensor

from nvfp4.dispatch import launcher
from nvfp4.ops.checks import Checker, matrix
from nvfp4.ops.library import define
from nvfp4.ops.quantize import empty_quantized, restore_lead
from nvfp4.ops.tensor import QuantizedTensor
from nvfp4.spec.format import BLOCK, SWIZZLED

SIGNATURE = """(Tensor gate_up, Tensor global_scale, float? limit=None, str scale_layout="swizzled",
    str backend="") -> (Tensor data, Tensor scales)"""


def _check(
    gate_up: Tensor, p: Tensor, limit: float | None, scale_layout: str
) -> tuple[Checker, int, int]:
    check = Checker("silu_mul_quantize", gate_up)
    rows, k2 = check.floats("gate_up", gate_up, multiple=2 * BLOCK)
    check.layout(scale_layout)
    check.global_scale("global_scale", p, rows)
    if limit is not None and not 0 < limit < float("inf"):
        check.fail("limit", "a finite positive number or None", limit)
    return check, rows, k2 // 2


def _run(
    gate_up: Tensor,
    global_scale: Tensor,
    limit: float | None = None,
    scale_layout: str = SWIZZLED,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    check, rows, k = _check(gate_up, global_scale, limit, scale_layout)
    check.valid_values("global_scale", global_scale)
    launch = launcher("silu_mul_quantize", gate_up.device, backend)
    lead = tuple(gate_up.shape[:-1])
    if rows == 0:
        return empty_quantized(gate_up, lead, k, scale_layout)
    data, scales = launch(matrix(gate_up, rows), global_scale.reshape(-1), limit, scale_layout)
    return restore_lead(data, scales, lead, scale_layout)


def _fake(
    gate_up: Tensor,
    global_scale: Tensor,
    limit: float | None = None,
    scale_layout: str = SWIZZLED,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    _, _, k = _check(gate_up, global_scale, limit, scale_layout)
    return empty_quantized(gate_up, tuple(gate_up.shape[:-1]), k, scale_layout)


define("silu_mul_quantize", SIGNATURE, _run, _fake)


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

    The arithmetic is float32 throughout and the same to the bit on every backend (spec/swiglu.py).
    Returns data [..., I/2] and its scales.
    """
    data, scales = torch.ops.nvfp4.silu_mul_quantize(
        gate_up, global_scale, limit, scale_layout, backend
    )
    return QuantizedTensor(data, scales, global_scale, scale_layout)
