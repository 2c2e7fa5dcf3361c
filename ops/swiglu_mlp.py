"""nvfp4::swiglu_mlp: a gated MLP, the shared expert: one expert that every token goes through.

quantize_dynamic (or quantize) -> mm (w13) -> glu_quantize -> mm (w2)
"""

import torch
from torch import Tensor

from nvfp4.dispatch import launcher
from nvfp4.ops.checks import Checker, matrix, valid_values, vector
from nvfp4.ops.library import define
from nvfp4.ops.linear import quantize_rows
from nvfp4.ops.quantize import empty_quantized
from nvfp4.ops.tensor import QuantizedTensor
from nvfp4.spec.format import SWIZZLED
from nvfp4.spec.glu import SILU
from nvfp4.spec.packing import as_bytes

SIGNATURE = """(Tensor x, Tensor w13, Tensor w13_scales, Tensor w13_global_scale,
    Tensor w2, Tensor w2_scales, Tensor w2_global_scale,
    Tensor? x_global_scale=None, Tensor? h_global_scale=None, float? swiglu_limit=None,
    str backend="", *, str activation="silu") -> Tensor"""

STAGES = ("quantize_dynamic", "mm", "glu_quantize")
"""What a call without a static input scale goes through."""


def _outputs(
    x: Tensor,
    w13: Tensor,
    w13_scales: Tensor,
    w13_global_scale: Tensor,
    w2: Tensor,
    w2_scales: Tensor,
    w2_global_scale: Tensor,
    x_global_scale: Tensor | None = None,
    h_global_scale: Tensor | None = None,
    swiglu_limit: float | None = None,
    backend: str = "",
    *,
    activation: str = SILU,
) -> Tensor:
    check = Checker("swiglu_mlp", x)
    _, hidden = check.floats("x", x)
    both, k = check.weight("w13", w13, w13_scales, w13_global_scale)
    n, intermediate = check.weight("w2", w2, w2_scales, w2_global_scale)
    if k != hidden:
        check.fail("w13", f"x's K = {hidden}, that is {hidden // 2} bytes a row", f"K = {k}")
    if both != 2 * intermediate:
        check.fail("w13", f"N = 2I = {2 * intermediate} (w2 has K = I = {intermediate})", both)
    check.static_scale("x_global_scale", x_global_scale)
    check.static_scale("h_global_scale", h_global_scale)
    check.glu(swiglu_limit, activation)
    return x.new_empty((*x.shape[:-1], n))


def _run(
    x: Tensor,
    w13: Tensor,
    w13_scales: Tensor,
    w13_global_scale: Tensor,
    w2: Tensor,
    w2_scales: Tensor,
    w2_global_scale: Tensor,
    x_global_scale: Tensor | None = None,
    h_global_scale: Tensor | None = None,
    swiglu_limit: float | None = None,
    backend: str = "",
    *,
    activation: str = SILU,
) -> Tensor:
    out = _outputs(
        x, w13, w13_scales, w13_global_scale, w2, w2_scales, w2_global_scale, x_global_scale,
        h_global_scale, swiglu_limit, activation=activation,
    )  # fmt: skip
    for name, p in (
        ("w13_global_scale", w13_global_scale),
        ("w2_global_scale", w2_global_scale),
        ("h_global_scale", h_global_scale),
    ):
        if p is not None:
            valid_values("swiglu_mlp", name, p)
    multiply = launcher("mm", x.device, backend, stage=True)
    if not out.numel():
        return out
    data, scales, p = quantize_rows("swiglu_mlp", x, "x_global_scale", x_global_scale, backend)
    m, intermediate = data.shape[0], 2 * w2.shape[1]
    gate_up = x.new_empty((m, 2 * intermediate))
    operands = (matrix(as_bytes(w13)), scales, w13_scales.contiguous())
    multiply(data, *operands, vector(w13_global_scale)[None], p, None, gate_up)

    data, scales = empty_quantized(x, (m,), intermediate, SWIZZLED)
    p = x.new_empty((m,), dtype=torch.float32)
    launcher("glu_quantize", x.device, backend, stage=True)(
        gate_up, vector(h_global_scale), None, swiglu_limit, activation, SWIZZLED, data, scales, p
    )
    operands = (matrix(as_bytes(w2)), scales, w2_scales.contiguous())
    multiply(data, *operands, vector(w2_global_scale)[None], p, None, matrix(out))
    return out


define("swiglu_mlp", SIGNATURE, _outputs, _run)


def swiglu_mlp(
    x: Tensor,
    w13: QuantizedTensor,
    w2: QuantizedTensor,
    x_global_scale: Tensor | None = None,
    h_global_scale: Tensor | None = None,
    swiglu_limit: float | None = None,
    activation: str = SILU,
    backend: str = "",
) -> Tensor:
    """(act(x gate^T) * (x up^T)) down^T: [..., N] in x's dtype, every product in NVFP4.

    Args:
        x: [..., H] bfloat16, float16 or float32; what the first GEMM gives is rounded to this dtype
            too.
        w13: [2I, H], gate's rows first, global_scale [], [1] or [2] (nvfp4.concatenate of the two);
            w2: [N, I]. Linear scales are swizzled on the way, which costs a copy of them at each
            call.
        x_global_scale, h_global_scale: of x and of act(gate) * up, float32 [] or [1], calibrated;
            None: each row its own.
        swiglu_limit, activation: as nvfp4.glu_quantize.
    """
    w13, w2 = w13.swizzled(), w2.swizzled()
    return torch.ops.nvfp4.swiglu_mlp(
        x, w13.data, w13.scales, w13.global_scale, w2.data, w2.scales, w2.global_scale,
        x_global_scale, h_global_scale, swiglu_limit, backend, activation=activation,
    )  # fmt: skip
