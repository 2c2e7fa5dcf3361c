"""Where accumulators and scales are in tensor memory.

Tensor memory, 512 columns of 128 lanes x 32 bits:

    acc 0 | acc 1 | scales of A (4 columns per K = 64) | scales of B (columns / 32 per K = 64)

Two accumulators of 256 columns and the scales do not fit: there the second starts within the first,
`overlap` columns early, and the epilogue empties those columns first.
"""

from dataclasses import dataclass
from functools import cached_property

from nvfp4.backends.cutedsl.gemm.config import Tile
from nvfp4.backends.cutedsl.gemm.sizes import K_BLOCKS, SCALE_LANES, SCALE_ROWS, TMEM_COLUMNS


@dataclass(frozen=True)
class TensorMemory:
    """Columns of tensor memory, for a tile."""

    tile: Tile

    @cached_property
    def b_scale_tiles(self) -> int:
        """Scale tiles that hold a tile's columns: one of 192 starts within a scale tile."""
        return -(-self.tile.columns // SCALE_ROWS)

    @cached_property
    def b_scale_columns(self) -> int:
        """Columns of B's scales per K = 64."""
        return self.b_scale_tiles * SCALE_ROWS // SCALE_LANES

    @cached_property
    def scale_columns(self) -> int:
        return K_BLOCKS * (SCALE_ROWS // SCALE_LANES + self.b_scale_columns)

    @cached_property
    def accumulators(self) -> int:
        """Two, for tiles to alternate between. A cluster that splits K has one tile."""
        return 1 if self.tile.split_k > 1 else 2

    @cached_property
    def overlap(self) -> int:
        """Columns that the two accumulators share."""
        needed = self.accumulators * self.tile.columns + self.scale_columns
        return max(0, needed - TMEM_COLUMNS)

    @cached_property
    def second_acc(self) -> int:
        """The first column of the last accumulator."""
        return (self.accumulators - 1) * self.tile.columns - self.overlap

    @cached_property
    def a_scales(self) -> int:
        return self.second_acc + self.tile.columns

    @cached_property
    def b_scales(self) -> int:
        return self.a_scales + K_BLOCKS * SCALE_ROWS // SCALE_LANES

    @cached_property
    def columns(self) -> int:
        """What is allocated: a power of two from 32 on."""
        needed = self.second_acc + self.tile.columns + self.scale_columns
        return max(32, 1 << (needed - 1).bit_length())
