"""Torch modules built on the ops; weights are buffers, so state_dict, .to() and pickling work."""

from nvfp4.layers.linear import Linear
from nvfp4.layers.module import PackedModule
from nvfp4.layers.moe import MoE, deinterleave_gate_up
from nvfp4.layers.swiglu_mlp import SwiGLUMLP

__all__ = ["Linear", "MoE", "PackedModule", "SwiGLUMLP", "deinterleave_gate_up"]
