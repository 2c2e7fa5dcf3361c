"""nvfp4::grouped_mm_glu_quantize: the experts' first layer whole: grouped GEMM, gated linear unit,
quantization of the result.

With a known global scale a backend may do it in one kernel, which never writes gate and up; else,
and on the other backends, it is nvfp4::grouped_mm and nvfp4::glu_quantize. The bits are the same.
"""

from math import gcd

import torch
from torch import Tensor

from nvfp4.dispatch import fused_launcher, launcher
from nvfp4.ops.checks import Checker, valid_offsets, valid_values, vector
from nvfp4.ops.experts import ExpertRows, ExpertWeights
from nvfp4.ops.glu_quantize import Quantized, zero_grouped
from nvfp4.ops.grouped_mm import Operands, check_operands, prepared
from nvfp4.ops.library import define
from nvfp4.spec.format import BLOCK, SWIZZLED
from nvfp4.spec.glu import SILU

SIGNATURE = """(Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor alpha, Tensor offsets,
    Tensor? global_scale=None, float? limit=None, str activation="silu",
    ScalarType? gate_up_dtype=None, str backend="", *, Tensor? row_scale=None)
    -> (Tensor data, Tensor scales, Tensor row_scale_out)"""


def _outputs(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    offsets: Tensor,
    global_scale: Tensor | None = None,
    limit: float | None = None,
    activation: str = SILU,
    gate_up_dtype: torch.dtype | None = None,
    backend: str = "",
    *,
    row_scale: Tensor | None = None,
) -> Quantized:
    check = Checker("grouped_mm_glu_quantize", a)
    rows, experts, n = check_operands(check, a, b, a_scales, b_scales, alpha, offsets, row_scale)
    if n % (2 * BLOCK):
        check.fail("b", f"N = 2I, I a multiple of {BLOCK}", f"N = {n}")
    check.static_scale("global_scale", global_scale, experts)
    check.glu(limit, activation)
    check.out_dtype(gate_up_dtype)
    return zero_grouped(a, rows, experts, n // 2)


def _run(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    offsets: Tensor,
    global_scale: Tensor | None = None,
    limit: float | None = None,
    activation: str = SILU,
    gate_up_dtype: torch.dtype | None = None,
    backend: str = "",
    *,
    row_scale: Tensor | None = None,
) -> Quantized:
    outputs = _outputs(
        a, b, a_scales, b_scales, alpha, offsets, global_scale, limit, activation, gate_up_dtype,
        row_scale=row_scale,
    )  # fmt: skip
    op = "grouped_mm_glu_quantize"
    valid_values(op, "alpha", alpha)
    if global_scale is not None:
        valid_values(op, "global_scale", global_scale)
    valid_offsets(op, offsets, a.shape[0])
    if a.numel():
        operands = prepared(a, b, a_scales, b_scales, alpha, row_scale)
        dtype = gate_up_dtype or torch.bfloat16
        first_layer(
            operands,
            offsets.contiguous(),
            vector(global_scale),
            limit,
            activation,
            dtype,
            backend,
            outputs,
        )
    return outputs


define("grouped_mm_glu_quantize", SIGNATURE, _outputs, _run)


def first_layer(
    operands: Operands,
    offsets: Tensor,
    global_scale: Tensor | None,
    limit: float | None,
    activation: str,
    gate_up_dtype: torch.dtype,
    backend: str,
    outputs: Quantized,
    likely_rows: int | None = None,
) -> None:
    """Fill `outputs`, rows of nobody left alone. likely_rows: as the launchers' grouped_mm."""
    a, b, _, _, alpha, _ = operands
    n = b.shape[1]
    if global_scale is not None:
        together = gcd(n // 2, n // alpha.shape[1])  # columns of gate, or up, that share a factor
        fused = fused_launcher("grouped_mm_glu_quantize", "grouped_mm", a.device, backend, together)
        if fused is not None:
            args = global_scale, limit, activation, gate_up_dtype, *outputs, likely_rows
            fused(*operands, offsets, *args)
            return
    gate_up = a.new_empty((a.shape[0], n), dtype=gate_up_dtype)
    launcher("grouped_mm", a.device, backend, stage=True)(
        *operands, None, offsets, gate_up, likely_rows
    )
    launcher("glu_quantize", a.device, backend, stage=True)(
        gate_up, global_scale, offsets, limit, activation, SWIZZLED, *outputs
    )


def grouped_mm_glu_quantize(
    rows: ExpertRows,
    weights: ExpertWeights,
    global_scale: Tensor | None = None,
    limit: float | None = None,
    activation: str = SILU,
    gate_up_dtype: torch.dtype = torch.bfloat16,
    backend: str = "",
) -> ExpertRows:
    """The experts' first layer: act(A_e gate_e^T) * (A_e up_e^T), quantized.

    Args:
        rows: [R, H] of E experts; weights: w13 [E, 2I, H], gate's rows first, then up's.
        global_scale: of the result, float32 [], [1] or [E] (one per expert), calibrated: what a
            fused kernel needs; None: each row's own.
        limit, activation: as nvfp4.glu_quantize.
        gate_up_dtype: what gate and up are rounded to, whether they are written or not.

    The same bits as grouped_mm, then grouped_glu_quantize.
    """
    data, scales, p = torch.ops.nvfp4.grouped_mm_glu_quantize(
        rows.data, weights.data, rows.scales, weights.scales, weights.global_scale, rows.offsets,
        global_scale, limit, activation, gate_up_dtype, backend, row_scale=rows.row_scale,
    )  # fmt: skip
    return ExpertRows(data, scales, p, rows.offsets)
