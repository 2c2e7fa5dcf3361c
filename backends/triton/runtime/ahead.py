"""Compiling launches for any NVIDIA architecture on a machine without a GPU.

Triton's own path compiles the kernel, so a launch on that GPU finds it in Triton's cache.
"""

from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from nvfp4.backends.triton.runtime import cache_folder
from nvfp4.backends.triton.runtime.compat import active_driver
from nvfp4.backends.triton.runtime.launch import Launch, hash_all


class _Target:
    """A Triton driver with an architecture but no GPU.

    Triton keeps compiled kernels by device, so each architecture is a device of its own.
    """

    def __init__(self, sm: int) -> None:
        self.sm = sm

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.sm, 32)

    def get_current_device(self) -> int:
        return self.sm

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_launch(launch: Launch, sm: int) -> CompiledKernel:
    """Compile the kernel that `launch` would run on an sm_<sm> GPU; meta tensors will do."""
    cache_folder.ensure_usable()
    hash_all()
    arguments = launch.constants | launch.options
    with active_driver(_Target(sm)):
        return launch.kernel.warmup(*launch.args, grid=launch.grid, **arguments)
