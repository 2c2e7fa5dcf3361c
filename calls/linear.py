"""nvfp4::linear: activations in floats times a quantized weight."""

from typing import NamedTuple

from torch import Tensor

from nvfp4.calls.checks import Checker
from nvfp4.calls.forms import contiguous, matrix, vector
from nvfp4.spec.format import W4A4
from nvfp4.spec.packing import as_bytes
from nvfp4.spec.scale_rules import AMAX_OVER_SIX


class Linear(NamedTuple):
    """out [..., N] = x W^T + bias, in x's dtype."""

    x: Tensor
    """[..., K] bfloat16, float16 or float32, K a multiple of 16."""
    weight: Tensor
    """uint8 or float4_e2m1fn_x2 [N, K/2]."""
    weight_scales: Tensor
    """float8_e4m3fn, swizzled, of [N, K]."""
    weight_global_scale: Tensor
    """float32 [], [1], or [S] for S equal segments of N (fused parts)."""
    x_global_scale: Tensor | None = None
    """A static scale, float32 [] or [1]. None quantizes each row by its own (quantize_dynamic),
    so that a token's output does not depend on its neighbours.
    """
    bias: Tensor | None = None
    """[N] bfloat16, float16 or float32, added in float32."""
    scale_rule: str = AMAX_OVER_SIX
    """A rule that Quantize takes, for x."""
    activation: str = W4A4
    """"nvfp4" (W4A4) quantizes x. "bf16" (W4A16) multiplies x as it is, float32 rounded to
    bfloat16, by the same weights.
    """
    backend: str = ""

    def outputs(self) -> Tensor:
        x = self.x
        check = Checker(self)
        m, k = check.floats("x", x)
        weight = (self.weight, self.weight_scales, self.weight_global_scale)
        n, weight_k = check.weight("weight", *weight)
        if k != weight_k:
            check.fail("weight", f"x's K = {k}, that is {k // 2} bytes a row", f"K = {weight_k}")
        if self.x_global_scale is not None:
            check.global_scale("x_global_scale", self.x_global_scale, m)
        x_scale = {"x_global_scale": self.x_global_scale}
        check.activation_format("activation", self.activation, self.scale_rule, **x_scale)
        check.bias("bias", self.bias, n)
        return x.new_empty((*x.shape[:-1], n))

    def prepared(self, out: Tensor) -> tuple["Linear", Tensor]:
        call = self._replace(
            x=matrix(self.x),
            weight=matrix(as_bytes(self.weight)),
            weight_scales=self.weight_scales.contiguous(),
            weight_global_scale=vector(self.weight_global_scale),
            x_global_scale=vector(self.x_global_scale),
            bias=contiguous(self.bias),
        )
        return call, matrix(out)
