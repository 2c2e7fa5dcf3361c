"""How the quantizers cut a tensor into tiles.

Measured on an H200: of many rows in bench/results/h200_tiles.json. Of few no table is kept: there a
thread is given one block, which is soonest done (`python -m nvfp4.bench.sweep quantizers --shapes
1x7168,64x7168` times them).
"""

from typing import NamedTuple

from nvfp4.backends.triton.runtime.architecture import interpreting
from nvfp4.backends.triton.runtime.launch import next_power_of_2
from nvfp4.spec.format import BLOCK
from nvfp4.spec.swizzle import TILE_BLOCKS

MIN_COLUMNS = 64
"""One swizzled tile's width in elements; narrower tiles would write parts of a 4-byte scale group.
"""

LONGEST_ROW = 65536
"""The longest row that one program keeps in registers: 64 float32 a thread in 32 warps."""

FEW_ROWS = 512
"""About as many as an H200 has room for at once, a row a program."""

MOST_WARPS = 32
"""Of a program, on any GPU."""


class Tile(NamedTuple):
    rows: int
    columns: int
    num_warps: int


def choose_tile(k: int, elements: int, widest: int, num_warps: int) -> Tile:
    """A tile of `elements` for a known global scale: as wide as K and `widest` allow. Where it is
    interpreted, a program costs the same however large its tile.
    """
    elements *= 4 if interpreting() else 1
    columns = min(max(next_power_of_2(k), MIN_COLUMNS), widest)
    return Tile(max(1, elements // columns), columns, num_warps)


def choose_row_tile(rows: int, k: int) -> Tile:
    """For row scales made on the way: whole rows, so that x is read once."""
    columns = max(next_power_of_2(k), MIN_COLUMNS)
    tile_rows = max(1, 4096 // columns)
    warps = tile_rows * columns // (32 * (BLOCK if rows <= FEW_ROWS else 4 * BLOCK))
    return Tile(tile_rows, columns, min(max(warps, 1), MOST_WARPS))


def choose_rounding_tile(rows: int, width: int) -> Tile:
    """For activations on their way into a GEMM: `width` whole groups of K. A thread has one block
    of few rows, to be done soon, and of many rows as many as four warps have.
    """
    columns = min(next_power_of_2(width), LONGEST_ROW)
    tile_rows = max(1, 2048 // columns)
    elements = tile_rows * columns
    warps = elements // (32 * BLOCK) if rows <= FEW_ROWS else max(4, elements // 2048)
    return Tile(tile_rows, columns, min(warps, MOST_WARPS))


assert MIN_COLUMNS % (BLOCK * TILE_BLOCKS) == 0
