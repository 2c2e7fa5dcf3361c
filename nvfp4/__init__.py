"""NVFP4 operators for PyTorch: one spec, one set of torch ops, kernels for each machine.

Importing it registers torch.ops.nvfp4.*. The functions below call them.
"""

from nvfp4.checkout import real_folders

__path__ = real_folders(__name__, __file__)

from nvfp4 import layers
from nvfp4.ahead.warmup import warmup, warmup_moe
from nvfp4.backends.emulation import emulate
from nvfp4.checkpoints.quantize_model import quantize_model
from nvfp4.dispatch.explain import Explanation, explain
from nvfp4.ops.dequantize import dequantize
from nvfp4.ops.glu_quantize import glu_quantize, grouped_glu_quantize
from nvfp4.ops.grouped_mm import grouped_mm
from nvfp4.ops.grouped_mm_glu_quantize import grouped_mm_glu_quantize
from nvfp4.ops.linear import linear
from nvfp4.ops.mm import mm
from nvfp4.ops.moe import moe
from nvfp4.ops.moe_combine import moe_combine
from nvfp4.ops.moe_dispatch import moe_dispatch
from nvfp4.ops.quantize import quantize, quantize_weight
from nvfp4.ops.quantize_dynamic import quantize_dynamic
from nvfp4.ops.quantize_experts import quantize_experts
from nvfp4.ops.rmsnorm_quantize import rmsnorm_quantize
from nvfp4.ops.silu_mul_quantize import silu_mul_quantize
from nvfp4.ops.swiglu_mlp import swiglu_mlp
from nvfp4.spec.quantize import global_scale
from nvfp4.spec.swizzle import swizzle_scales, unswizzle_scales
from nvfp4.tensors import (
    ExpertRows,
    ExpertWeights,
    QuantizedTensor,
    concatenate,
    stack_experts,
)
from nvfp4.version import VERSION

__version__ = VERSION

__all__ = [
    "ExpertRows",
    "ExpertWeights",
    "Explanation",
    "QuantizedTensor",
    "concatenate",
    "dequantize",
    "emulate",
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
    "quantize_model",
    "quantize_weight",
    "rmsnorm_quantize",
    "silu_mul_quantize",
    "stack_experts",
    "swiglu_mlp",
    "swizzle_scales",
    "unswizzle_scales",
    "warmup",
    "warmup_moe",
]
