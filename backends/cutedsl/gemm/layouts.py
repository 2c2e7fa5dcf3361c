"""Where everything is in shared memory (tensor memory: tensor_memory.py), and who shares what.

All of it is plain integers, known when a kernel is compiled.

Shared memory, from a 1024-byte boundary:

    stage 0 .. stages-1   A | B | A's scales | B's scales
    outputs               a warp's 32 rows x 128 bytes, which TMA stores; x 4 warps, x 1 or 2
    partials              split-K: the CTA's float32 sums [columns][128 rows]
    row factors           float32, of the CTA's 128 rows, where no vectors are prefetched
    accumulators          x 2: factors and bias of the tile's columns, float32, and two barriers
    barriers
    table                 grouped: which tiles are which expert's (groups.py)

A stage holds K = 256. Operand rows have 128 bytes, swizzled by 128 bytes in groups of 8 rows.
Scales are the spec's 512-byte tiles of 128 rows x K = 64, slice by slice (Layout.scale_offset).
"""

from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Any

from nvfp4.backends.cutedsl.gemm.config import (
    CTA_ROWS,
    GLU_COLUMNS,
    SCALE_STEP,
    STAGE_K,
    Alpha,
    Epilogue,
    Glu,
    Kernel,
    Tile,
)
from nvfp4.backends.cutedsl.gemm.sizes import (
    GLU_SUBTILE,
    GLU_WARPS,
    HALF_SHARED_BYTES,
    K_BLOCKS,
    ROW_BYTES,
    SCALE_ROWS,
    SCALE_TILE,
    SHARED_BYTES,
    STORE_BYTES,
    TABLE_BYTES,
    TMEM_COLUMNS,
    WARPS_OF_ROWS,
)
from nvfp4.backends.cutedsl.gemm.tensor_memory import TensorMemory


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class Layout:
    tile: Tile
    epilogue: Epilogue
    grouped: bool = False
    half_sm: bool = False
    constant_weights: bool = False

    @cached_property
    def glu(self) -> Glu | None:
        return self.epilogue.glu

    def place_in_cluster(self, rank: Any) -> tuple[Any, Any]:
        """CTA `rank`'s row and column in its cluster; those of split-K are all at (0, 0)."""
        if self.tile.cluster_rows * self.tile.cluster_columns == 1:
            return 0, 0
        return rank % self.tile.cluster_rows, rank // self.tile.cluster_rows

    # warps

    @cached_property
    def column_parts(self) -> int:
        """Warps of the epilogue that share 32 rows, and each subtile."""
        return GLU_WARPS // WARPS_OF_ROWS if self.glu else 1

    @cached_property
    def epilogue_warps(self) -> int:
        return WARPS_OF_ROWS * self.column_parts

    @cached_property
    def mma_warp(self) -> int:
        return self.epilogue_warps

    @cached_property
    def load_warp(self) -> int:
        return self.epilogue_warps + 1

    @cached_property
    def threads(self) -> int:
        return 32 * (self.epilogue_warps + 2)

    # one stage

    @cached_property
    def b_rows(self) -> int:
        """Rows of B that a CTA holds: a pair shares them."""
        return self.tile.columns // self.tile.ctas

    @cached_property
    def starts_within_scale_tile(self) -> bool:
        """Whether a tile's columns may start in the middle of a scale tile."""
        return self.tile.columns % SCALE_ROWS == SCALE_STEP

    @cached_property
    def a_sharers(self) -> int:
        """CTAs that hold the same rows of A; each loads a part for all."""
        return self.tile.cluster_columns

    @cached_property
    def b_sharers(self) -> int:
        return self.tile.cluster_rows // self.tile.ctas

    @cached_property
    def b_scale_sharers(self) -> int:
        """Each of a pair needs the scales of all of the pair's columns."""
        return 1 if self.glu else self.tile.cluster_rows

    @cached_property
    def b_boxes(self) -> int:
        """Loads of B a stage. Of a gated linear unit gate and up are apart: a CTA loads both, one
        of a pair one of them, and its scales for both.
        """
        return 2 // self.tile.ctas if self.glu else 1

    @cached_property
    def b(self) -> int:
        return CTA_ROWS * ROW_BYTES

    @cached_property
    def a_scales(self) -> int:
        return self.b + self.b_rows * ROW_BYTES

    @cached_property
    def b_scales(self) -> int:
        return self.a_scales + K_BLOCKS * SCALE_TILE

    @cached_property
    def stage_bytes(self) -> int:
        """What is loaded into a CTA's shared memory per stage, and what it takes there."""
        return self.b_scales + self.tmem.b_scale_tiles * K_BLOCKS * SCALE_TILE

    @cached_property
    def stage_pitch(self) -> int:
        return _up(self.stage_bytes, 1024)

    @staticmethod
    def scale_offset(k_block: int, row_tile: int, row_tiles: int, sharers: int) -> int:
        """Where a scale tile is among an operand's: each of the sharers loads K_BLOCKS / sharers of
        the K blocks of all row tiles, one box after another.
        """
        share = K_BLOCKS // sharers
        part, rest = divmod(k_block, share)
        return ((part * row_tiles + row_tile) * share + rest) * SCALE_TILE

    # shared memory

    @cached_property
    def prefetches_factors(self) -> bool:
        """Whether factors differ by column of D: of the token if swapped, of the segment if not."""
        by_token = self.epilogue.alpha is Alpha.ROWS or self.epilogue.row_scale
        return by_token if self.tile.swapped else self.epilogue.alpha is Alpha.SEGMENTS

    @cached_property
    def prefetches_bias(self) -> bool:
        return self.epilogue.bias and not self.tile.swapped

    @cached_property
    def vectors(self) -> int:
        """float32 vectors prefetched per tile: factors by column, bias by column."""
        return int(self.prefetches_factors) + int(self.prefetches_bias)

    @cached_property
    def bias_offset(self) -> int:
        return int(self.prefetches_factors) * self.vector_bytes

    @cached_property
    def same_factor(self) -> bool:
        """Whether one number multiplies everything."""
        by_column = self.prefetches_factors
        return self.epilogue.alpha is Alpha.ONE and not self.epilogue.row_scale and not by_column

    @cached_property
    def vector_bytes(self) -> int:
        return 4 * self.tile.columns

    @cached_property
    def output_bytes(self) -> int:
        """One set of the epilogue's output buffers: 32 rows of each of its warps."""
        return CTA_ROWS * STORE_BYTES if self.epilogue.tma_store else 0

    @cached_property
    def partial_bytes(self) -> int:
        return 4 * CTA_ROWS * self.tile.columns if self.tile.split_k > 1 else 0

    @cached_property
    def stages_row_factors(self) -> bool:
        """Whether rows' factors pass through shared memory (store_tma.py)."""
        return self.epilogue.tma_store and not self.vectors

    @cached_property
    def row_factor_bytes(self) -> int:
        return 4 * CTA_ROWS if self.stages_row_factors else 0

    @cached_property
    def _fixed_bytes(self) -> int:
        barriers = 256  # two a stage, of which 10 are the most, and six others
        vectors = 2 * self.vectors * self.vector_bytes
        return self.partial_bytes + self.row_factor_bytes + vectors + barriers + self.table_bytes

    @cached_property
    def most_shared_bytes(self) -> int:
        return HALF_SHARED_BYTES if self.half_sm else SHARED_BYTES

    @cached_property
    def stages(self) -> int:
        """Stages of the operands' ring: all that fit beside one set of output buffers."""
        return (self.most_shared_bytes - self._fixed_bytes - self.output_bytes) // self.stage_pitch

    @cached_property
    def output_sets(self) -> int:
        """Two if that costs no stage, and each tile ends where the next begins."""
        if not self.epilogue.tma_store:
            return 0
        used = self.stages * self.stage_pitch + self._fixed_bytes + 2 * self.output_bytes
        return 2 if used <= self.most_shared_bytes and self.subtiles > 1 else 1

    @cached_property
    def outputs(self) -> int:
        return self.stages * self.stage_pitch

    @cached_property
    def partials(self) -> int:
        return self.outputs + self.output_sets * self.output_bytes

    @cached_property
    def row_factors(self) -> int:
        return self.partials + self.partial_bytes

    @cached_property
    def acc_block(self) -> int:
        """What belongs to an accumulator: vectors, from its start on, and barriers."""
        return self.row_factors + self.row_factor_bytes

    @cached_property
    def acc_full(self) -> int:
        """Barrier, in an accumulator's block: all MMAs of a tile are done."""
        return self.vectors * self.vector_bytes

    @cached_property
    def acc_empty(self) -> int:
        """Barrier, in the accumulator's block (overlapping: in the first): the epilogue has read
        it.
        """
        return self.acc_full + 8

    @cached_property
    def acc_pitch(self) -> int:
        return self.acc_empty + 8

    @cached_property
    def full(self) -> int:
        """Barriers: a stage is loaded."""
        return self.acc_block + 2 * self.acc_pitch

    @cached_property
    def empty(self) -> int:
        """Barriers: a stage may be loaded again."""
        return self.full + 8 * self.stages

    @cached_property
    def partial_full(self) -> int:
        """Split-K's barrier: all partial sums are there."""
        return self.empty + 8 * self.stages

    @cached_property
    def tmem_holder(self) -> int:
        return self.partial_full + 8

    @cached_property
    def table(self) -> int:
        return _up(self.tmem_holder + 8, 16)

    @cached_property
    def table_bytes(self) -> int:
        return TABLE_BYTES if self.grouped else 0

    @cached_property
    def shared_bytes(self) -> int:
        return self.table + self.table_bytes if self.grouped else self.tmem_holder + 8

    # grouped: tokens and weights, on whichever side of the MMA they are

    @cached_property
    def token_step(self) -> int:
        """Tokens from tile to tile: a power of two."""
        return self.tile.columns if self.tile.swapped else self.tile.rows

    @cached_property
    def weight_step(self) -> int:
        """Rows of weights, or of their gate half, from tile to tile."""
        if self.glu:
            return GLU_COLUMNS
        return self.tile.rows if self.tile.swapped else self.tile.columns

    # tensor memory

    @cached_property
    def tmem(self) -> TensorMemory:
        return TensorMemory(self.tile)

    @cached_property
    def scale_copies(self) -> tuple[tuple[int, int], ...]:
        """Where each scale tile of a stage is: its offset there, its tensor memory columns."""
        a = [
            (
                self.a_scales + self.scale_offset(k, 0, 1, self.a_sharers),
                self.tmem.a_scales + 4 * k,
            )
            for k in range(K_BLOCKS)
        ]
        b = [
            (
                self.b_scales
                + self.scale_offset(k, tile, self.tmem.b_scale_tiles, self.b_scale_sharers),
                self.tmem.b_scales + self.tmem.b_scale_columns * k + 4 * tile,
            )
            for k in range(K_BLOCKS)
            for tile in range(self.tmem.b_scale_tiles)
        ]
        return (*a, *b)

    # the epilogue

    @cached_property
    def subtile(self) -> int:
        """Columns that the epilogue moves at a time: STORE_BYTES of the output."""
        if self.glu:
            return GLU_SUBTILE
        columns = STORE_BYTES // self.epilogue.out_dtype.itemsize
        return min(self.tile.columns, columns if self.epilogue.tma_store else 32)

    @cached_property
    def drained(self) -> int:
        """Columns that the subtiles go through: of a gated linear unit those of gate."""
        return GLU_COLUMNS if self.glu else self.tile.columns

    @cached_property
    def subtiles(self) -> int:
        return self.drained // self.subtile

    @cached_property
    def release_after(self) -> int:
        """The subtile, in the order that they are emptied, after which the next tile's MMAs may
        begin: that of the last overlapped columns, else the last.
        """
        return -(-self.tmem.overlap // self.subtile) - 1 if self.tmem.overlap else self.subtiles - 1

    def output_buffer(self, subtile: int) -> tuple[int, int]:
        """Where a subtile's output buffers start, and the stores that may still be reading others:
        a tile's last may have used the buffers that the next tile's first needs.
        """
        alternates = self.output_sets == 2 and (subtile > 0 or self.subtiles % 2 == 0)
        return subtile % max(1, self.output_sets) * self.output_bytes, int(alternates)


def layout_of(kernel: Kernel) -> Layout:
    layout = Layout(**{field.name: getattr(kernel, field.name) for field in fields(kernel)})
    assert layout.stages >= 2 and layout.shared_bytes <= layout.most_shared_bytes, kernel
    return layout


@cache
def sized(kernel: Kernel, tiles: int, clusters: int, k: int) -> Kernel:
    """The kernel for so many tiles by so many clusters: in half of an SM, where that costs nothing.

    It costs nothing where a CTA fills no more stages than it has there, for all of its tiles
    together. Two CTAs then have room for their accumulators too.
    """
    half = Layout(kernel.tile, kernel.epilogue, kernel.grouped, True)
    fills = -(-tiles // clusters) * -(-k // (STAGE_K * kernel.tile.split_k))
    fits = half.stages >= max(2, fills) and 2 * half.tmem.columns <= TMEM_COLUMNS
    return replace(kernel, half_sm=True) if fits else kernel
