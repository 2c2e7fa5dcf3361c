"""Quantization with a known global scale (nvfp4::quantize), and of weights."""

import torch
from torch import Tensor

from nvfp4.calls import Quantize
from nvfp4.ops.library import define
from nvfp4.quantization import GPTQ, METHODS, RTN, global_scale_of, quantize_matrix
from nvfp4.spec import quantize as spec
from nvfp4.spec.format import BLOCK, SWIZZLED
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.spec.swizzle import swizzle_scales
from nvfp4.tensors import QuantizedTensor


def quantize(
    x: Tensor,
    global_scale: Tensor | None = None,
    scale_layout: str = SWIZZLED,
    scale_rule: str = AMAX_OVER_SIX,
    backend: str = "",
) -> QuantizedTensor:
    """Quantize x to NVFP4 along its last dimension.

    Args:
        x: [..., K] bfloat16, float16 or float32, K a multiple of 16.
        global_scale: the decode multiplier p, float32 [], [1] or [M] (one per row, M the product of
            the leading dimensions). None: one for the whole tensor, amax / 2688, or
            amax / 1536 with four_over_six.
        scale_layout: "swizzled" (what the GEMMs read) or "linear" (what checkpoints hold).
        scale_rule: how block scales are chosen. "amax_over_six" puts each block's largest magnitude
            at 6. "four_over_six" puts it at 6 or at 4, whichever has the smaller squared error.
        backend: a backend's name, or "" to choose (see nvfp4.explain).

    Raises:
        ValueError: naming the argument, what it needs and what it got.
    """
    p = spec.global_scale(x, scale_rule) if global_scale is None else global_scale
    data, scales = torch.ops.nvfp4.quantize(x, p, scale_layout, scale_rule, backend)
    return QuantizedTensor(data, scales, p, scale_layout)


def quantize_weight(
    w: Tensor,
    k_dim: int = -1,
    global_scale: Tensor | None = None,
    method: str = RTN,
    inputs: Tensor | None = None,
    backend: str = "",
) -> QuantizedTensor:
    """Quantize a weight [N, K] (k_dim=-1 or 1) or [K, N] (k_dim=0) for nvfp4.mm and nvfp4.linear.

    Blocks and packing run along K whichever way the weight is stored; the result is always
    [N, K]: data uint8 [N, K/2], scales swizzled.

    Args:
        global_scale: the decode multiplier p. None: amax / 2688 for rtn, amax / 1536 otherwise.
        method: "rtn" rounds to nearest. "four_over_six" puts a block's largest magnitude at 6 or 4,
            and "mse" tries all block scales that can win: whichever has the least squared error.
            "gptq" also makes up for each column's error in the columns to come.
        inputs: what the layer's inputs look like, [..., K]; gptq alone needs them, and some
            hundreds at least.
        backend: a backend's name, or "" to choose; rtn alone runs on one.
    """
    where = "nvfp4.quantize_weight"
    if w.dim() != 2:
        raise ValueError(f"{where}: w needs 2 dimensions, got shape {list(w.shape)}")
    if k_dim not in (-2, -1, 0, 1):
        raise ValueError(f"{where}: k_dim needs a dimension of w (-2 to 1), got {k_dim}")
    if method not in METHODS:
        raise ValueError(f"{where}: method needs one of {', '.join(METHODS)}, got {method!r}")
    if (inputs is None) == (method == GPTQ):
        need = "inputs [..., K] of the layer" if inputs is None else f"None with method {method!r}"
        raise ValueError(
            f"{where}: inputs needs {need}, got {'None' if inputs is None else 'some'}"
        )
    w = w.T if k_dim in (0, -2) else w
    if method == RTN:
        return quantize(w, global_scale, SWIZZLED, backend=backend)
    n, k = w.shape
    if k == 0 or k % BLOCK:
        raise ValueError(f"{where}: w needs K a multiple of {BLOCK}, got {k}")
    if inputs is not None and inputs.shape[-1] != k:
        got = list(inputs.shape)
        raise ValueError(f"{where}: inputs needs K = {k} as its last dimension, got shape {got}")
    p = global_scale_of([w], method) if global_scale is None else global_scale
    data, scales = quantize_matrix(w, p, method, None if inputs is None else _hessian(inputs))
    return QuantizedTensor(data, swizzle_scales(scales), p, SWIZZLED)


def _hessian(inputs: Tensor) -> Tensor:
    x = inputs.reshape(-1, inputs.shape[-1]).float()
    return x.T @ x


define(Quantize)
