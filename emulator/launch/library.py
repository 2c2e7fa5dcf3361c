"""The C library that stands in for the CUDA runtime: cudart.c, compiled once a process."""

import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from shutil import which

_SOURCE = Path(__file__).with_name("cudart.c")
_COMPILERS = ("cc", "gcc", "clang")


@cache
def library() -> str:
    """Compile cudart.c and return a path to load it from."""
    # Loaded from memory: nobody else can change it, and temporary folders may forbid execution.
    file = os.memfd_create("cudart.so")
    with open(file, "wb", closefd=False) as loaded:
        loaded.write(_compile())
    return f"/proc/self/fd/{file}"


def _compile() -> bytes:
    """Run the C compiler; at 0.1 s a process, nothing is kept on disk."""
    compiler = os.environ.get("CC") or next(filter(which, _COMPILERS), None)
    if compiler is None:
        raise RuntimeError("the emulator needs a C compiler (cc, gcc, clang or $CC), got none")
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "cudart.so"
        command = [compiler, "-shared", "-fPIC", "-O1", str(_SOURCE), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return built.read_bytes()
