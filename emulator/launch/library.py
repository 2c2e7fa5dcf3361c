"""The C library that stands in for the CUDA runtime: cudart.c."""

from functools import cache
from pathlib import Path

from nvfp4.emulator.compiled import build


@cache
def library() -> str:
    """Compile cudart.c and return a path to load it from."""
    return build([Path(__file__).with_name("cudart.c")], ["-O1"])
