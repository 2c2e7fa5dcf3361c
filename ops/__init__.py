"""What can be called: one file a contract, with its schema, checks, fake and Python function.

Importing this package registers torch.ops.nvfp4.*.
"""

from nvfp4.ops.dequantize import dequantize
from nvfp4.ops.explain import Explanation, explain
from nvfp4.ops.linear import linear
from nvfp4.ops.mm import mm
from nvfp4.ops.quantize import quantize, quantize_weight
from nvfp4.ops.quantize_dynamic import quantize_dynamic
from nvfp4.ops.silu_mul_quantize import silu_mul_quantize
from nvfp4.ops.tensor import QuantizedTensor, concatenate
from nvfp4.ops.warmup import warmup
from nvfp4.spec.quantize import global_scale

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
    "warmup",
]
