"""Quantization with a known global scale (nvfp4::quantize), and of weights."""

import torch
from torch import Tensor

from nvfp4.calls import Quantize
from nvfp4.ops.library import define
from nvfp4.spec import quantize as spec
from nvfp4.spec.format import SWIZZLED
from nvfp4.tensors import QuantizedTensor


def quantize(
    x: Tensor, global_scale: Tensor | None = None, scale_layout: str = SWIZZLED, backend: str = ""
) -> QuantizedTensor:
    """Quantize x to NVFP4 along its last dimension.

    Args:
        x: [..., K] bfloat16, float16 or float32, K a multiple of 16.
        global_scale: the decode multiplier p, float32 [], [1] or [M] (one per row, M the product of
            the leading dimensions). None: one for the whole tensor, amax / 2688.
        scale_layout: "swizzled" (what the GEMMs read) or "linear" (what checkpoints hold).
        backend: a backend's name, or "" to choose (see nvfp4.explain).

    Raises:
        ValueError: naming the argument, what it needs and what it got.
    """
    p = spec.global_scale(x) if global_scale is None else global_scale
    data, scales = torch.ops.nvfp4.quantize(x, p, scale_layout, backend)
    return QuantizedTensor(data, scales, p, scale_layout)


def quantize_weight(
    w: Tensor, k_dim: int = -1, global_scale: Tensor | None = None, backend: str = ""
) -> QuantizedTensor:
    """Quantize a weight [N, K] (k_dim=-1 or 1) or [K, N] (k_dim=0) for nvfp4.mm and nvfp4.linear.

    Blocks and packing run along K whichever way the weight is stored; the result is always
    [N, K]: data uint8 [N, K/2], scales swizzled.
    """
    if w.dim() != 2:
        raise ValueError(f"nvfp4.quantize_weight: w needs 2 dimensions, got shape {list(w.shape)}")
    if k_dim not in (-2, -1, 0, 1):
        raise ValueError(
            f"nvfp4.quantize_weight: k_dim needs a dimension of w (-2 to 1), got {k_dim}"
        )
    return quantize(w.T if k_dim in (0, -2) else w, global_scale, SWIZZLED, backend)


define(Quantize)
