"""The experts' first layer whole: grouped GEMM, gated linear unit, quantization of the result
(nvfp4::grouped_mm_glu_quantize).

With a known global scale a backend may do it in one kernel, which never writes gate and up. Else it
is nvfp4::grouped_mm and nvfp4::glu_quantize. The bits are the same.
"""

import torch
from torch import Tensor

from nvfp4.calls import GluQuantize, GroupedMm, GroupedMmGluQuantize, Quantized
from nvfp4.dispatch import fill, fuse
from nvfp4.ops.library import define
from nvfp4.spec.format import SWIZZLED
from nvfp4.spec.glu import SILU
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.tensors import ExpertRows, ExpertWeights


def grouped_mm_glu_quantize(
    rows: ExpertRows,
    weights: ExpertWeights,
    bias: Tensor | None = None,
    global_scale: Tensor | None = None,
    swiglu_limit: float | None = None,
    gate_up_dtype: torch.dtype = torch.bfloat16,
    scale_rule: str = AMAX_OVER_SIX,
    activation: str = SILU,
    backend: str = "",
) -> ExpertRows:
    """Compute the experts' first layer: act(A_e gate_e^T) * (A_e up_e^T), quantized.

    Args:
        rows: [R, H] of E experts; weights: w13 [E, 2I, H], gate's rows first, then up's; with
            relu2 [E, I, H].
        bias: [E, 2I] or [E, I], added to gate and up; no kernel fuses it.
        global_scale: of the result, float32 [], [1] or [E] (one per expert), calibrated: what a
            fused kernel needs; None: each row's own.
        swiglu_limit, scale_rule, activation: as nvfp4.glu_quantize.
        gate_up_dtype: what gate and up are rounded to, whether they are written or not.

    The same bits as grouped_mm, then grouped_glu_quantize.
    """
    operands = rows.data, weights.data, rows.scales, weights.scales, weights.global_scale
    data, scales, p = torch.ops.nvfp4.grouped_mm_glu_quantize(
        *operands, rows.offsets, rows.row_scale, bias, global_scale, swiglu_limit, gate_up_dtype,
        scale_rule=scale_rule, activation=activation, backend=backend,
    )  # fmt: skip
    return ExpertRows(data, scales, p, rows.offsets)


def run(call: GroupedMmGluQuantize, out: Quantized) -> None:
    """Fill `out` in one kernel or in two; unassigned rows are not written."""
    facts = call.columns_per_factor(), call.activation, call.bias is not None
    if call.global_scale is not None and fuse(call, out, "grouped_mm", *facts):
        return
    dtype, backend = call.gate_up_dtype or torch.bfloat16, call.backend
    gate_up = call.a.new_empty((call.a.shape[0], call.b.shape[1]), dtype=dtype)
    operands = call.a, call.b, call.a_scales, call.b_scales, call.alpha, call.offsets
    multiply = GroupedMm(*operands, call.row_scale, call.bias, dtype, call.expected_rows, backend)
    fill(multiply, gate_up, stage=True)
    glu = call.global_scale, call.offsets, call.swiglu_limit, SWIZZLED, call.scale_rule
    fill(GluQuantize(gate_up, *glu, call.activation, backend), out, stage=True)


define(GroupedMmGluQuantize, run)
