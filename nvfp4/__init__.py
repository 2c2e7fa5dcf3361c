"""NVFP4 operators for PyTorch: one spec, one set of torch ops, kernels for each machine.

Importing it registers torch.ops.nvfp4.*. The functions below call them.
"""

from nvfp4.checkout import real_folders

__path__ = real_folders(__name__, __file__)

from nvfp4 import layers
from nvfp4.ops import (
    ExpertRows,
    ExpertWeights,
    Explanation,
    QuantizedTensor,
    concatenate,
    dequantize,
    explain,
    global_scale,
    glu_quantize,
    grouped_glu_quantize,
    grouped_mm,
    grouped_mm_glu_quantize,
    linear,
    mm,
    moe,
    moe_combine,
    moe_dispatch,
    quantize,
    quantize_dynamic,
    quantize_experts,
    quantize_weight,
    silu_mul_quantize,
    stack_experts,
    swiglu_mlp,
    warmup,
    warmup_moe,
)
from nvfp4.spec.swizzle import swizzle_scales, unswizzle_scales
from nvfp4.version import VERSION

__version__ = VERSION

__all__ = [
    "ExpertRows",
    "ExpertWeights",
    "Explanation",
    "QuantizedTensor",
    "concatenate",
    "dequantize",
    "explain",
    "global_scale",
    "glu_quantize",
    "grouped_glu_quantize",
    "grouped_mm",
    "grouped_mm_glu_quantize",
    "layers",
    "linear",
    "mm",
    "moe",
    "moe_combine",
    "moe_dispatch",
    "quantize",
    "quantize_dynamic",
    "quantize_experts",
    "quantize_weight",
    "silu_mul_quantize",
    "stack_experts",
    "swiglu_mlp",
    "swizzle_scales",
    "unswizzle_scales",
    "warmup",
    "warmup_moe",
]
