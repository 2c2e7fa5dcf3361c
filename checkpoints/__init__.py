"""NVFP4 checkpoints of ModelOpt and compressed-tensors: reading, checking and writing them."""

from nvfp4.checkpoints.checkpoint import Checkpoint
from nvfp4.checkpoints.load import load_model
from nvfp4.checkpoints.parsing import is_nvfp4, parse, read_scheme
from nvfp4.checkpoints.quantize_model import quantize_model
from nvfp4.checkpoints.save import save_model
from nvfp4.checkpoints.schemes import (
    COMPRESSED_TENSORS,
    FORMATS,
    MODELOPT,
    Format,
    Group,
    Scheme,
)

__all__ = [
    "COMPRESSED_TENSORS",
    "FORMATS",
    "MODELOPT",
    "Checkpoint",
    "Format",
    "Group",
    "Scheme",
    "is_nvfp4",
    "load_model",
    "parse",
    "quantize_model",
    "read_scheme",
    "save_model",
]
