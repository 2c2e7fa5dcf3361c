"""Tensor cores: mma.sync, wgmma and tcgen05, and how each lays out its operands."""
