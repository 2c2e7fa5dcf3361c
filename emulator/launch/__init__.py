"""Launches: compiled functions called on the CPU, and single kernels."""
