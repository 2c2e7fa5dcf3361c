"""Processes that compile kernels for this one."""

import os
import sys


def compiling_environment() -> dict[str, str]:
    """The environment of a process that compiles, needs no GPU, and imports what this one does."""
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return os.environ | paths | {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
