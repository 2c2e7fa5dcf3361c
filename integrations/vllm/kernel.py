"""A linear kernel for vLLM's own quantization methods, on a CPU.

They run checkpoints that mix NVFP4 with other formats, which the method "nvfp4" does not take. vLLM
has such kernels for GPUs and none for a CPU. It passes one global scale for all parts of a fused
layer, the largest, which is right only for checkpoints whose parts share it.
"""

from torch import Tensor
from torch.nn import Parameter
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearKernel, NvFp4LinearLayerConfig
from vllm.model_executor.layers.linear import LinearBase

from nvfp4.ops.linear import linear
from nvfp4.spec.swizzle import swizzle_scales


class OpsNvFp4LinearKernel(NvFp4LinearKernel):
    """A linear layer in W4A4 with a static input scale, by torch.ops.nvfp4.linear."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        return True, None

    @classmethod
    def can_implement(cls, config: NvFp4LinearLayerConfig) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: LinearBase) -> None:
        scales = swizzle_scales(layer.weight_scale.data)
        layer.weight_scale = Parameter(scales, requires_grad=False)

    def apply_weights(self, layer: LinearBase, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(
            x,
            layer.weight,
            layer.weight_scale,
            layer.weight_global_scale,
            layer.input_global_scale,
            bias,
        )
