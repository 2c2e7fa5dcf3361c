"""NVFP4 in torchao: `quantize_(model, NvFp4Config())` makes nvfp4.layers.Linear of its layers."""

from dataclasses import dataclass

from torch import nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler

from nvfp4.layers import Linear
from nvfp4.spec.format import BLOCK, W4A4
from nvfp4.spec.scale_rules import AMAX_OVER_SIX

__all__ = ["NvFp4Config"]


@dataclass
class NvFp4Config(AOBaseConfig):
    """Quantize a linear layer to NVFP4; one whose K is not a multiple of 16 stays as it is.

    scale_rule: of the activations' block scales, as nvfp4.quantize takes it.
    activation: "nvfp4" (W4A4) with one scale per token, or "bf16" (W4A16).
    backend: a backend's name, or "" to choose at each call.
    """

    scale_rule: str = AMAX_OVER_SIX
    activation: str = W4A4
    backend: str = ""


@register_quantize_module_handler(NvFp4Config)
def _quantized(module: nn.Linear, config: NvFp4Config) -> nn.Module:
    if module.in_features % BLOCK:
        return module
    how = config.scale_rule, config.activation, config.backend
    return Linear.from_float(module, None, *how)
