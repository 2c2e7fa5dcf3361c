"""nvfp4::linear: activations in floats, weights in NVFP4; quantizes the activations and multiplies.

Two stages, each run by whoever runs it best on this machine: nvfp4::quantize_dynamic (or
nvfp4::quantize, with a static scale) and nvfp4::mm. A backend asked for runs those that it has. The
alphas x_p[m] * w_p[n] are made in the GEMM's epilogue. Who multiplies may have a way of its own
through both, without packing what is unpacked at once; the bits are the stages'.
"""

import torch
from torch import Tensor

from nvfp4.dispatch import fused_launcher, launcher
from nvfp4.ops.checks import Checker, matrix, valid_values, vector
from nvfp4.ops.library import define
from nvfp4.ops.quantize import empty_quantized
from nvfp4.spec.format import SWIZZLED
from nvfp4.spec.packing import as_bytes

SIGNATURE = """(Tensor x, Tensor weight, Tensor weight_scales, Tensor weight_global_scale,
    Tensor? input_global_scale=None, Tensor? bias=None, str backend="",
    *, str activation="nvfp4") -> Tensor"""

QUANTIZED, FLOAT = "nvfp4", "bf16"
"""What activations are multiplied as."""

STAGES = ("quantize_dynamic", "mm")
"""What a call without a static input scale goes through."""

WEIGHT_ONLY_STAGES = ("weight_only_linear",)


def _outputs(
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    weight_global_scale: Tensor,
    input_global_scale: Tensor | None = None,
    bias: Tensor | None = None,
    backend: str = "",
    *,
    activation: str = QUANTIZED,
) -> Tensor:
    check = Checker("linear", x)
    m, k = check.floats("x", x)
    n, weight_k = check.weight("weight", weight, weight_scales, weight_global_scale)
    if k != weight_k:
        check.fail("weight", f"x's K = {k}, that is {k // 2} bytes a row", f"K = {weight_k}")
    if activation not in (QUANTIZED, FLOAT):
        check.fail("activation", f"{QUANTIZED!r} or {FLOAT!r}", repr(activation))
    if input_global_scale is not None:
        check.global_scale("input_global_scale", input_global_scale, m)
        if activation == FLOAT:
            need = f"to be None with activation={FLOAT!r}, which quantizes nothing"
            check.fail("input_global_scale", need, f"shape {list(input_global_scale.shape)}")
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
    *,
    activation: str = QUANTIZED,
) -> Tensor:
    operands = x, weight, weight_scales, weight_global_scale, input_global_scale, bias
    out = _outputs(*operands, activation=activation)
    valid_values("linear", "weight_global_scale", weight_global_scale)
    (stage,) = STAGES[1:] if activation == QUANTIZED else WEIGHT_ONLY_STAGES
    multiply = launcher(stage, x.device, backend, stage=True)
    if not out.numel():
        return out
    bias = bias if bias is None else bias.contiguous()
    if activation == FLOAT:
        multiply(
            matrix(x), matrix(as_bytes(weight)), weight_scales.contiguous(),
            vector(weight_global_scale)[None], bias, matrix(out),
        )  # fmt: skip
        return out
    fused = fused_launcher("linear", "mm", x.device, backend)
    if fused is not None:
        if input_global_scale is not None:
            valid_values("linear", "input_global_scale", input_global_scale)
        fused(
            matrix(x), matrix(as_bytes(weight)), weight_scales.contiguous(),
            vector(weight_global_scale)[None], vector(input_global_scale), bias, matrix(out),
        )  # fmt: skip
        return out
    data, scales, p = quantize_rows("linear", x, "input_global_scale", input_global_scale, backend)
    multiply(
        data,
        matrix(as_bytes(weight)),
        scales,
        weight_scales.contiguous(),
        vector(weight_global_scale)[None],
        p,
        bias,
        matrix(out),
    )
    return out


define("linear", SIGNATURE, _outputs, _run)


def quantize_rows(
    op: str, x: Tensor, argument: str, global_scale: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """A stage of `op`: x [..., K], not empty, to data [M, K/2], scales, and the global scale [1] or
    [M]; each row's own where `global_scale`, the op's `argument`, is None.
    """
    rows = matrix(x)
    m, k = rows.shape
    data, scales = empty_quantized(x, (m,), k, SWIZZLED)
    if global_scale is None:
        p = x.new_empty((m,), dtype=torch.float32)
        launcher("quantize_dynamic", x.device, backend, stage=True)(rows, SWIZZLED, data, scales, p)
    else:
        valid_values(op, argument, global_scale)
        p = vector(global_scale)
        launcher("quantize", x.device, backend, stage=True)(rows, p, SWIZZLED, data, scales)
    return data, scales, p


def linear(
    x: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    weight_global_scale: Tensor,
    input_global_scale: Tensor | None = None,
    bias: Tensor | None = None,
    backend: str = "",
    *,
    activation: str = QUANTIZED,
) -> Tensor:
    """x W^T + bias with x quantized on the way: [..., N] in x's dtype.

    Args:
        x: [..., K] bfloat16, float16 or float32, K a multiple of 16.
        weight: uint8 [N, K/2]; weight_scales: float8_e4m3fn, swizzled [Np, Kp].
        weight_global_scale: float32 [], [1], or [S] for S equal segments of N (fused parts).
        input_global_scale: None quantizes each row with its own p = amax_row / 2688, so that a
            token's output does not depend on its neighbours; float32 [] or [1] is a static scale.
        bias: [N] or None, added in float32.
        activation: "nvfp4", or "bf16": x is not quantized but multiplied as it is (float32 rounded
            to bfloat16), by the same weights. Other numbers than NVFP4's own GEMM has, nearer to
            the unquantized model's.
    """
    return torch.ops.nvfp4.linear(
        x, weight, weight_scales, weight_global_scale, input_global_scale, bias, backend,
        activation=activation,
    )  # fmt: skip
