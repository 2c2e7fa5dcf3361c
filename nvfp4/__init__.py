"""NVFP4 operators for every GPU: one spec, one set of torch ops, the best kernels of each machine.

Importing it registers torch.ops.nvfp4.quantize, quantize_dynamic, dequantize, silu_mul_quantize,
mm and linear; the functions below are their Python face.
"""

from nvfp4.ops import (
    Explanation,
    QuantizedTensor,
    concatenate,
    dequantize,
    explain,
    global_scale,
    linear,
    mm,
    quantize,
    quantize_dynamic,
    quantize_weight,
    silu_mul_quantize,
    warmup,
)
from nvfp4.spec.swizzle import swizzle_scales, unswizzle_scales
from nvfp4.version import VERSION

__version__ = VERSION

__all__ = [
    "Explanation",
    "QuantizedTensor",
    "concatenate",
    "dequantize",
    "explain",
    "global_scale",
    "linear",
    "mm",
    "quantize",
    "quantize_dynamic",
    "quantize_weight",
    "silu_mul_quantize",
    "swizzle_scales",
    "unswizzle_scales",
    "warmup",
]
