"""A linear layer with NVFP4 weights."""

from typing import Any

import torch
from torch import Tensor, nn

from nvfp4.ops import QuantizedTensor, quantize_weight
from nvfp4.spec.format import SCALE_DTYPE


class Linear(nn.Module):
    """y = x W^T + bias through torch.ops.nvfp4.linear.

    Buffers: weight uint8 [N, K/2]; weight_scales float8_e4m3fn, swizzled; weight_global_scale
    float32 [] or [S] (fused parts); input_global_scale float32 [] or None (dynamic, per token);
    bias [N] or None.

    Moving it between dtypes (.to(torch.float16), .half()) moves none of these: the activations'
    dtype is the input's own.
    """

    weight: Tensor
    weight_scales: Tensor
    weight_global_scale: Tensor
    input_global_scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: Tensor | None = None,
        input_global_scale: Tensor | None = None,
        backend: str = "",
    ) -> None:
        super().__init__()
        self.backend = backend
        self.register_buffer("weight", weight.data)
        self.register_buffer("weight_scales", weight.scales)
        self.register_buffer("weight_global_scale", weight.global_scale)
        self.register_buffer("input_global_scale", input_global_scale)
        self.register_buffer("bias", bias)

    @classmethod
    def from_float(
        cls, linear: nn.Linear, input_global_scale: Tensor | None = None, backend: str = ""
    ) -> "Linear":
        """Quantize an nn.Linear whose in_features is a multiple of 16."""
        weight = quantize_weight(linear.weight.detach(), backend=backend)
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(weight, bias, input_global_scale, backend)

    def _apply(self, fn, recurse: bool = True):
        # nn.Module.to(dtype) casts every floating buffer; scales in another dtype are other
        # numbers.
        def moved_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(moved_only, recurse)

    # pickle cannot read a float8 tensor back (torch.save can), so the scales travel as bytes.

    def __getstate__(self) -> dict[str, Any]:
        scales = self.weight_scales.view(torch.uint8)
        return self.__dict__ | {"_buffers": self._buffers | {"weight_scales": scales}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.weight_scales = self.weight_scales.view(SCALE_DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.nvfp4.linear(
            x,
            self.weight,
            self.weight_scales,
            self.weight_global_scale,
            self.input_global_scale,
            self.bias,
            self.backend,
        )

    def extra_repr(self) -> str:
        n, half_k = self.weight.shape
        scale = "dynamic" if self.input_global_scale is None else "static"
        shape = f"in_features={2 * half_k}, out_features={n}"
        return f"{shape}, bias={self.bias is not None}, input_scale={scale}"
