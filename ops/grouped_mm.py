"""A GEMM per expert, on rows that lie expert after expert (nvfp4::grouped_mm)."""

import torch
from torch import Tensor

from nvfp4.calls import GroupedMm
from nvfp4.ops.library import define
from nvfp4.tensors import ExpertRows, ExpertWeights


def grouped_mm(
    rows: ExpertRows,
    weights: ExpertWeights,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    backend: str = "",
) -> Tensor:
    """Multiply each expert's rows by its weight, A_e B_e^T + bias[e]: [R, N] in out_dtype.

    Args:
        rows: [R, K] of E experts; unassigned rows are zero in the output.
        weights: [E, N, K].
        bias: [E, N] or None, added in float32.

    float32 accumulation, then acc * (row_scale[m] * global_scale[e, segment of n]) + bias[e, n] as
    one fused multiply-add, then one rounding to out_dtype.
    """
    operands = rows.data, weights.data, rows.scales, weights.scales, weights.global_scale
    return torch.ops.nvfp4.grouped_mm(
        *operands, rows.offsets, rows.row_scale, bias, out_dtype, backend=backend
    )


define(GroupedMm)
