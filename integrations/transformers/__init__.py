"""NVFP4 in transformers: from_pretrained of ModelOpt's checkpoints, and quantizing while loading.

Importing it registers the method "modelopt" in transformers' public registry of quantizers.
"""

import warnings

import transformers
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)

from nvfp4.integrations.transformers.config import METHOD, NvFp4Config
from nvfp4.integrations.transformers.quantizer import NvFp4Quantizer

__all__ = ["NvFp4Config", "NvFp4Quantizer", "register"]


def register() -> bool:
    """Register the method; False, with a warning, where transformers has one of that name."""
    if METHOD in AUTO_QUANTIZATION_CONFIG_MAPPING or METHOD in AUTO_QUANTIZER_MAPPING:
        warnings.warn(
            f"nvfp4.transformers: transformers {transformers.__version__} has a quantizer of its "
            f"own for {METHOD!r}, which from_pretrained takes; nvfp4.checkpoints.load_model and "
            "nvfp4.quantize_model do without it",
            stacklevel=3,
        )
        return False
    register_quantization_config(METHOD)(NvFp4Config)
    register_quantizer(METHOD)(NvFp4Quantizer)
    return True


register()
