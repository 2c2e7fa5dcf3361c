"""Kernel -> object code, PTX and cubin: compiled once per configuration, kept on disk.

nvidia-cutlass-dsl is imported only to compile: what is in the cache is loaded without it being
traced again. No GPU is needed.
"""

import functools
import hashlib
import os
import platform
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from nvfp4.backends.cutedsl.gemm.config import Kernel
from nvfp4.backends.cutedsl.runtime import cache

FUNCTION = "nvfp4_gemm"
"""The TVM-FFI function that a compiled object exports."""

PACKAGES = ("nvidia-cutlass-dsl", "nvidia-cutlass-dsl-libs-base", "apache-tvm-ffi")
_COMPILING = threading.Lock()


class Compiled(NamedTuple):
    """Object code of the host function (the cubin is in it), and the kernel's PTX and cubin."""

    object_code: bytes
    ptx: str
    cubin: bytes


def compiled(kernel: Kernel, arch: str) -> Compiled:
    """The kernel for an architecture such as "sm_100a", from the cache or compiled (a second)."""
    entry = cache.get(cache_key(kernel, arch), lambda: _compile(kernel, arch))
    return Compiled(entry["object"], entry["ptx"].decode(), entry["cubin"])


def is_cached(kernel: Kernel, arch: str) -> bool:
    return cache.read(cache_key(kernel, arch)) is not None


def cache_key(kernel: Kernel, arch: str) -> str:
    """All that the code depends on: configuration, target, sources, the DSL and its settings.

    The object has the host's code in it, so the host's architecture counts too.
    """
    settings = sorted(item for item in os.environ.items() if item[0].startswith("CUTE_DSL_"))
    return repr((kernel, arch, platform.machine(), _sources(), _versions(), settings))


@functools.cache
def _sources() -> str:
    here = Path(__file__).resolve()  # the package reaches its folders by links
    digest = hashlib.sha256()
    kernels = sorted((here.parents[1] / "gemm").glob("*.py"))
    for path in [here, here.with_name("compat.py"), *kernels]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _versions() -> tuple[str, ...]:
    return tuple(f"{package} {version(package)}" for package in PACKAGES)


def _compile(kernel: Kernel, arch: str) -> cache.Entry:
    # MLIR contexts are per thread, but the DSL's own state is not.
    with _COMPILING, tempfile.TemporaryDirectory() as folder:
        import cutlass.cute as cute

        from nvfp4.backends.cutedsl.gemm.grouped import grouped_gemm, grouped_signature
        from nvfp4.backends.cutedsl.gemm.kernel import gemm, signature
        from nvfp4.backends.cutedsl.gemm.layouts import layout_of

        layout = layout_of(kernel)
        options = f"--enable-tvm-ffi --gpu-arch {arch} --keep-ptx --keep-cubin --dump-dir {folder}"
        host, arguments = gemm, signature(kernel.epilogue)
        if kernel.grouped:
            host, arguments = grouped_gemm, grouped_signature(kernel.epilogue)
        # Nothing here calls the function: an engine that could costs a third of the time.
        function = cute.compile(host, *arguments, layout, options=options, no_jit_engine=True)
        path = Path(folder) / "kernel.o"
        function.export_to_c(object_file_path=str(path), function_name=FUNCTION)
        artifacts = function.artifacts
        return {
            "object": path.read_bytes(),
            "ptx": _read(artifacts.PTX).encode(),
            "cubin": artifacts.CUBIN,
        }


def _read(ptx: str) -> str:
    """The DSL hands out PTX as text or, when it has dumped it, as a path."""
    return ptx if "\n" in ptx else Path(ptx).read_text()
