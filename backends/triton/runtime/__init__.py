"""Launching kernels: architectures, the compile cache, compiling ahead and replaying."""
