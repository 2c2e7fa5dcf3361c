"""The C library that stands in for the CUDA runtime: cudart.c."""

from pathlib import Path

from nvfp4.emulator.c_library import loadable

_SOURCE = Path(__file__).with_name("cudart.c")


def library() -> str:
    """Return a path to load the library from."""
    return loadable(_SOURCE, "-O1")
