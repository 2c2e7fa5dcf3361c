"""Preparing for calls: kernels compiled and loaded before the first one, as CUDA graphs need."""
