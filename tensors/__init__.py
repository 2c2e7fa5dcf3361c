"""Quantized tensors, their parts together, and what can be done with them without a kernel."""

from nvfp4.tensors.experts import ExpertRows, ExpertWeights, stack_experts
from nvfp4.tensors.quantized import QuantizedTensor, concatenate

__all__ = ["ExpertRows", "ExpertWeights", "QuantizedTensor", "concatenate", "stack_experts"]
