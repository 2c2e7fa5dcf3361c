"""Compiling launches for any NVIDIA architecture on a machine without a GPU: by Triton's own way to
a kernel, so that what is compiled is what a launch there finds in Triton's cache.
"""

from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from nvfp4.backends.triton.runtime import cache_folder
from nvfp4.backends.triton.runtime.compat import active_driver
from nvfp4.backends.triton.runtime.launch import Launch, hash_all


class _Target:
    """A driver that knows what its GPU is, and has none. Each architecture is a device of its own:
    Triton keeps what it has compiled by device.
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
    """What `launch` would run on an sm_<sm> GPU; its tensors may be meta tensors."""
    cache_folder.ensure_usable()
    hash_all()
    arguments = launch.constants | launch.options
    with active_driver(_Target(sm)):
        return launch.kernel.warmup(*launch.args, grid=launch.grid, **arguments)
