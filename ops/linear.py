"""nvfp4::linear: activations in floats, weights in NVFP4; quantizes the activations and multiplies.

Two stages, each run by whoever runs it best on this machine: nvfp4::quantize_dynamic (or
nvfp4::quantize, with a static scale) and nvfp4::mm. A backend asked for runs those that it has. The
alphas x_p[m] * w_p[n] are made in the GEMM's epilogue.
"""

import torch
from torch import Tensor

from nvfp4.dispatch import launcher
from nvfp4.ops.checks import Checker, matrix, valid_values
from nvfp4.ops.library import define
from nvfp4.ops.quantize import empty_quantized
from nvfp4.spec.format import SWIZZLED
from nvfp4.spec.packing import as_bytes

SIGNATURE = """(Tensor x, Tensor weight, Tensor weight_scales, Tensor weight_global_scale,
    Tensor? input_global_scale=None, Tensor? bias=None, str backend="") -> Tensor"""

STAGES = ("quantize_dynamic", "mm")
"""What a call without a static input scale goes through."""


def _outputs(
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    weight_global_scale: Tensor,
    input_global_scale: Tensor | None = None,
    bias: Tensor | None = None,
    backend: str = "",
) -> Tensor:
    check = Checker("linear", x)
    m, k = check.floats("x", x)
    n, weight_k = check.packed("weight", weight, dim=2)
    if k != weight_k:
        check.fail("weight", f"x's K = {k}, that is {k // 2} bytes a row", f"K = {weight_k}")
    check.scales("weight_scales", weight_scales, (n, k), SWIZZLED)
    check.tensor("weight_global_scale", weight_global_scale, (torch.float32,))
    if weight_global_scale.dim() > 1:
        need = "shape [], [1] or [S] (S segments of N)"
        check.fail("weight_global_scale", need, f"shape {list(weight_global_scale.shape)}")
    if weight_global_scale.dim() == 1:
        check.segments("weight_global_scale", weight_global_scale.shape[0], n)
    if input_global_scale is not None:
        check.global_scale("input_global_scale", input_global_scale, m)
    check.bias(bias, n)
    return x.new_empty((*x.shape[:-1], n))


def _run(
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    weight_global_scale: Tensor,
    input_global_scale: Tensor | None = None,
    bias: Tensor | None = None,
    backend: str = "",
) -> Tensor:
    out = _outputs(x, weight, weight_scales, weight_global_scale, input_global_scale, bias)
    valid_values("linear", "weight_global_scale", weight_global_scale)
    multiply = launcher("mm", x.device, backend, stage=True)
    if not out.numel():
        return out
    rows = matrix(x)
    m, k = rows.shape
    data, scales = empty_quantized(x, (m,), k, SWIZZLED)
    if input_global_scale is None:
        p = x.new_empty((m,), dtype=torch.float32)
        launcher("quantize_dynamic", x.device, backend, stage=True)(rows, SWIZZLED, data, scales, p)
    else:
        valid_values("linear", "input_global_scale", input_global_scale)
        p = input_global_scale.reshape(-1)
        launcher("quantize", x.device, backend, stage=True)(rows, p, SWIZZLED, data, scales)
    multiply(
        data,
        matrix(as_bytes(weight)),
        scales,
        weight_scales.contiguous(),
        weight_global_scale.reshape(1, -1),
        p,
        bias if bias is None else bias.contiguous(),
        matrix(out),
    )
    return out


define("linear", SIGNATURE, _outputs, _run)


def linear(
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    weight_global_scale: Tensor,
    input_global_scale: Tensor | None = None,
    bias: Tensor | None = None,
    backend: str = "",
) -> Tensor:
    """x W^T + bias with x quantized on the way: [..., N] in x's dtype.

    Args:
        x: [..., K] bfloat16, float16 or float32, K a multiple of 16.
        weight: uint8 [N, K/2]; weight_scales: float8_e4m3fn, swizzled [Np, Kp].
        weight_global_scale: float32 [], [1], or [S] for S equal segments of N (fused parts).
        input_global_scale: None quantizes each row with its own p = amax_row / 2688, so that a
            token's output does not depend on its neighbours; float32 [] or [1] is a static scale.
        bias: [N] or None, added in float32.
    """
    return torch.ops.nvfp4.linear(
        x, weight, weight_scales, weight_global_scale, input_global_scale, bias, backend
    )
