"""Methods of quantizing a weight to NVFP4: each file has one, and all give plain NVFP4.

    rtn            a block's largest magnitude to 6: round to nearest, the usual default
    four_over_six  to 6 or to 4, whichever has the smaller squared error
    mse            the best of all E4M3 scales for each block
    gptq           mse, and later columns make up for each column's error (needs inputs)
    awq            factors for the channels of a layer's input, which the layer before undoes

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
