"""C sources of the emulator, compiled once a process and loaded from memory."""

import os
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from shutil import which

COMPILERS = ("cc", "gcc", "clang")


def c_compiler() -> list[str] | None:
    """Return the command of the C compiler, which may have arguments; None if there is none.

    It is $CC where that is set, else the first of COMPILERS.
    """
    named = os.environ.get("CC")
    commands = [shlex.split(named)] if named else [[name] for name in COMPILERS]
    return next((command for command in commands if command and which(command[0])), None)


@cache
def loadable(source: Path, *flags: str) -> str:
    """Compile a source file to a shared library, and return a path to load it from."""
    # Loaded from memory: nobody else can change it, and temporary folders may forbid execution.
    file = os.memfd_create(source.with_suffix(".so").name)
    with open(file, "wb", closefd=False) as loaded:
        loaded.write(_compile(source, flags))
    return f"/proc/self/fd/{file}"


def _compile(source: Path, flags: tuple[str, ...]) -> bytes:
    """Run the C compiler; at 0.1 s a process, nothing is kept on disk."""
    compiler = c_compiler()
    if compiler is None:
        names = f"{', '.join(COMPILERS)} or $CC"
        raise RuntimeError(f"the emulator needs a C compiler ({names}), got none")
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "library.so"
        command = [*compiler, "-shared", "-fPIC", *flags, str(source), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return built.read_bytes()
