"""Every instruction that the emulator knows, by its opcode."""

from collections.abc import Mapping

from nvfp4.backends.cutedsl.emulator import (
    accesses,
    arithmetic,
    control,
    floats,
    matrices,
    sync,
    tensor_core,
    tma,
)
from nvfp4.backends.cutedsl.emulator.program import Decoder

DECODERS: Mapping[str, Decoder] = {
    **arithmetic.DECODERS,
    **floats.DECODERS,
    **matrices.DECODERS,
    **control.DECODERS,
    **accesses.DECODERS,
    **sync.DECODERS,
    **tma.DECODERS,
    **tensor_core.DECODERS,
}
