"""nvfp4::quantize: floats to packed data and block scales, with a known global scale."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nvfp4.dispatch import launcher
from nvfp4.ops.checks import Checker, matrix, valid_values, vector
from nvfp4.ops.library import define
from nvfp4.ops.tensor import QuantizedTensor
from nvfp4.spec import quantize as spec
from nvfp4.spec.format import DATA_DTYPE, SCALE_DTYPE, SWIZZLED
from nvfp4.spec.swizzle import scales_shape

SIGNATURE = """(Tensor x, Tensor global_scale, str scale_layout="swizzled", str backend="")
    -> (Tensor data, Tensor scales)"""


def empty_quantized(
    like: Tensor, lead: Sequence[int], k: int, scale_layout: str
) -> tuple[Tensor, Tensor]:
    """Unwritten data and scales of a logical [*lead, k] tensor, on the device of `like`."""
    data = like.new_empty((*lead, k // 2), dtype=DATA_DTYPE)
    return data, like.new_empty(scales_shape((*lead, k), scale_layout), dtype=SCALE_DTYPE)


def _outputs(
    x: Tensor, global_scale: Tensor, scale_layout: str = SWIZZLED, backend: str = ""
) -> tuple[Tensor, Tensor]:
    check = Checker("quantize", x)
    rows, k = check.floats("x", x)
    check.layout(scale_layout)
    check.global_scale("global_scale", global_scale, rows)
    return empty_quantized(x, x.shape[:-1], k, scale_layout)


def _run(
    x: Tensor, global_scale: Tensor, scale_layout: str = SWIZZLED, backend: str = ""
) -> tuple[Tensor, Tensor]:
    data, scales = _outputs(x, global_scale, scale_layout)
    valid_values("quantize", "global_scale", global_scale)
    launch = launcher("quantize", x.device, backend)
    if data.numel():
        launch(matrix(x), vector(global_scale), scale_layout, matrix(data), matrix(scales))
    return data, scales


define("quantize", SIGNATURE, _outputs, _run)


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
