"""An MLP, gated or not, such as the expert that all tokens share (nvfp4::swiglu_mlp).

quantize_dynamic (or quantize) -> mm (w13) -> glu_quantize -> mm (w2)
"""

import torch
from torch import Tensor

from nvfp4.calls import GluQuantize, Mm, Quantized, SwigluMlp
from nvfp4.calls.forms import matrix, vector
from nvfp4.calls.outputs import empty_packed
from nvfp4.dispatch import fill
from nvfp4.ops.library import define
from nvfp4.ops.stages import quantize_rows
from nvfp4.spec.format import SWIZZLED
from nvfp4.spec.glu import SILU
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.tensors import QuantizedTensor


def swiglu_mlp(
    x: Tensor,
    w13: QuantizedTensor,
    w2: QuantizedTensor,
    x_global_scale: Tensor | None = None,
    h_global_scale: Tensor | None = None,
    w13_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    swiglu_limit: float | None = None,
    scale_rule: str = AMAX_OVER_SIX,
    activation: str = SILU,
    backend: str = "",
) -> Tensor:
    """(act(x gate^T) * (x up^T)) down^T: [..., N] in x's dtype, every product in NVFP4.

    Args:
        x: [..., H] bfloat16, float16 or float32; what the first GEMM gives is rounded to this dtype
            too.
        w13: [2I, H], gate's rows first, global_scale [], [1] or [2] (nvfp4.concatenate of the two);
            with relu2 [I, H].
        w2: [N, I]. Linear scales are swizzled on the way, which costs a copy of them at each call.
        x_global_scale, h_global_scale: of x and of act(gate) * up, float32 [] or [1], calibrated;
            None: each row its own.
        w13_bias, w2_bias: of w13's and of w2's rows, added in float32.
        swiglu_limit, activation: as nvfp4.glu_quantize.
        scale_rule: of the block scales of x and of act(gate) * up, as nvfp4.quantize.
    """
    w13, w2 = w13.swizzled(), w2.swizzled()
    return torch.ops.nvfp4.swiglu_mlp(
        x, w13.data, w13.scales, w13.global_scale, w2.data, w2.scales, w2.global_scale,
        x_global_scale, h_global_scale, w13_bias, w2_bias, swiglu_limit, scale_rule, activation,
        backend,
    )  # fmt: skip


def _run(call: SwigluMlp, out: Tensor) -> None:
    x, backend = call.x, call.backend
    a = quantize_rows(x, call.x_global_scale, call.scale_rule, backend)
    m, intermediate = a.data.shape[0], 2 * call.w2.shape[1]
    gate_up = x.new_empty((m, call.w13.shape[0]))
    p = vector(call.w13_global_scale)[None]
    first = a.data, call.w13, a.scales, call.w13_scales, p, a.row_scale
    multiply = Mm(*first, call.w13_bias, x.dtype, backend).as_stage()
    fill(multiply, gate_up, stage=True, op="mm")

    packed = empty_packed(x, (m,), intermediate, SWIZZLED)
    h = Quantized(*packed, x.new_empty((m,), dtype=torch.float32))
    glu = call.h_global_scale, None, call.swiglu_limit, SWIZZLED, call.scale_rule
    fill(GluQuantize(gate_up, *glu, call.activation, backend), h, stage=True)

    p = vector(call.w2_global_scale)[None]
    second = h.data, call.w2, h.scales, call.w2_scales, p, h.row_scale
    multiply = Mm(*second, call.w2_bias, x.dtype, backend).as_stage()
    fill(multiply, matrix(out), stage=True, op="mm")


define(SwigluMlp, _run)
