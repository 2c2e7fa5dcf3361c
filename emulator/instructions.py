"""The table of every instruction that the emulator knows, by its opcode."""

from collections.abc import Mapping

from nvfp4.emulator.isa import (
    accesses,
    arithmetic,
    atomics,
    barriers,
    bits,
    control,
    conversions,
    floats,
    matrices,
    mbarriers,
    moves,
)
from nvfp4.emulator.isa.builder import Decoder
from nvfp4.emulator.tensor_cores import tcgen05, warp_mma, wgmma
from nvfp4.emulator.tma import instructions as tma

DECODERS: Mapping[str, Decoder] = {
    **moves.DECODERS,
    **arithmetic.DECODERS,
    **bits.DECODERS,
    **floats.DECODERS,
    **conversions.DECODERS,
    **control.DECODERS,
    **accesses.DECODERS,
    **atomics.DECODERS,
    **matrices.DECODERS,
    **mbarriers.DECODERS,
    **barriers.DECODERS,
    **tma.DECODERS,
    **tcgen05.DECODERS,
    **warp_mma.DECODERS,
    **wgmma.DECODERS,
}
