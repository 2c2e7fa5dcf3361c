"""What stands between an MLP's two GEMMs, in arithmetic that gives the same bits on every machine.

Gated units compute act(gate) * up. SwiGLU has act = silu, GeGLU has the tanh form of gelu, and the
SwiGLU of gpt-oss and MiniMax-M3 adds 1 to up. Their act is g * sigmoid(z) = g / (1 + 2^t):

    silu        t = g * -log2(e)
    gelu_tanh   t = g * (c0 + c1 * (g * g)),  c0 = -2 sqrt(2/pi) log2(e), c1 = 0.044715 c0
    swiglu_oai  t = g * (-1.702 log2(e)),     and the product is act(gate) * (up + 1)

relu2 (Nemotron) has no gate: it is max(x, 0)^2 of each column.

Libraries round the exponential differently, and a difference in its last bit moves a 4-bit code. So
it is written here as float32 operations that IEEE 754 defines to the bit, each rounded once:
2^t = 2^n * 2^f with n = round(t), and a polynomial gives 2^f for |f| <= 1/2. Its relative error is
below 1e-7. The error of silu is below 4e-7 for g > -5 and below 2e-6 everywhere.
"""

import torch
from torch import Tensor

SILU = "silu"
GELU_TANH = "gelu_tanh"
SWIGLU_OAI = "swiglu_oai"
RELU2 = "relu2"
GATED = (SILU, GELU_TANH, SWIGLU_OAI)
"""The activations of a gate, whose result multiplies up."""
ACTIVATIONS = (*GATED, RELU2)

NEG_LOG2_E = -1.44269502162933349609375
"""float32(-log2(e))."""

SWIGLU_OAI_SLOPE = -2.455466985702514648437500
"""float32(-1.702 log2(e)); 1.702 is the alpha of the models that have swiglu_oai, 1 their beta."""

GELU_C0 = -2.302208185195922851562500
"""float32(-2 sqrt(2/pi) log2(e))."""

GELU_C1 = -0.102943241596221923828125
"""float32(0.044715 * -2 sqrt(2/pi) log2(e))."""

EXP2_MIN, EXP2_MAX = -126.0, 128.0
"""2^t is clamped to [2^-126, Inf]; at both ends act(g) is g or 0 to the last bit anyway."""

ROUND_TO_INT = 12582912.0
"""1.5 * 2^23: adding it to a float32 below 2^22 leaves round(t) in the low mantissa bits."""

EXP2_COEFFICIENTS = (
    0.6931470036506653,
    0.24022242426872253,
    0.05550733581185341,
    0.009671512991189957,
    0.001326472731307149,
)
"""The polynomial 2^f = 1 + f*(c0 + f*(c1 + ...)) on [-1/2, 1/2], with a near-minimal error."""


def _exp2(t: Tensor) -> Tensor:
    t = t.clamp(EXP2_MIN, EXP2_MAX)
    shifted = t + ROUND_TO_INT
    f = t - (shifted - ROUND_TO_INT)
    poly = torch.full_like(f, EXP2_COEFFICIENTS[-1])
    for c in reversed((1.0, *EXP2_COEFFICIENTS[:-1])):
        poly = poly.mul_(f).add_(c)
    # The low bits of `shifted` are n; shifted into the exponent field they multiply by 2^n.
    return (poly.view(torch.int32) + (shifted.view(torch.int32) << 23)).view(torch.float32)


def columns_per_output(activation: str) -> int:
    """How many columns make one of the result: 2 where gate and up stand side by side, else 1."""
    return 2 if activation in GATED else 1


def glu(
    gate: Tensor, up: Tensor, swiglu_limit: float | None = None, activation: str = SILU
) -> Tensor:
    """Compute act(gate) * up in float32, or act(gate) * (up + 1) for swiglu_oai.

    With a swiglu_limit L, gate is min(gate, L) before the activation and up is clamp(up, -L, L).
    """
    if swiglu_limit is not None:
        gate = gate.clamp(max=swiglu_limit)
        up = up.clamp(-swiglu_limit, swiglu_limit)
    if activation == SWIGLU_OAI:
        up = up + 1.0
    if activation == GELU_TANH:
        slope: float | Tensor = gate * gate * GELU_C1 + GELU_C0
    else:
        slope = {SILU: NEG_LOG2_E, SWIGLU_OAI: SWIGLU_OAI_SLOPE}[activation]
    return torch.div(gate, _exp2(gate * slope) + 1.0).mul_(up)


def activate(x: Tensor, swiglu_limit: float | None = None, activation: str = SILU) -> Tensor:
    """Compute an activation of float32 columns: x [..., 2I], gate's then up's, or x [..., I]."""
    if activation == RELU2:
        positive = x.clamp(min=0.0)  # keeps a NaN
        return positive.mul_(positive)
    gate, up = x.chunk(2, dim=-1)
    return glu(gate, up, swiglu_limit, activation)
