"""nvfp4::dequantize: packed data and scales back to floats."""

import torch
from torch import Tensor

from nvfp4.dispatch import launcher
from nvfp4.ops.checks import Checker, matrix, valid_values, vector
from nvfp4.ops.library import define
from nvfp4.ops.tensor import QuantizedTensor
from nvfp4.spec.format import SWIZZLED
from nvfp4.spec.packing import as_bytes

SIGNATURE = """(Tensor data, Tensor scales, Tensor global_scale, ScalarType? out_dtype=None,
    str scale_layout="swizzled", str backend="") -> Tensor"""


def _outputs(
    data: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    out_dtype: torch.dtype | None = None,
    scale_layout: str = SWIZZLED,
    backend: str = "",
) -> Tensor:
    check = Checker("dequantize", data)
    rows, k = check.packed("data", data)
    check.layout(scale_layout)
    check.scales("scales", scales, (*data.shape[:-1], k), scale_layout)
    check.global_scale("global_scale", global_scale, rows)
    check.out_dtype(out_dtype)
    return data.new_empty((*data.shape[:-1], k), dtype=out_dtype or torch.bfloat16)


def _run(
    data: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    out_dtype: torch.dtype | None = None,
    scale_layout: str = SWIZZLED,
    backend: str = "",
) -> Tensor:
    out = _outputs(data, scales, global_scale, out_dtype, scale_layout)
    valid_values("dequantize", "global_scale", global_scale)
    launch = launcher("dequantize", data.device, backend)
    if out.numel():
        packed, linear_or_tiles = matrix(as_bytes(data)), matrix(scales.contiguous())
        launch(packed, linear_or_tiles, vector(global_scale), scale_layout, matrix(out))
    return out


define("dequantize", SIGNATURE, _outputs, _run)


def dequantize(
    q: QuantizedTensor, out_dtype: torch.dtype = torch.bfloat16, backend: str = ""
) -> Tensor:
    """The values of q, [..., K] in out_dtype: e2m1 * scale * global_scale, rounded to float32 and
    then to out_dtype.
    """
    return torch.ops.nvfp4.dequantize(
        q.data, q.scales, q.row_scales(), out_dtype, q.scale_layout, backend
    )
