"""Quantization with one global scale per row, found in the same pass (nvfp4::quantize_dynamic)."""

import torch
from torch import Tensor

from nvfp4.calls import QuantizeDynamic
from nvfp4.ops.library import define
from nvfp4.spec.format import SWIZZLED
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.tensors import QuantizedTensor


def quantize_dynamic(
    x: Tensor, scale_layout: str = SWIZZLED, scale_rule: str = AMAX_OVER_SIX, backend: str = ""
) -> QuantizedTensor:
    """Quantize activations x [..., K]: each row (token) gets its own p = amax_row / 2688.

    With scale_rule="four_over_six" p is amax_row / 1536; see nvfp4.quantize.

    One pass, no host synchronization, and a row's result never depends on the other rows.
    The result's global_scale is float32 [M], M the product of the leading dimensions.
    """
    data, scales, p = torch.ops.nvfp4.quantize_dynamic(x, scale_layout, scale_rule, backend)
    return QuantizedTensor(data, scales, p, scale_layout)


define(QuantizeDynamic)
