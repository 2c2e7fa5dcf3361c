"""NVFP4 in transformers: see nvfp4.integrations.transformers."""

from nvfp4.integrations.transformers import NvFp4Config, NvFp4Quantizer, register

__all__ = ["NvFp4Config", "NvFp4Quantizer", "register"]
