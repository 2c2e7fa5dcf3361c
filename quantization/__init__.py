"""Methods of quantizing a weight to NVFP4: each file has one, and all give plain NVFP4.

rtn            a block's largest magnitude to 6 (round to nearest; what makers' tools do by default)
four_over_six  to 6 or to 4, whichever has the smaller squared error
mse            the best of all E4M3 scales for each block
gptq           mse, and each column's error is compensated in the columns to come (needs inputs)
awq            factors for the channels of a layer's input, which other layers then undo

The weight is [N, K], with blocks along K. A method costs no time when the model runs.
"""

from nvfp4.quantization.methods import (
    FOUR_OVER_SIX,
    GPTQ,
    METHODS,
    MSE,
    RTN,
    Packed,
    global_scale_of,
    quantize_matrix,
)

__all__ = [
    "FOUR_OVER_SIX",
    "GPTQ",
    "METHODS",
    "MSE",
    "RTN",
    "Packed",
    "global_scale_of",
    "quantize_matrix",
]
