"""A checkpoint as a model in float32: the numbers of NVFP4, with sums in float32.

nvfp4.layers.Linear multiplies the same decoded values, but its GEMM on a CPU is the correctly
rounded one, which is many times slower. W4A16 leaves activations in float32 here, not in bf16.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvfp4.checkpoints import load_model
from nvfp4.layers import Linear
from nvfp4.spec.format import W4A4
from nvfp4.spec.quantize import round_trip


class Simulated(nn.Module):
    """An NVFP4 linear layer with its weight decoded to float32."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.weight = layer.packed().dequantize(torch.float32, backend="reference")
        self.bias = layer.bias
        self.pre_quant_scale = layer.pre_quant_scale
        self.input_global_scale = layer.input_global_scale
        self.activation = layer.activation
        self.scale_rule = layer.scale_rule

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_quant_scale is not None:
            x = x * self.pre_quant_scale.to(x.dtype)
        if self.activation == W4A4:
            rows = x.reshape(-1, x.shape[-1])
            x = round_trip(rows, self.input_global_scale, self.scale_rule).view(x.shape)
        return F.linear(x, self.weight, None if self.bias is None else self.bias.float())


def simulated(folder: Path, activation: str, device: str, scale_rule: str) -> Any:
    """Load a checkpoint as a model in float32; experts stay layers of this package."""
    floats = torch.float32
    model = load_model(folder, device, floats, scale_rule=scale_rule, activation=activation)
    for path, layer in list(model.named_modules()):
        if isinstance(layer, Linear):
            model.set_submodule(path, Simulated(layer))
    return model
