"""C code of the emulator, compiled by the system's compiler and kept for later processes.

What is kept is executed. So its folder has to belong to the user, and nobody else may write to it.
Where there is no such folder, each process compiles for itself.
"""

import hashlib
import os
import platform
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from shutil import which

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-shared", "-fPIC", "-std=gnu11")


def build(sources: Sequence[Path], flags: Sequence[str]) -> str:
    """Compile the first of these files, which includes the others; return a path to load it from.

    The flag -march=native is dropped where the compiler does not know it.
    """
    compiler = _compiler()
    digest = hashlib.sha256(repr((compiler, _machine(), _FLAGS, flags)).encode())
    for source in sources:
        digest.update(source.read_bytes())
    folder = _folder()
    kept = folder / f"{sources[0].stem}-{digest.hexdigest()[:32]}.so" if folder else None
    library = _read(kept) if kept else None
    if library is None:
        library = _compile(compiler[0], sources[0], flags)
        if kept:
            _keep(kept, library)
    # Loaded from memory: nobody else can change it, and folders may forbid execution.
    file = os.memfd_create(sources[0].stem)
    with open(file, "wb", closefd=False) as loaded:
        loaded.write(library)
    return f"/proc/self/fd/{file}"


@cache
def _compiler() -> tuple[str, str]:
    """Find the C compiler, and what tells its version from others."""
    compiler = os.environ.get("CC") or next(filter(which, _COMPILERS), None)
    path = which(compiler) if compiler else None
    if path is None:
        raise RuntimeError(
            f"the emulator needs a C compiler (cc, gcc, clang or $CC), got {compiler or 'none'}"
        )
    real = os.path.realpath(path)
    status = os.stat(real)
    return path, f"{real} {status.st_size} {status.st_mtime_ns}"


@cache
def _machine() -> str:
    """Name the CPU's instructions, for which -march=native compiles."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = ("flags", "Features", "model name", "CPU part")
    return "\n".join({line: None for line in lines if line.startswith(named)})


def _compile(compiler: str, source: Path, flags: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "built.so"

        def run(flags: Sequence[str]) -> "subprocess.CompletedProcess[str]":
            command = [compiler, *_FLAGS, *flags, str(source), "-lm", "-o", str(built)]
            return subprocess.run(command, capture_output=True, text=True)

        done = run(flags)
        if done.returncode and "-march=native" in flags:
            done = run([flag for flag in flags if flag != "-march=native"])
        if done.returncode:
            raise RuntimeError(f"{compiler} cannot compile {source.name}:\n{done.stderr}")
        return built.read_bytes()


def _folder() -> Path | None:
    """Give the folder of kept libraries, made if it is not there; None if it is not safe."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "nvfp4-emulator"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    others = stat.S_IWGRP | stat.S_IWOTH
    return None if status.st_uid != os.geteuid() or status.st_mode & others else folder


def _read(path: Path) -> bytes | None:
    """Read a kept library; its last bytes are the hash of the others."""
    try:
        kept = path.read_bytes()
    except OSError:
        return None
    library, digest = kept[:-32], kept[-32:]
    return library if hashlib.sha256(library).digest() == digest else None


def _keep(path: Path, library: bytes) -> None:
    """Publish a library whole; a full disk or a read-only one only means that it is not kept."""
    try:
        file, name = tempfile.mkstemp(dir=path.parent)
        try:
            with open(file, "wb") as out:
                out.write(library + hashlib.sha256(library).digest())
            os.replace(name, path)
        except OSError:
            os.unlink(name)
    except OSError:
        pass
