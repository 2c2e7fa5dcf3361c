"""nvfp4::mm: out = (A B^T) * alpha + bias, A and B in NVFP4.

alpha is a matrix over the output, cut into equal segments along N: alpha [1 or M, S], S a divisor
of N, applies alpha[m, n // (N/S)] to out[m, n]. Its shorthands are [] and [1] (one number) and [M]
(one per row). Fused parts keep their own global scales this way: gate_up is S = 2; q, k, v of
widths 576, 192, 192 is S = 5, q's scale three times (nvfp4.concatenate works this out).
"""

import torch
from torch import Tensor

from nvfp4.dispatch import launcher
from nvfp4.ops.checks import Checker, matrix, valid_values
from nvfp4.ops.library import define
from nvfp4.ops.tensor import QuantizedTensor
from nvfp4.spec.format import SWIZZLED
from nvfp4.spec.packing import as_bytes

SIGNATURE = """(Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor alpha,
    Tensor? bias=None, ScalarType? out_dtype=None, str backend="") -> Tensor"""


def _outputs(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "",
) -> Tensor:
    check = Checker("mm", a)
    m, k = check.packed("a", a, dim=2)
    n, b_k = check.packed("b", b, dim=2)
    if k != b_k:
        check.fail("b", f"a's K = {k}, that is {k // 2} bytes a row", f"K = {b_k}")
    check.scales("a_scales", a_scales, (m, k), SWIZZLED)
    check.scales("b_scales", b_scales, (n, k), SWIZZLED)
    check.tensor("alpha", alpha, (torch.float32,))
    if alpha.dim() > 2 or (alpha.dim() > 0 and alpha.shape[0] != 1 and alpha.shape[0] != m):
        need = f"shape [], [1], [{m}] (one per row), or [1 or {m}, S] (S segments of N)"
        check.fail("alpha", need, f"shape {list(alpha.shape)}")
    if alpha.dim() == 2:
        check.segments("alpha", alpha.shape[1], n)
    check.bias(bias, n)
    check.out_dtype(out_dtype)
    return a.new_empty((m, n), dtype=out_dtype or torch.bfloat16)


def _run(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "",
) -> Tensor:
    out = _outputs(a, b, a_scales, b_scales, alpha, bias, out_dtype)
    valid_values("mm", "alpha", alpha)
    launch = launcher("mm", a.device, backend)
    if out.numel():
        launch(
            matrix(as_bytes(a)),
            matrix(as_bytes(b)),
            a_scales.contiguous(),
            b_scales.contiguous(),
            (alpha if alpha.dim() == 2 else alpha.reshape(-1, 1)).contiguous(),
            None,
            bias if bias is None else bias.contiguous(),
            out,
        )
    return out


define("mm", SIGNATURE, _outputs, _run)


def mm(
    a: QuantizedTensor,
    b: QuantizedTensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    backend: str = "",
) -> Tensor:
    """Multiply two quantized matrices [M, K] and [N, K], A B^T: [M, N] in out_dtype.

    The sum is float32. Then acc * alpha + bias [N] is one fused multiply-add in float32, where
    alpha is the product of the global scales, and one rounding gives out_dtype. Linear scales are
    swizzled first, which costs a copy of them at each call.
    """
    a, b = a.swizzled(), b.swizzled()
    alpha = a.global_scale.reshape(-1, 1) * b.global_scale.reshape(1, -1)
    return torch.ops.nvfp4.mm(a.data, b.data, a.scales, b.scales, alpha, bias, out_dtype, backend)
