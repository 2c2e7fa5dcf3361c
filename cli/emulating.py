"""The option --emulate of several commands."""

from contextlib import AbstractContextManager, nullcontext

from nvfp4.backends.emulation import emulate
from nvfp4.backends.target import sm_of

EMULATE = "Let the CPU stand for this GPU, such as sm_89, in the emulator: slowly."


def emulating(arch: str) -> AbstractContextManager[None]:
    """Emulate the architecture within the block; nothing with ""."""
    return emulate(sm_of(arch)) if arch else nullcontext()
