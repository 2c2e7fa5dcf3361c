"""An MLP with NVFP4 weights, gated or not: the dense one, or a mixture's shared expert."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nvfp4.ahead.warmup import compile_ahead, run_once, workload_of
from nvfp4.layers.gated import GatedModule
from nvfp4.ops.quantize import quantize_weight
from nvfp4.spec.format import W4A4, W4A16
from nvfp4.spec.glu import SILU, activate
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.tensors import QuantizedTensor, concatenate


class SwiGLUMLP(GatedModule):
    """An MLP with NVFP4 weights: x [..., H] to [..., N] in x's dtype.

    It computes (act(x gate^T) * (x up^T)) down^T by torch.ops.nvfp4.swiglu_mlp.
    w13 holds gate and up, [2I, H]: first the rows of gate, then those of up, as in checkpoints.
    Where they alternate, layers.deinterleave_gate_up sorts them at load. With relu2 there is no
    gate, and w13 is up's [I, H].

    `activation_format` is an attribute that may be set later: "nvfp4" quantizes x and
    act(gate) * up on the way (W4A4). "bf16" leaves both in 16 bits (W4A16): the layer calls
    torch.ops.nvfp4.linear twice, and computes the activation in float32 between. So is
    `scale_rule`, how the block scales of both are chosen: "amax_over_six" or "four_over_six".

    Buffers:
        w13: uint8 [2I, H/2].
        w2: uint8 [N, I/2].
        w13_scales, w2_scales: float8_e4m3fn, swizzled.
        w13_global_scale: float32 [], [1], or [2] with one for gate and one for up.
        w2_global_scale: float32 [].
        x_global_scale: float32 [], or None for a dynamic scale per token.
        h_global_scale: float32 [], the scale of act(gate) * up; None is dynamic, per token.
        w13_bias, w2_bias: [2I] (with relu2 [I]) and [N], any float dtype, or None.
    """

    def __init__(
        self,
        w13: QuantizedTensor,
        w2: QuantizedTensor,
        x_global_scale: Tensor | None = None,
        h_global_scale: Tensor | None = None,
        w13_bias: Tensor | None = None,
        w2_bias: Tensor | None = None,
        swiglu_limit: float | None = None,
        scale_rule: str = AMAX_OVER_SIX,
        activation_format: str = W4A4,
        activation: str = SILU,
        backend: str = "",
    ) -> None:
        w13, w2 = w13.swizzled(), w2.swizzled()
        scales, biases = (x_global_scale, h_global_scale), (w13_bias, w2_bias)
        how = swiglu_limit, scale_rule, activation, backend
        super().__init__(w13, w2, scales, biases, *how)
        self.activation_format = W4A4
        x = torch.empty(0, w13.shape[-1], dtype=torch.bfloat16)
        self._check(x)  # what W4A4 refuses is wrong for W4A16 too
        self.activation_format = activation_format
        self._check(x)

    @classmethod
    def from_float(
        cls,
        gate: nn.Linear | None,
        up: nn.Linear,
        down: nn.Linear,
        x_global_scale: Tensor | None = None,
        h_global_scale: Tensor | None = None,
        swiglu_limit: float | None = None,
        scale_rule: str = AMAX_OVER_SIX,
        activation_format: str = W4A4,
        activation: str = SILU,
        backend: str = "",
    ) -> "SwiGLUMLP":
        """Quantize gate and up [I, H] and down [N, I], each with its own global scale.

        H and I are multiples of 16. gate is None where the activation (relu2) has none.
        """
        first = [up] if gate is None else [gate, up]
        biases = [linear.bias.detach() for linear in first if linear.bias is not None]
        if biases and len(biases) < len(first):
            need = "biases in both gate and up, or in none"
            raise ValueError(f"nvfp4.layers.SwiGLUMLP.from_float: needs {need}, got one")
        w13, (w2,) = (
            [quantize_weight(linear.weight.detach(), backend=backend) for linear in part]
            for part in (first, [down])
        )
        return cls(
            concatenate(w13),
            w2,
            x_global_scale,
            h_global_scale,
            torch.cat(biases) if biases else None,
            None if down.bias is None else down.bias.detach(),
            swiglu_limit,
            scale_rule,
            activation_format,
            activation,
            backend,
        )

    def packed(self) -> tuple[QuantizedTensor, QuantizedTensor]:
        """Return w13 and w2 in the form that nvfp4.swiglu_mlp takes."""
        return (
            QuantizedTensor(self.w13, self.w13_scales, self.w13_global_scale),
            QuantizedTensor(self.w2, self.w2_scales, self.w2_global_scale),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_format != W4A4:
            return self._weight_only(x)
        options = self.swiglu_limit, self.scale_rule, self.activation, self.backend
        return torch.ops.nvfp4.swiglu_mlp(x, *self._tensors(), *options)

    def _weight_only(self, x: Tensor) -> Tensor:
        w13, w2 = self.packed()
        gate_up = self._linear(x, w13, self.x_global_scale, self.w13_bias)
        h = activate(gate_up.float(), self.swiglu_limit, self.activation).to(x.dtype)
        return self._linear(h, w2, self.h_global_scale, self.w2_bias)

    def _linear(
        self, x: Tensor, w: QuantizedTensor, p: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        return torch.ops.nvfp4.linear(
            *(x, w.data, w.scales, w.global_scale, p, bias),
            scale_rule=self.scale_rule,
            activation=self.activation_format,
            backend=self.backend,
        )

    def warmup(
        self, max_tokens: int, dtypes: Iterable[torch.dtype] = (torch.bfloat16,)
    ) -> list[str]:
        """Compile the kernels for calls of up to max_tokens rows; on a GPU, also run them once.

        Such calls can then be captured in a CUDA graph. Returns a line for each kernel that was
        compiled ahead.
        """
        dtypes, device = tuple(dtypes), self.w13.device
        hidden = 2 * self.w13.shape[1]
        done = compile_ahead(
            [
                workload_of(
                    *(w.shape[0], 2 * w.shape[1], max_tokens, dtypes),
                    bias=None if b is None else b.dtype,
                    scale_rule=self.scale_rule,
                    segments=weight_scale.numel(),
                    activation_format=self.activation_format,
                    calibrated=p is not None,
                )
                for w, b, weight_scale, p in (
                    (self.w13, self.w13_bias, self.w13_global_scale, self.x_global_scale),
                    (self.w2, self.w2_bias, self.w2_global_scale, self.h_global_scale),
                )
            ],
            device,
            self.backend,
        )
        run_once(self, hidden, max_tokens, dtypes, device)
        return done

    def extra_repr(self) -> str:
        n, half_intermediate = self.w2.shape
        sizes = f"hidden={2 * self.w13.shape[1]}, intermediate={2 * half_intermediate}"
        sizes += "" if n == 2 * self.w13.shape[1] else f", out_features={n}"
        w4a16 = f", activation_format={W4A16}" if self.activation_format == W4A16 else ""
        return f"{sizes}, {glu_repr(self)}{w4a16}"


def glu_repr(layer: nn.Module) -> str:
    """The part of a layer's repr about its activation, its biases and its scales."""
    limit = "" if layer.swiglu_limit is None else f", swiglu_limit={layer.swiglu_limit}"
    bias = "" if layer.w13_bias is None and layer.w2_bias is None else ", bias=True"
    x, h = (
        "dynamic" if scale is None else "static"
        for scale in (layer.x_global_scale, layer.h_global_scale)
    )
    rule = "" if layer.scale_rule == AMAX_OVER_SIX else f", scale_rule={layer.scale_rule}"
    return f"activation={layer.activation}{limit}{bias}, x_scale={x}, h_scale={h}{rule}"
