"""Compiling launches for any NVIDIA architecture on a machine without a GPU.

Triton's own path compiles the kernel, so a launch on that GPU finds it in Triton's cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from nvfp4.backends.triton.runtime import cache_folder
from nvfp4.backends.triton.runtime.compat import active_driver
from nvfp4.backends.triton.runtime.launch import Launch, hash_all


class _Target:
    """A Triton driver with an architecture but no GPU.

    Triton keeps compiled kernels by device, so each architecture is a device of its own, and
    another one where kernels are not assembled.
    """

    def __init__(self, sm: int, assemble: bool) -> None:
        self.sm = sm
        self.device = sm if assemble else -sm

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.sm, 32)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_launch(launch: Launch, sm: int, assemble: bool = True) -> CompiledKernel:
    """Compile the kernel that `launch` would run on an sm_<sm> GPU; meta tensors will do.

    assemble: let ptxas make machine code of the PTX.
    """
    cache_folder.ensure_usable()
    hash_all()
    arguments = launch.constants | launch.options
    with active_driver(_Target(sm, assemble)), nullcontext() if assemble else _to_ptx():
        return launch.kernel.warmup(*launch.args, grid=launch.grid, **arguments)


@contextmanager
def _to_ptx() -> Iterator[None]:
    """Leave ptxas out within the block, and keep the results apart from those of whole compiles."""
    with knobs.cache.scope(), knobs.runtime.scope():
        knobs.cache.dir = f"{knobs.cache.dir}/nvfp4-ptx"
        knobs.runtime.add_stages_inspection_hook = _without_ptxas
        yield


def _without_ptxas(backend: Any = None, stages: Any = None, *_: Any) -> tuple[str, str] | None:
    """Triton's hook for the stages of a compilation; without arguments it asks for a cache key."""
    if stages is None:
        return "nvfp4-ptx", "nvfp4-ptx"
    stages["cubin"] = lambda source, metadata: b""
    return None
