"""nvfp4::mm: the GEMM of two quantized matrices."""

from typing import NamedTuple

import torch
from torch import Tensor

from nvfp4.calls.checks import Checker
from nvfp4.calls.forms import contiguous, matrix, vector
from nvfp4.spec.format import SWIZZLED
from nvfp4.spec.packing import as_bytes


class Mm(NamedTuple):
    """out [M, N] = (A B^T) * (row_scale[m] * alpha[m, segment of n]) + bias[n].

    The sum, the factors and the bias are float32; one rounding gives out_dtype. alpha's S segments
    cut N into equal parts: fused weights keep the global scale of each part this way. A gate_up
    weight has S = 2; q, k, v of widths 576, 192, 192 have S = 5, q's scale three times
    (nvfp4.concatenate works this out).
    """

    a: Tensor
    """uint8 or float4_e2m1fn_x2 [M, K/2]."""
    b: Tensor
    """uint8 or float4_e2m1fn_x2 [N, K/2]."""
    a_scales: Tensor
    """float8_e4m3fn, swizzled, of [M, K]."""
    b_scales: Tensor
    """float8_e4m3fn, swizzled, of [N, K]."""
    alpha: Tensor
    """float32 [1 or M, S]; [] and [1] are one number, [M] is one for each row."""
    row_scale: Tensor | None = None
    """float32 [1] or [M], multiplied with alpha; None is 1."""
    bias: Tensor | None = None
    """[N] bfloat16, float16 or float32."""
    out_dtype: torch.dtype | None = None
    """bfloat16 (also by default), float16 or float32."""
    backend: str = ""

    def outputs(self) -> Tensor:
        check = Checker(self)
        m, k = check.packed("a", self.a, dim=2)
        n, b_k = check.packed("b", self.b, dim=2)
        if k != b_k:
            check.fail("b", f"a's K = {k}, that is {k // 2} bytes a row", f"K = {b_k}")
        check.scales("a_scales", self.a_scales, (m, k), SWIZZLED)
        check.scales("b_scales", self.b_scales, (n, k), SWIZZLED)
        alpha = self.alpha
        check.tensor("alpha", alpha, (torch.float32,))
        if alpha.dim() > 2 or (alpha.dim() > 0 and alpha.shape[0] not in (1, m)):
            need = f"shape [], [1], [{m}] (one per row), or [1 or {m}, S] (S segments of N)"
            check.fail("alpha", need, f"shape {list(alpha.shape)}")
        if alpha.dim() == 2:
            check.segments("alpha", alpha.shape[1], n)
        if self.row_scale is not None:
            check.global_scale("row_scale", self.row_scale, m)
        check.bias("bias", self.bias, n)
        check.out_dtype(self.out_dtype)
        return self.a.new_empty((m, n), dtype=self.out_dtype or torch.bfloat16)

    def prepared(self, out: Tensor) -> tuple["Mm", Tensor]:
        alpha = self.alpha
        call = self._replace(
            a=matrix(as_bytes(self.a)),
            b=matrix(as_bytes(self.b)),
            a_scales=self.a_scales.contiguous(),
            b_scales=self.b_scales.contiguous(),
            alpha=(alpha if alpha.dim() == 2 else alpha.reshape(-1, 1)).contiguous(),
            row_scale=vector(self.row_scale),
            bias=contiguous(self.bias),
        )
        return call, out

    def as_stage(self) -> "Mm":
        """The call as a stage of another op, after a stage that wrote no weights (StageMm)."""
        return StageMm(*self)


class StageMm(Mm):
    """mm as a stage of another op, after a stage that launched a kernel and wrote no weights.

    Every kernel here waits for its predecessor before it lets its successor start (PDL). So
    whatever wrote b and b_scales has ended when this stage's kernel starts, and that may load them
    while the stage before it still runs.
    """

    def prepared(self, out: Tensor) -> tuple[Mm, Tensor]:
        """Mm's; an Mm where that copies weights, since the copy is then the kernel before."""
        call, out = super().prepared(out)
        same = call.b.data_ptr() == self.b.data_ptr()
        same = same and call.b_scales.data_ptr() == self.b_scales.data_ptr()
        return call if same else Mm(*call), out
