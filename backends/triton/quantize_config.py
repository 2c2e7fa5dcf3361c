"""How the quantizers cut a tensor into tiles.

Measured on an H200: bench/results/h200_tiles.json.
"""

from typing import NamedTuple

from nvfp4.backends.triton.launch import next_power_of_2
from nvfp4.spec.format import BLOCK
from nvfp4.spec.swizzle import TILE_BLOCKS

MIN_COLUMNS = 64
"""One swizzled tile's width in elements; narrower tiles would write parts of a 4-byte scale group.
"""

LONGEST_ROW = 65536
"""The longest row that one program keeps in registers: 64 float32 a thread in 32 warps."""


class Tile(NamedTuple):
    rows: int
    columns: int
    num_warps: int


def choose_tile(k: int, elements: int, widest: int, num_warps: int) -> Tile:
    """A tile of `elements` for a known global scale: as wide as K and `widest` allow."""
    columns = min(max(next_power_of_2(k), MIN_COLUMNS), widest)
    return Tile(max(1, elements // columns), columns, num_warps)


def choose_row_tile(k: int) -> Tile:
    """For row scales made on the way: whole rows, so that x is read once."""
    columns = max(next_power_of_2(k), MIN_COLUMNS)
    rows = max(1, 4096 // columns)
    return Tile(rows, columns, max(rows * columns // 2048, 1))


def choose_rounding_tile(rows: int, width: int) -> Tile:
    """For activations on their way into a GEMM: `width` whole groups of K. Few rows are cut into
    parts, each a program's, since nothing else runs meanwhile.
    """
    columns = min(next_power_of_2(width), LONGEST_ROW)
    if rows <= 64:
        return Tile(1, min(columns, 1024), 8)
    tile_rows = max(1, 4096 // columns)
    return Tile(tile_rows, columns, max(tile_rows * columns // 2048, 1))


assert MIN_COLUMNS % (BLOCK * TILE_BLOCKS) == 0
