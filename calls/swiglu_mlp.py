"""nvfp4::swiglu_mlp: a gated MLP, or one without a gate."""

from typing import NamedTuple

from torch import Tensor

from nvfp4.calls.checks import Checker
from nvfp4.spec.glu import SILU
from nvfp4.spec.scale_rules import AMAX_OVER_SIX


class SwigluMlp(NamedTuple):
    """out [..., N] = W2 (act(gate) * up), with gate and up the halves of W13 x, in x's dtype."""

    x: Tensor
    """[..., H] bfloat16, float16 or float32, H a multiple of 16."""
    w13: Tensor
    """uint8 or float4_e2m1fn_x2 [2I, H/2]: gate's rows, then up's; with relu2 [I, H/2]."""
    w13_scales: Tensor
    """float8_e4m3fn, swizzled, of w13."""
    w13_global_scale: Tensor
    """float32 [], [1], or [S] for S equal segments of w13's rows; S = 2: gate's and up's."""
    w2: Tensor
    """uint8 or float4_e2m1fn_x2 [N, I/2]."""
    w2_scales: Tensor
    """float8_e4m3fn, swizzled, of [N, I]."""
    w2_global_scale: Tensor
    """float32 [], [1], or [S] for S equal segments of N."""
    x_global_scale: Tensor | None = None
    """A static scale of x, float32 [] or [1]; None gives each row its own."""
    h_global_scale: Tensor | None = None
    """A static scale of act(gate) * up, float32 [] or [1]; None gives each row its own."""
    w13_bias: Tensor | None = None
    """[2I], with relu2 [I], bfloat16, float16 or float32; added in float32."""
    w2_bias: Tensor | None = None
    """[N], as w13_bias."""
    swiglu_limit: float | None = None
    """A limit L: gate becomes min(gate, L) before the activation, up is clamped to [-L, L]."""
    scale_rule: str = AMAX_OVER_SIX
    """A rule that Quantize takes, for x and for act(gate) * up."""
    activation: str = SILU
    """A name that GluQuantize takes."""
    backend: str = ""

    def outputs(self) -> Tensor:
        x = self.x
        check = Checker(self)
        _, hidden = check.floats("x", x)
        first, k = check.weight("w13", self.w13, self.w13_scales, self.w13_global_scale)
        n, intermediate = check.weight("w2", self.w2, self.w2_scales, self.w2_global_scale)
        check.scale_rule(self.scale_rule)
        check.glu(self.swiglu_limit, self.activation)
        check.mlp(hidden, first, k, intermediate, self.activation)
        check.bias("w13_bias", self.w13_bias, first)
        check.bias("w2_bias", self.w2_bias, n)
        check.static_scale("x_global_scale", self.x_global_scale)
        check.static_scale("h_global_scale", self.h_global_scale)
        return x.new_empty((*x.shape[:-1], n))
