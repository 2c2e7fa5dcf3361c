"""Run a kernel on CPU tensors, in the emulator.

The object code, the tensor maps and the PTX are those that a B200 would be given.
"""

import functools

from nvfp4.backends.cutedsl.gemm.choose import B200_SMS
from nvfp4.backends.cutedsl.gemm.config import Kernel
from nvfp4.backends.cutedsl.gemm.launch import Launch
from nvfp4.backends.cutedsl.runtime.compile import FUNCTION, compiled
from nvfp4.emulator import Emulated, Options, Report, load

ARCH = "sm_100a"


def run(launch: Launch, options: Options | None = None) -> Report:
    """Run a launch on CPU tensors; every hazard that the emulator sees is an error."""
    options = options or Options(outputs=launch.outputs, multiprocessors=B200_SMS)
    stream = 0
    return _loaded(launch.kernel)(*launch.args, stream, memory=launch.tensors, options=options)


@functools.cache
def _loaded(kernel: Kernel) -> Emulated:
    code = compiled(kernel, ARCH)
    return load(code.object_code, FUNCTION, code.ptx)
