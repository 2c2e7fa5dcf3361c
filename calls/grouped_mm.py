"""nvfp4::grouped_mm and nvfp4::grouped_mm_glu_quantize: a GEMM for each expert."""

from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvfp4.calls.checks import Checker
from nvfp4.calls.forms import contiguous, matrix, vector
from nvfp4.calls.grouped import empty_grouped, zero_grouped
from nvfp4.calls.outputs import Quantized
from nvfp4.spec.format import BLOCK
from nvfp4.spec.glu import SILU, columns_per_output
from nvfp4.spec.packing import as_bytes
from nvfp4.spec.scale_rules import AMAX_OVER_SIX


class GroupedMm(NamedTuple):
    """out [R, N], rows of expert e: (A B[e]^T) * (row_scale[m] * alpha[e, segment of n]) + bias[e].

    The rows of expert e are offsets[e] up to offsets[e + 1]. Rows from offsets[E] on are
    unassigned: zero in the op's output, and not written by launchers.
    """

    a: Tensor
    """uint8 or float4_e2m1fn_x2 [R, K/2], expert after expert."""
    b: Tensor
    """uint8 or float4_e2m1fn_x2 [E, N, K/2]."""
    a_scales: Tensor
    """float8_e4m3fn, grouped (spec/grouped.py)."""
    b_scales: Tensor
    """float8_e4m3fn [E, Np, Kp], each expert's swizzled."""
    alpha: Tensor
    """float32 [E], or [E, S] for S equal segments of N."""
    offsets: Tensor
    """int32 [E + 1]."""
    row_scale: Tensor | None = None
    """float32 [R], multiplied with alpha; None is 1."""
    bias: Tensor | None = None
    """[E, N] bfloat16, float16 or float32."""
    out_dtype: torch.dtype | None = None
    """bfloat16 (also by default), float16 or float32."""
    expected_rows: int = 0
    """How many rows are expected to be assigned; 0: all R. Tiles are chosen by it, results do not
    depend on it.
    """
    backend: str = ""

    def outputs(self) -> Tensor:
        check = Checker(self)
        rows, experts, n = _check_operands(check, self)
        check.bias("bias", self.bias, experts, n)
        check.out_dtype(self.out_dtype)
        return self.a.new_zeros((rows, n), dtype=self.out_dtype or torch.bfloat16)

    def prepared(self, out: Tensor) -> tuple["GroupedMm", Tensor]:
        return self._replace(**_prepared_operands(self)), out


class GroupedMmGluQuantize(NamedTuple):
    """Quantize act(gate) * up, where gate and up are the halves of GroupedMm's N = 2I columns.

    With relu2 there is no gate, and N = I. The arguments up to bias, and expected_rows, are
    GroupedMm's.
    """

    a: Tensor
    b: Tensor
    """[E, 2I, K/2]: gate's rows, then up's; with relu2 [E, I, K/2]."""
    a_scales: Tensor
    b_scales: Tensor
    alpha: Tensor
    offsets: Tensor
    row_scale: Tensor | None = None
    bias: Tensor | None = None
    global_scale: Tensor | None = None
    """The result's scale: float32 [], [1], or [E]; None gives each row its own, and no kernel
    fuses.
    """
    swiglu_limit: float | None = None
    """A limit L: gate becomes min(gate, L) before the activation, up is clamped to [-L, L]."""
    gate_up_dtype: torch.dtype | None = None
    """What gate and up are rounded to: bfloat16 (also by default), float16 or float32."""
    expected_rows: int = 0
    scale_rule: str = AMAX_OVER_SIX
    """A rule that Quantize takes."""
    activation: str = SILU
    """A name that GluQuantize takes."""
    backend: str = ""

    def outputs(self) -> Quantized:
        check = Checker(self)
        rows, experts, n = _check_operands(check, self)
        check.scale_rule(self.scale_rule)
        check.glu(self.swiglu_limit, self.activation)
        parts = columns_per_output(self.activation)
        if n % (parts * BLOCK):
            need = f"N = {'2' * (parts == 2)}I, I a multiple of {BLOCK}"
            check.fail("b", need, f"N = {n}")
        check.bias("bias", self.bias, experts, n)
        check.static_scale("global_scale", self.global_scale, experts)
        check.out_dtype(self.gate_up_dtype, "gate_up_dtype")
        return zero_grouped(self.a, rows, experts, n // parts)

    def empty(self) -> Quantized:
        """Unwritten outputs, for a stage of another op."""
        experts, n, _ = self.b.shape
        columns = n // columns_per_output(self.activation)
        return empty_grouped(self.a, self.a.shape[0], experts, columns)

    def prepared(self, out: Quantized) -> tuple["GroupedMmGluQuantize", Quantized]:
        operands = _prepared_operands(self)
        return self._replace(**operands, global_scale=vector(self.global_scale)), out

    def columns_per_factor(self) -> int:
        """How many columns of gate, or of up, share a factor: all I of them, or a segment."""
        n = self.b.shape[1]
        segments = self.alpha.shape[1] if self.alpha.dim() == 2 else 1
        return gcd(n // columns_per_output(self.activation), n // segments)


def _check_operands(check: Checker, call: GroupedMm | GroupedMmGluQuantize) -> tuple[int, int, int]:
    """Check what the two ops share; returns (rows, experts, N)."""
    rows, k = check.packed("a", call.a, dim=2)
    experts, n, b_k = check.expert_weights("b", call.b, call.b_scales)
    if k != b_k:
        check.fail("b", f"a's K = {k}, that is {k // 2} bytes a row", f"K = {b_k}")
    check.offsets(call.offsets, experts)
    check.grouped_scales("a_scales", call.a_scales, rows, experts, k)
    check.per_expert("alpha", call.alpha, experts, n)
    if call.row_scale is not None:
        check.tensor("row_scale", call.row_scale, (torch.float32,))
        check.shape("row_scale", call.row_scale, (rows,))
    if call.expected_rows < 0:
        check.fail("expected_rows", "0 or a number of rows", call.expected_rows)
    return rows, experts, n


def _prepared_operands(call: GroupedMm | GroupedMmGluQuantize) -> dict[str, Any]:
    return {
        "a": matrix(as_bytes(call.a)),
        "b": as_bytes(call.b).contiguous(),
        "a_scales": call.a_scales.contiguous(),
        "b_scales": call.b_scales.contiguous(),
        "alpha": call.alpha.reshape(call.alpha.shape[0], -1).contiguous(),
        "offsets": call.offsets.contiguous(),
        "row_scale": contiguous(call.row_scale),
        "bias": contiguous(call.bias),
        "expected_rows": call.expected_rows or call.a.shape[0],
    }
