"""Calls as values: one class an op, whose fields are the op's schema.

A call checks its arguments and allocates what it returns (`outputs`), which is the op's fake. Ops
build calls from what users pass; backends' launchers take them in one form (`prepared`).
"""

from nvfp4.calls.call import Call, op_of, schema_of, takes
from nvfp4.calls.glu_quantize import GluQuantize, SiluMulQuantize
from nvfp4.calls.grouped_mm import GroupedMm, GroupedMmGluQuantize
from nvfp4.calls.linear import Linear
from nvfp4.calls.mm import Mm, StageMm
from nvfp4.calls.moe import Moe, MoeCombine, MoeDispatch
from nvfp4.calls.outputs import Dispatched, Normalized, Packed, Quantized
from nvfp4.calls.quantize import Dequantize, Quantize, QuantizeDynamic
from nvfp4.calls.rmsnorm_quantize import RmsnormQuantize
from nvfp4.calls.swiglu_mlp import SwigluMlp

__all__ = [
    "Call",
    "Dequantize",
    "Dispatched",
    "GluQuantize",
    "GroupedMm",
    "GroupedMmGluQuantize",
    "Linear",
    "Mm",
    "Moe",
    "MoeCombine",
    "MoeDispatch",
    "Normalized",
    "Packed",
    "Quantize",
    "QuantizeDynamic",
    "Quantized",
    "RmsnormQuantize",
    "SiluMulQuantize",
    "StageMm",
    "SwigluMlp",
    "op_of",
    "schema_of",
    "takes",
]
