"""nvfp4::grouped_mm: a GEMM per expert, on rows that lie expert after expert.

The rows of expert e are offsets[e] .. offsets[e+1] - 1, offsets int32 [E+1] on the device; the
rows' scales are grouped (spec/grouped.py). Rows from offsets[E] on are nobody's: zero in the
output.
"""

import torch
from torch import Tensor

from nvfp4.dispatch import launcher
from nvfp4.ops.checks import Checker, matrix, valid_offsets, valid_values
from nvfp4.ops.experts import ExpertRows, ExpertWeights
from nvfp4.ops.library import define
from nvfp4.spec.packing import as_bytes

SIGNATURE = """(Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor alpha, Tensor offsets,
    Tensor? bias=None, ScalarType? out_dtype=None, str backend="", *, Tensor? row_scale=None)
    -> Tensor"""


Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""a, b, a_scales, b_scales, alpha [E, S], row_scale, as launchers take them."""


def check_operands(
    check: Checker,
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    offsets: Tensor,
    row_scale: Tensor | None,
) -> tuple[int, int, int]:
    """Returns (rows, experts, N)."""
    rows, k = check.packed("a", a, dim=2)
    experts, n, b_k = check.expert_weights("b", b, b_scales)
    if k != b_k:
        check.fail("b", f"a's K = {k}, that is {k // 2} bytes a row", f"K = {b_k}")
    check.offsets(offsets, experts)
    check.grouped_scales("a_scales", a_scales, rows, experts, k)
    check.per_expert("alpha", alpha, experts, n)
    if row_scale is not None:
        check.tensor("row_scale", row_scale, (torch.float32,))
        check.shape("row_scale", row_scale, (rows,))
    return rows, experts, n


def prepared(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
) -> Operands:
    return (
        matrix(as_bytes(a)),
        as_bytes(b).contiguous(),
        a_scales.contiguous(),
        b_scales.contiguous(),
        alpha.reshape(alpha.shape[0], -1).contiguous(),
        None if row_scale is None else row_scale.contiguous(),
    )


def _outputs(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    offsets: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "",
    *,
    row_scale: Tensor | None = None,
) -> Tensor:
    check = Checker("grouped_mm", a)
    rows, experts, n = check_operands(check, a, b, a_scales, b_scales, alpha, offsets, row_scale)
    check.bias(bias, experts, n)
    check.out_dtype(out_dtype)
    return a.new_zeros((rows, n), dtype=out_dtype or torch.bfloat16)


def _run(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    offsets: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "",
    *,
    row_scale: Tensor | None = None,
) -> Tensor:
    out = _outputs(a, b, a_scales, b_scales, alpha, offsets, bias, out_dtype, row_scale=row_scale)
    valid_values("grouped_mm", "alpha", alpha)
    valid_offsets("grouped_mm", offsets, a.shape[0])
    launch = launcher("grouped_mm", a.device, backend)
    if out.numel():
        operands = prepared(a, b, a_scales, b_scales, alpha, row_scale)
        launch(*operands, None if bias is None else bias.contiguous(), offsets.contiguous(), out)
    return out


define("grouped_mm", SIGNATURE, _outputs, _run)


def grouped_mm(
    rows: ExpertRows,
    weights: ExpertWeights,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    backend: str = "",
) -> Tensor:
    """Each expert's rows times its weight, A_e B_e^T + bias[e]: [R, N] in out_dtype.

    Args:
        rows: [R, K] of E experts; nobody's rows are zero in the output.
        weights: [E, N, K].
        bias: [E, N] or None, added in float32.

    float32 accumulation, then acc * (row_scale[m] * global_scale[e, segment of n]) + bias[e, n] as
    one fused multiply-add, then one rounding to out_dtype.
    """
    return torch.ops.nvfp4.grouped_mm(
        rows.data, weights.data, rows.scales, weights.scales, weights.global_scale, rows.offsets,
        bias, out_dtype, backend, row_scale=rows.row_scale,
    )  # fmt: skip
