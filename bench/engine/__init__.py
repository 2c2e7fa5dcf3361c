"""Decoding and prefill in vLLM on one host: this package's plugin beside vLLM's own kernels.

    python -m nvfp4.bench.engine write MODEL FOLDER     # random weights of a model's sizes
    python -m nvfp4.bench.engine measure FOLDER RESULT  # RESULT.json and RESULT.md
    python -m nvfp4.bench.engine plot RESULT.json       # RESULT.png: a decode step of each engine

vLLM and this package must be installed in one environment.
"""
