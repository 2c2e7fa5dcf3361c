"""A linear layer: activations in floats, weights in NVFP4 (nvfp4::linear).

W4A4 has two stages, quantization of the activations and mm. A backend may do both in its own way,
such as without packing what is unpacked at once; the bits are the stages'.
"""

import torch
from torch import Tensor

from nvfp4.calls import Linear, Mm
from nvfp4.calls.forms import matrix, vector
from nvfp4.dispatch import fill, fuse
from nvfp4.ops.library import define
from nvfp4.ops.stages import quantize_rows
from nvfp4.spec.format import W4A4, W4A16
from nvfp4.spec.scale_rules import AMAX_OVER_SIX


def linear(
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    weight_global_scale: Tensor,
    x_global_scale: Tensor | None = None,
    bias: Tensor | None = None,
    scale_rule: str = AMAX_OVER_SIX,
    activation: str = W4A4,
    backend: str = "",
) -> Tensor:
    """Compute x W^T + bias, with x quantized on the way (W4A4): [..., N] in x's dtype.

    Args:
        x: [..., K] bfloat16, float16 or float32, K a multiple of 16.
        weight: uint8 [N, K/2]; weight_scales: float8_e4m3fn, swizzled [Np, Kp].
        weight_global_scale: float32 [], [1], or [S] for S equal segments of N (fused parts).
        x_global_scale: None quantizes each row with its own p (nvfp4.quantize_dynamic), so that a
            token's output does not depend on its neighbours; float32 [] or [1] is a static scale.
        bias: [N] or None, added in float32.
        scale_rule: of x's block scales, as nvfp4.quantize.
        activation: "nvfp4" (W4A4), or "bf16" (W4A16): x is not quantized but multiplied as it is
            (float32 rounded to bfloat16), by the same weights. The numbers differ from W4A4's and
            are nearer to the unquantized model's.
        backend: a backend's name, or "" to choose.
    """
    weights = weight, weight_scales, weight_global_scale
    return torch.ops.nvfp4.linear(
        x, *weights, x_global_scale, bias, scale_rule, activation, backend
    )


def _run(call: Linear, out: Tensor) -> None:
    if call.activation == W4A16:
        fill(call, out, stage=True, op="weight_only_linear")
    elif not fuse(call, out, stage="mm"):
        x = quantize_rows(call.x, call.x_global_scale, call.scale_rule, call.backend)
        weight_scale = vector(call.weight_global_scale)[None]
        operands = x.data, call.weight, x.scales, call.weight_scales, weight_scale, x.row_scale
        multiply = Mm(*operands, call.bias, out.dtype, call.backend).as_stage()
        fill(multiply, matrix(out), stage=True, op="mm")


define(Linear, _run)
