"""A linear layer of activations in 16 bits, in float64."""

import torch
from torch import Tensor

from nvfp4.backends.reference.mm import multiply
from nvfp4.calls import Linear, takes
from nvfp4.spec.swizzle import unswizzle_scales


@takes(Linear.prepared)
def weight_only_linear(call: Linear, out: Tensor) -> None:
    x = call.x.bfloat16() if call.x.dtype == torch.float32 else call.x
    scales = unswizzle_scales(call.weight_scales, call.weight.shape[0], x.shape[1])
    multiply(x, call.weight, scales, call.weight_global_scale[None], call.bias, out)
