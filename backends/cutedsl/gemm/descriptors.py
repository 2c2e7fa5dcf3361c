"""What the MMA is told: descriptors of operands in shared memory, and of the instruction."""

from nvfp4.backends.cutedsl.gemm.config import Tile
from nvfp4.backends.cutedsl.gemm.sizes import ROW_BYTES

# Shared-memory descriptors (PTX ISA, "tcgen05 shared memory descriptor"), high words: the stride
# between groups of 8 rows in 16 bytes, version 1, and the swizzle (2: 128 bytes, 0: none).
OPERAND_DESCRIPTOR = 8 * ROW_BYTES >> 4 | 1 << 14 | 2 << 29
SCALE_DESCRIPTOR = 8 * 16 >> 4 | 1 << 14


def instruction_descriptor(tile: Tile) -> int:
    """E2M1 x E2M1 (format 1) with UE4M3 scales (PTX ISA, "instruction descriptor", mxf4nvf4)."""
    return 1 << 7 | 1 << 10 | tile.columns // 8 << 17 | tile.rows // 16 << 24
