"""A linear layer with NVFP4 weights."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from nvfp4.ahead.warmup import compile_ahead, run_once, workload_of
from nvfp4.layers.module import PackedModule
from nvfp4.ops.quantize import quantize_weight
from nvfp4.spec.format import LINEAR, W4A4
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.tensors import QuantizedTensor, concatenate


class Linear(PackedModule):
    """A linear layer with NVFP4 weights: y = x W^T + bias, x [..., K] to [..., N] in x's dtype.

    It calls torch.ops.nvfp4.linear. `activation` is an attribute that may be set later:
    "nvfp4" quantizes x on the way (W4A4), and "bf16" leaves x in 16 bits (W4A16). So is
    `scale_rule`, how x's block scales are chosen: "amax_over_six" or "four_over_six".

    Buffers:
        weight: uint8 [N, K/2].
        weight_scales: float8_e4m3fn, swizzled.
        weight_global_scale: float32 [], or [S] for S fused parts.
        input_global_scale: float32 [], or None for a dynamic scale per token.
        bias: [N] or None.
        pre_quant_scale: [K] or None; AWQ multiplies x by it, in x's dtype, before quantizing.
    """

    weight: Tensor
    weight_scales: Tensor
    weight_global_scale: Tensor
    input_global_scale: Tensor | None
    bias: Tensor | None
    pre_quant_scale: Tensor | None

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: Tensor | None = None,
        input_global_scale: Tensor | None = None,
        pre_quant_scale: Tensor | None = None,
        scale_rule: str = AMAX_OVER_SIX,
        activation: str = W4A4,
        backend: str = "",
    ) -> None:
        super().__init__(backend)
        self.scale_rule = scale_rule
        self.activation = activation
        weight = weight.swizzled()
        self._register(
            weight=weight.data,
            weight_scales=weight.scales,
            weight_global_scale=weight.global_scale,
            input_global_scale=input_global_scale,
            bias=bias,
            pre_quant_scale=pre_quant_scale,
        )
        if pre_quant_scale is not None and pre_quant_scale.shape != weight.shape[-1:]:
            need, got = f"shape {list(weight.shape[-1:])}", list(pre_quant_scale.shape)
            raise ValueError(f"nvfp4.layers.Linear: pre_quant_scale needs {need}, got {got}")
        self._check(torch.empty(0, weight.shape[-1], dtype=torch.bfloat16))

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        input_global_scale: Tensor | None = None,
        scale_rule: str = AMAX_OVER_SIX,
        activation: str = W4A4,
        backend: str = "",
    ) -> "Linear":
        """Quantize an nn.Linear whose in_features is a multiple of 16."""
        weight = quantize_weight(linear.weight.detach(), backend=backend)
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(weight, bias, input_global_scale, None, scale_rule, activation, backend)

    @classmethod
    def from_packed(
        cls,
        weight: Tensor,
        weight_scale: Tensor,
        weight_global_scale: Tensor,
        input_global_scale: Tensor | None = None,
        bias: Tensor | None = None,
        scale_layout: str = LINEAR,
        backend: str = "",
    ) -> "Linear":
        """Make a layer from tensors as checkpoints hold them.

        Args:
            weight: uint8 [N, K/2], even k in the low nibble.
            weight_scale: float8_e4m3fn [N, K/16]; with scale_layout="swizzled" [Np, Kp], already as
                the GEMMs read it. Many shapes are equal in both, so scale_layout has to say which.
            weight_global_scale, input_global_scale: float32 [] or [1], multipliers like ModelOpt's
                weight_scale_2 and input_scale. A divisor has to be inverted first.
            bias: [N].

        Raises:
            ValueError: for a scale that is NaN or negative, a global scale that is not finite and
                positive, or a shape that does not fit.
        """
        packed = QuantizedTensor(weight, weight_scale, weight_global_scale, scale_layout)
        return cls(packed.validate(), bias, input_global_scale, backend=backend)

    @classmethod
    def fused(
        cls,
        parts: Sequence[QuantizedTensor] | Sequence[nn.Linear],
        bias: Tensor | None = None,
        input_global_scale: Tensor | None = None,
        backend: str = "",
    ) -> "Linear":
        """Join layers with the same input (q, k, v; gate, up): their outputs stand side by side.

        Every part keeps its own global scale. `bias` [sum of N_i] is for packed parts. Parts that
        are nn.Linear bring their own biases, all of them or none.
        """
        packed = [p for p in parts if isinstance(p, QuantizedTensor)]
        floats = [p for p in parts if isinstance(p, nn.Linear)]
        if not parts or len(parts) not in (len(packed), len(floats)):
            got = [type(part).__name__ for part in parts]
            need = "QuantizedTensors or nn.Linears, at least one"
            raise ValueError(f"nvfp4.layers.Linear.fused: parts needs {need}, got {got}")
        if floats:
            bias = _biases(floats, bias)
            packed = [quantize_weight(p.weight.detach(), backend=backend) for p in floats]
        return cls(concatenate(packed), bias, input_global_scale, backend=backend)

    def packed(self) -> QuantizedTensor:
        """Return the weight in the form that nvfp4.mm takes."""
        return QuantizedTensor(self.weight, self.weight_scales, self.weight_global_scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_quant_scale is not None:
            x = x * self.pre_quant_scale.to(x.dtype)
        return torch.ops.nvfp4.linear(
            x,
            self.weight,
            self.weight_scales,
            self.weight_global_scale,
            self.input_global_scale,
            self.bias,
            self.scale_rule,
            self.activation,
            self.backend,
        )

    def warmup(
        self, max_tokens: int, dtypes: Iterable[torch.dtype] = (torch.bfloat16,)
    ) -> list[str]:
        """Compile the kernels for calls of up to max_tokens rows; on a GPU, also run them once.

        Such calls can then be captured in a CUDA graph. Returns a line for each kernel that was
        compiled ahead.
        """
        n, half_k = self.weight.shape
        bias = None if self.bias is None else self.bias.dtype
        work = workload_of(
            *(n, 2 * half_k, max_tokens, dtypes, bias, self.scale_rule, self.activation),
            segments=self.weight_global_scale.numel(),
            calibrated=self.input_global_scale is not None,
        )
        done = compile_ahead([work], self.weight.device, self.backend)
        run_once(self, 2 * half_k, max_tokens, work.dtypes, self.weight.device)
        return done

    def extra_repr(self) -> str:
        n, half_k = self.weight.shape
        scale = "dynamic" if self.input_global_scale is None else "static"
        shape = f"in_features={2 * half_k}, out_features={n}"
        rule = "" if self.scale_rule == AMAX_OVER_SIX else f", scale_rule={self.scale_rule}"
        return f"{shape}, bias={self.bias is not None}, input_scale={scale}{rule}"


def _biases(parts: Sequence[nn.Linear], bias: Tensor | None) -> Tensor | None:
    own = [part.bias.detach() for part in parts if part.bias is not None]
    if own and (len(own) != len(parts) or bias is not None):
        need = "biases in all parts or in none, and no other"
        got = f"{len(own)} in {len(parts)} parts, and {'no other' if bias is None else 'another'}"
        raise ValueError(f"nvfp4.layers.Linear.fused: parts needs {need}, got {got}")
    return torch.cat(own) if own else bias
