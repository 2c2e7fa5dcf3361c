"""nvfp4::quantize_dynamic: quantization with one global scale per row, found in the same pass."""

import torch
from torch import Tensor

from nvfp4.dispatch import launcher
from nvfp4.ops.checks import Checker, matrix
from nvfp4.ops.library import define
from nvfp4.ops.quantize import empty_quantized
from nvfp4.ops.tensor import QuantizedTensor
from nvfp4.spec.format import SWIZZLED

SIGNATURE = """(Tensor x, str scale_layout="swizzled", str backend="")
    -> (Tensor data, Tensor scales, Tensor global_scale)"""


def _outputs(
    x: Tensor, scale_layout: str = SWIZZLED, backend: str = ""
) -> tuple[Tensor, Tensor, Tensor]:
    check = Checker("quantize_dynamic", x)
    rows, k = check.floats("x", x)
    check.layout(scale_layout)
    data, scales = empty_quantized(x, x.shape[:-1], k, scale_layout)
    return data, scales, x.new_empty((rows,), dtype=torch.float32)


def _run(
    x: Tensor, scale_layout: str = SWIZZLED, backend: str = ""
) -> tuple[Tensor, Tensor, Tensor]:
    data, scales, global_scale = _outputs(x, scale_layout)
    launch = launcher("quantize_dynamic", x.device, backend)
    if data.numel():
        launch(matrix(x), scale_layout, matrix(data), matrix(scales), global_scale)
    return data, scales, global_scale


define("quantize_dynamic", SIGNATURE, _outputs, _run)


def quantize_dynamic(x: Tensor, scale_layout: str = SWIZZLED, backend: str = "") -> QuantizedTensor:
    """Quantize activations x [..., K]: each row (token) gets its own p = amax_row / 2688.

    One pass, no host synchronization, and a row's result never depends on the other rows.
    The result's global_scale is float32 [M], M the product of the leading dimensions.
    """
    data, scales, p = torch.ops.nvfp4.quantize_dynamic(x, scale_layout, backend)
    return QuantizedTensor(data, scales, p, scale_layout)
