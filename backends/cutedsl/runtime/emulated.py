"""Run a kernel on CPU tensors, in the emulator.

The object code, the tensor maps and the PTX are those that a B200 would be given.
"""

import functools

from nvfp4.backends.cutedsl import DEFAULT_SM
from nvfp4.backends.cutedsl.gemm.choose import B200_SMS
from nvfp4.backends.cutedsl.gemm.config import Kernel
from nvfp4.backends.cutedsl.gemm.launch import Launch
from nvfp4.backends.cutedsl.runtime.compile import FUNCTION, compiled
from nvfp4.backends.emulation import emulated_sm
from nvfp4.emulator import Emulated, Options, Report, load


def run(launch: Launch, options: Options | None = None) -> Report:
    """Run a launch on CPU tensors; every hazard that the emulator sees is an error."""
    options = options or Options(
        outputs=launch.outputs, constants=launch.constants, multiprocessors=B200_SMS
    )
    stream = 0
    arch = f"sm_{emulated_sm() or DEFAULT_SM}a"
    return _loaded(launch.kernel, arch)(
        *launch.args, stream, memory=launch.tensors, options=options
    )


@functools.cache
def _loaded(kernel: Kernel, arch: str) -> Emulated:
    code = compiled(kernel, arch)
    return load(code.object_code, FUNCTION, code.ptx)
