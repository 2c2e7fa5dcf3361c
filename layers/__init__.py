"""Torch modules built on the ops. Weights are buffers: state_dict, .to() and pickling work."""

from nvfp4.layers.linear import Linear

__all__ = ["Linear"]
