"""Every instruction that the emulator knows, by its opcode."""

from collections.abc import Mapping

from nvfp4.backends.cutedsl.emulator import (
    accesses,
    arithmetic,
    barriers,
    bits,
    control,
    conversions,
    floats,
    matrices,
    mbarriers,
    moves,
    tcgen05,
    tma,
)
from nvfp4.backends.cutedsl.emulator.program import Decoder

DECODERS: Mapping[str, Decoder] = {
    **moves.DECODERS,
    **arithmetic.DECODERS,
    **bits.DECODERS,
    **floats.DECODERS,
    **conversions.DECODERS,
    **control.DECODERS,
    **accesses.DECODERS,
    **matrices.DECODERS,
    **mbarriers.DECODERS,
    **barriers.DECODERS,
    **tma.DECODERS,
    **tcgen05.DECODERS,
}
