"""The architecture that CPU tensors stand for: nvfp4.emulate."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec

ARCHITECTURES = (80, 86, 89, 90, 100, 103, 110, 120, 121)
"""The NVIDIA architectures whose code the emulator runs."""

_SM: ContextVar[int] = ContextVar("nvfp4 emulated architecture", default=0)


def emulated_sm() -> int:
    """The architecture that is emulated here; 0 if none is."""
    return _SM.get()


def emulated_slowly(sm: int) -> str:
    """Why a backend that emulates an architecture is chosen by name only."""
    return f"emulated: sm_{sm} code run by the CPU, slowly"


def emulator_needs(sm: int) -> list[str]:
    """What stands in the way of emulation, besides what compiles the kernels."""
    if find_spec("numpy") is None:
        return [f"needs the package numpy to emulate sm_{sm}, got none"]
    from nvfp4.emulator import c_compiler  # imports numpy

    return [] if c_compiler() else [f"needs a C compiler to emulate sm_{sm}, got none"]


@contextmanager
def emulate(sm: int) -> Iterator[None]:
    """Within the block, CPU tensors stand for tensors of an sm_<sm> GPU.

    A call that names a backend then runs that GPU's kernels in the emulator, unmodified and slowly:

        with nvfp4.emulate(sm=89):
            nvfp4.quantize(x, global_scale, backend="triton")

    A call that names none runs as without the block.

    Args:
        sm: one of 80, 86, 89, 90, 100, 103, 110, 120, 121.
    """
    if sm not in ARCHITECTURES:
        known = ", ".join(map(str, ARCHITECTURES))
        raise ValueError(f"nvfp4.emulate: sm needs one of {known}, got {sm!r}")
    token = _SM.set(sm)
    try:
        yield
    finally:
        _SM.reset(token)
