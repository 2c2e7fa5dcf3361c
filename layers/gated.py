"""What an MLP and a mixture of experts have in common."""

from torch import Tensor

from nvfp4.layers.module import PackedModule
from nvfp4.tensors import ExpertWeights, QuantizedTensor


class GatedModule(PackedModule):
    """Two packed weights, w13 (gate's rows, then up's) and w2, with what is between them.

    With relu2 w13 has up's rows alone.

    Buffers: w13, w2 uint8; w13_scales, w2_scales float8_e4m3fn; w13_global_scale, w2_global_scale
    float32; x_global_scale, h_global_scale float32 or None; w13_bias, w2_bias any float or None.
    """

    w13: Tensor
    w13_scales: Tensor
    w13_global_scale: Tensor
    w2: Tensor
    w2_scales: Tensor
    w2_global_scale: Tensor
    x_global_scale: Tensor | None
    h_global_scale: Tensor | None
    w13_bias: Tensor | None
    w2_bias: Tensor | None
    activation_format: str

    def __init__(
        self,
        w13: QuantizedTensor | ExpertWeights,
        w2: QuantizedTensor | ExpertWeights,
        scales: tuple[Tensor | None, Tensor | None],
        biases: tuple[Tensor | None, Tensor | None],
        swiglu_limit: float | None,
        scale_rule: str,
        activation: str,
        backend: str,
    ) -> None:
        """Register the weights, the static scales of x and of act(gate) * up, and the biases."""
        super().__init__(backend)
        self.swiglu_limit = swiglu_limit
        self.scale_rule = scale_rule
        self.activation = activation
        self._register(
            w13=w13.data,
            w13_scales=w13.scales,
            w13_global_scale=w13.global_scale,
            w2=w2.data,
            w2_scales=w2.scales,
            w2_global_scale=w2.global_scale,
            x_global_scale=scales[0],
            h_global_scale=scales[1],
            w13_bias=biases[0],
            w2_bias=biases[1],
        )

    def _tensors(self) -> tuple[Tensor | None, ...]:
        """The buffers in the order of the ops' schemas."""
        first = self.w13, self.w13_scales, self.w13_global_scale
        second = self.w2, self.w2_scales, self.w2_global_scale
        scales = self.x_global_scale, self.h_global_scale
        return *first, *second, *scales, self.w13_bias, self.w2_bias
