"""C sources of the emulator, compiled by the system's compiler and kept for later processes.

What is kept is executed. So its folder has to belong to the user, and nobody else may write to it.
Where there is no such folder, each process compiles for itself.
"""

import hashlib
import os
import platform
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from shutil import which

COMPILERS = ("cc", "gcc", "clang")
_NATIVE = "-march=native"


def c_compiler() -> list[str] | None:
    """Return the command of the C compiler, which may have arguments; None if there is none.

    It is $CC where that is set, else the first of COMPILERS.
    """
    named = os.environ.get("CC")
    commands = [shlex.split(named)] if named else [[name] for name in COMPILERS]
    return next((command for command in commands if command and which(command[0])), None)


@cache
def loadable(source: Path, *flags: str, headers: Sequence[Path] = ()) -> str:
    """Compile a source file to a shared library, and return a path to load it from.

    `headers` are the other files that it includes. The flag -march=native is dropped where the
    compiler does not know it.
    """
    compiler = c_compiler()
    if compiler is None:
        names = f"{', '.join(COMPILERS)} or $CC"
        raise RuntimeError(f"the emulator needs a C compiler ({names}), got none")
    folder = _folder()
    kept = (
        folder / f"{source.stem}-{_digest(compiler, [source, *headers], flags)}.so"
        if folder
        else None
    )
    library = _read(kept) if kept else None
    if library is None:
        library = _compile(compiler, source, flags)
        if kept:
            _keep(kept, library)
    # Loaded from memory: nobody else can change it, and folders may forbid execution.
    file = os.memfd_create(source.with_suffix(".so").name)
    with open(file, "wb", closefd=False) as loaded:
        loaded.write(library)
    return f"/proc/self/fd/{file}"


def _digest(compiler: list[str], files: Sequence[Path], flags: tuple[str, ...]) -> str:
    """Name what a library depends on: the compiler, its flags, the CPU and the files."""
    path = os.path.realpath(str(which(compiler[0])))
    status = os.stat(path)
    what = (compiler, path, status.st_size, status.st_mtime_ns, flags, _cpu())
    digest = hashlib.sha256(repr(what).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


@cache
def _cpu() -> str:
    """Name the CPU's instructions, for which -march=native compiles."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = ("flags", "Features", "model name", "CPU part")
    return "\n".join({line: None for line in lines if line.startswith(named)})


def _compile(compiler: list[str], source: Path, flags: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "library.so"

        def run(*flags: str) -> "subprocess.CompletedProcess[str]":
            command = [*compiler, "-shared", "-fPIC", *flags, str(source), "-lm", "-o", str(built)]
            return subprocess.run(command, capture_output=True, text=True)

        done = run(*flags)
        if done.returncode and _NATIVE in flags:
            done = run(*(flag for flag in flags if flag != _NATIVE))
        if done.returncode:
            raise RuntimeError(f"{compiler[0]} cannot compile {source.name}:\n{done.stderr}")
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
