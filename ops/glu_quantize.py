"""What an MLP does between its two GEMMs, with its result quantized (nvfp4::glu_quantize)."""

import torch
from torch import Tensor

from nvfp4.calls import GluQuantize
from nvfp4.ops.library import define
from nvfp4.spec.format import SWIZZLED
from nvfp4.spec.glu import SILU
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.tensors import ExpertRows, QuantizedTensor


def glu_quantize(
    gate_up: Tensor,
    global_scale: Tensor | None = None,
    swiglu_limit: float | None = None,
    scale_layout: str = SWIZZLED,
    scale_rule: str = AMAX_OVER_SIX,
    activation: str = SILU,
    backend: str = "",
) -> QuantizedTensor:
    """Quantize act(gate) * up, with gate = gate_up[..., :I] and up = gate_up[..., I:].

    Args:
        gate_up: [..., 2I] bfloat16, float16 or float32, I a multiple of 16; with relu2 [..., I].
        global_scale: of the result; float32 [], [1] or [M] (one per row); None: each row its own,
            amax_row / 2688 (amax_row / 1536 with four_over_six), found in the same pass.
        swiglu_limit: with a limit L, gate is min(gate, L) *before* the activation and up is
            clamp(up, -L, L).
        scale_rule: as nvfp4.quantize.
        activation: "silu" (SwiGLU), "gelu_tanh" (GeGLU), "swiglu_oai" (gpt-oss, MiniMax-M3):
            gate * sigmoid(1.702 gate) * (up + 1), or "relu2" (Nemotron-3): max(x, 0)^2 of each of
            the I columns, without a gate.

    The arithmetic is float32 throughout and the same to the bit on every backend (spec/glu.py).
    Returns data [..., I/2], its scales, and global_scale [M].
    """
    data, scales, p = torch.ops.nvfp4.glu_quantize(
        gate_up, global_scale, None, swiglu_limit, scale_layout, scale_rule, activation, backend
    )
    return QuantizedTensor(data, scales, p, scale_layout)


def grouped_glu_quantize(
    gate_up: Tensor,
    offsets: Tensor,
    global_scale: Tensor | None = None,
    swiglu_limit: float | None = None,
    scale_rule: str = AMAX_OVER_SIX,
    activation: str = SILU,
    backend: str = "",
) -> ExpertRows:
    """Quantize act(gate) * up of expert-major rows gate_up [R, 2I], the scales grouped.

    With relu2 gate_up is [R, I].
    global_scale: float32 [], [1] or [E] (one per expert), calibrated; None: each row's own.
    """
    data, scales, p = torch.ops.nvfp4.glu_quantize(
        gate_up, global_scale, offsets, swiglu_limit, SWIZZLED, scale_rule, activation, backend
    )
    return ExpertRows(data, scales, p, offsets)


define(GluQuantize)
