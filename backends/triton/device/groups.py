"""Device functions for rows grouped by expert (spec/grouped.py): the expert of a row or tile.

A program reads all offsets at once, a few hundred integers that stay in cache, as a vector of
EXPERTS, a power of two above E. Only warp-specialized kernels read a tile list instead, which the
kernel before them writes.
"""

import triton
import triton.language as tl

from nvfp4.backends.triton.device.tiles import TILE_ROWS
from nvfp4.backends.triton.runtime.launch import next_power_of_2


def experts_vector(experts: int) -> int:
    """EXPERTS: the size of a vector that holds the experts and one offset more."""
    return next_power_of_2(experts + 1)


def max_tiles(rows: int, experts: int, tile_rows: int) -> int:
    """The most tiles of tile_rows that the experts' rows can take, each expert from its first row.

    Every expert that has a row may leave all but one row of a tile empty.
    """
    return (rows + min(rows, experts) * (tile_rows - 1)) // tile_rows


@triton.jit
def scale_rows(rows, begin, expert):
    """Map an expert's rows to rows of the grouped scales; begin: the expert's first row."""
    return (begin // TILE_ROWS + expert) * TILE_ROWS + rows - begin


@triton.jit
def tile_of_expert(offsets, index, E, ROWS: tl.constexpr, EXPERTS: tl.constexpr):
    """Find the index-th of the experts' tiles of ROWS rows.

    Returns (expert, the expert's first row, the tile's first row, the end of the expert's rows);
    all 0 where there are fewer tiles.
    """
    expert = tl.arange(0, EXPERTS)
    begin = tl.load(offsets + expert, mask=expert < E, other=0)
    end = tl.load(offsets + 1 + expert, mask=expert < E, other=0)
    tiles = (end - begin + ROWS - 1) // ROWS
    before = tl.cumsum(tiles, 0) - tiles
    found = (before <= index) & (index < before + tiles)
    row = begin + (index - before) * ROWS
    return (
        tl.sum(tl.where(found, expert, 0)),
        tl.sum(tl.where(found, begin, 0)),
        tl.sum(tl.where(found, row, 0)),
        tl.sum(tl.where(found, end, 0)),
    )


@triton.jit
def store_tiles(tiles, count, offsets, E, ROWS: tl.constexpr, EXPERTS: tl.constexpr):
    """Write the tile list, int32 [count, 3]: each tile's expert, first row and end of its rows.

    All 0 beyond the last tile. The programs of a two-dimensional grid share the work.
    """
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    for index in range(program, count, tl.num_programs(0) * tl.num_programs(1)):
        expert, _, row, end = tile_of_expert(offsets, index, E, ROWS, EXPERTS)
        tl.store(tiles + 3 * index, expert)
        tl.store(tiles + 3 * index + 1, row)
        tl.store(tiles + 3 * index + 2, end)


@triton.jit
def experts_of_rows(offsets, rows, E, EXPERTS: tl.constexpr):
    """The expert of each of rows [R]: int32 [R], E for unassigned rows."""
    expert = tl.arange(0, EXPERTS)
    end = tl.load(offsets + 1 + expert, mask=expert < E, other=2147483647)
    return tl.sum((end[None, :] <= rows[:, None]).to(tl.int32), axis=1)
