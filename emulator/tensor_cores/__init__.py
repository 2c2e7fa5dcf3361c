"""Tensor cores of the fifth generation: the tcgen05 instructions."""
