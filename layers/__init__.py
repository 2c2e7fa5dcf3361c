"""Torch modules built on the ops; parameters are buffers, so state_dict, .to() and pickling work."""

from nvfp4.layers.linear import Linear

__all__ = ["Linear"]
