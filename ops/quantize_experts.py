"""Quantization of the experts' weights, each expert by itself."""

from torch import Tensor

from nvfp4.ops.quantize import quantize_weight
from nvfp4.tensors import ExpertWeights, concatenate, stack_experts


def quantize_experts(w: Tensor, segments: int = 1, backend: str = "") -> ExpertWeights:
    """Quantize weights w [E, N, K], each expert by itself; with segments = 2 the gate's and the
    up's half of w13's rows each get their own global scale.
    """
    if w.dim() != 3 or segments < 1 or w.shape[1] % segments:
        need = f"shape [E, N, K] with N a multiple of {segments} segments"
        raise ValueError(f"nvfp4.quantize_experts: w needs {need}, got shape {list(w.shape)}")
    return stack_experts(
        [
            concatenate([quantize_weight(part, backend=backend) for part in expert.chunk(segments)])
            if segments > 1
            else quantize_weight(expert, backend=backend)
            for expert in w
        ]
    )
